# ResNet-50 without deformable convolutions, with the encoder and the BEV of base. Not a published
# recipe, so without the quirks of the original.
_base_ = ["../config.py"]
img_norm_cfg = {{_base_.torchvision_statistics}}

model = dict(
    pretrained=dict(img="torchvision://resnet50"),
    img_backbone=dict(
        _delete_=True,
        type="ResNet",
        depth=50,
        num_stages=4,
        out_indices=(1, 2, 3),
        frozen_stages=1,
        norm_cfg=dict(type="BN", requires_grad=False),
        norm_eval=True,
        style="pytorch",
    ),
)

# ResNet-50 without deformable convolutions, with the encoder and the BEV of base. Not a published
# recipe, so without the quirks of the original.
_base_ = ["../config.py"]

model = dict(
    data_preprocessor=dict(
        mean={{_base_.torchvision_statistics.mean}},
        std={{_base_.torchvision_statistics.std}},
        to_rgb={{_base_.torchvision_statistics.to_rgb}},
    ),
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

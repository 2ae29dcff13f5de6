# The published BEVFormer-tiny, number for number: NDS 35.4, mAP 25.2 on nuScenes val.
_base_ = [
    "../_base_/official_quirks.py",
    "../_base_/schedule_24e.py",
    "../_base_/default_runtime.py",
]
img_norm_cfg = {{_base_.torchvision_statistics}}
image_scale = 0.5
queue_length = 3
bev_h = 50
bev_w = 50
num_levels = 1

model = dict(
    pretrained=dict(img="torchvision://resnet50"),
    img_backbone=dict(
        _delete_=True,
        type="ResNet",
        depth=50,
        num_stages=4,
        out_indices=(3,),
        frozen_stages=1,
        norm_cfg=dict(type="BN", requires_grad=False),
        norm_eval=True,
        style="pytorch",
    ),
    img_neck=dict(in_channels=[2048]),
    pts_bbox_head=dict(transformer=dict(encoder=dict(num_layers=3))),
)

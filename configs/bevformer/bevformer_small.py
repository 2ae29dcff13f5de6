# The published BEVFormer-small, number for number: NDS 47.9, mAP 37.0 on nuScenes val.
_base_ = [
    "../_base_/official_quirks.py",
    "../_base_/schedule_24e.py",
    "../_base_/default_runtime.py",
]
image_scale = 0.8
queue_length = 3
bev_h = 150
bev_w = 150
num_levels = 1

model = dict(
    img_backbone=dict(out_indices=(3,), with_cp=True),
    img_neck=dict(in_channels=[2048]),
    pts_bbox_head=dict(transformer=dict(encoder=dict(num_layers=3))),
)
load_from = "ckpts/r101_dcn_fcos3d_pretrain.pth"

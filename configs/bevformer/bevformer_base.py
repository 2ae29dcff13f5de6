# The published BEVFormer-base, number for number: NDS 51.7, mAP 41.6 on nuScenes val.
_base_ = [
    "../_base_/bevformer.py",
    "../_base_/schedule_24e.py",
    "../_base_/default_runtime.py",
]
model = dict(pts_bbox_head=dict(transformer=dict(rotate_center=[100, 100])))
data = dict(
    train=dict(can_bus_quaternion="official", can_bus_message="official"),
    val=dict(can_bus_quaternion="official", can_bus_message="official"),
    test=dict(can_bus_quaternion="official", can_bus_message="official"),
)
load_from = "ckpts/r101_dcn_fcos3d_pretrain.pth"

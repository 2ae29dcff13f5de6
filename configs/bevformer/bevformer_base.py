# The published BEVFormer-base, number for number: NDS 51.7, mAP 41.6 on nuScenes val.
_base_ = [
    "../_base_/official_quirks.py",
    "../_base_/schedule_24e.py",
    "../_base_/default_runtime.py",
]
load_from = "ckpts/r101_dcn_fcos3d_pretrain.pth"

# The published BEVFormer v2 "t1": t1-base with augmentation and groups of queries. Published: NDS 45.3,
# mAP 38.1 on nuScenes val.
_base_ = ["./bevformerv2_r50_t1_base_24ep.py"]
augmented = True
group_detr = 11

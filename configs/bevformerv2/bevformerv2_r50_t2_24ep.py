# The published BEVFormer v2 "t2": t1 with the previous key frame. Published: NDS 51.8, mAP 42.0 on
# nuScenes val.
_base_ = ["./bevformerv2_r50_t1_24ep.py"]
frames = (-1, 0)

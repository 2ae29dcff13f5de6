# The published BEVFormer v2 "t1", 48 epochs: NDS 46.5, mAP 39.5 on nuScenes val.
_base_ = ["./bevformerv2_r50_t1_24ep.py"]
total_epochs = 48

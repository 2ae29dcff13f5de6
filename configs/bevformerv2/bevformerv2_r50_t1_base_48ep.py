# The published BEVFormer v2 "t1-base", 48 epochs: NDS 43.9, mAP 35.9 on nuScenes val.
_base_ = ["./bevformerv2_r50_t1_base_24ep.py"]
total_epochs = 48

# The published mixed-precision recipe of BEVFormer-tiny: NDS 35.9, mAP 25.7 on nuScenes val. Two
# samples per process, a fixed loss scale; history frames are in half precision too.
_base_ = ["./bevformer_tiny.py"]

samples_per_gpu = 2
workers_per_gpu = 8
lr = 2.8e-4
auto_scale_lr = dict(base_batch_size=16)
fp16 = dict(loss_scale=512.0)

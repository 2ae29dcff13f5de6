# nuScenes v1.0-mini at BEV 120 x 120 for one process: 323 key frames, 24 epochs, to try things out.
# Info files: tools/create_data.py ... --version v1.0-mini
_base_ = ["./bevformer_bev120.py"]

lr = 5e-5  # one sample per step, not eight
auto_scale_lr = dict(base_batch_size=1)
lr_config = dict(warmup_iters=200)
evaluation = dict(interval=4)

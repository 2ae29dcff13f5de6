# A small temporal BEVFormer for the synthetic data set (tools/create_synthetic.py): all ten
# classes, one epoch from the demo weights, on two CPU cores. `make demo` runs it.
_base_ = ["./_base_/bevformer.py", "./_base_/default_runtime.py"]

assert not {{_base_.images_on_device}}, "images_on_device: this recipe scales float images"
data_root = "data/synthetic/"
info_prefix = "synthetic"
image_scale = 0.5
image_divisor = 16
img_norm_cfg = {{_base_.torchvision_statistics}}
workers_per_gpu = 1
queue_length = 3
bev_h = 50
bev_w = 50
embed_dims = 128
num_heads = 4
num_levels = 2
num_points = 4
dropout = 0.0
num_query = 200
max_num = 200

model = dict(
    use_grid_mask=False,
    img_backbone=dict(
        _delete_=True,
        type="ResNet",
        depth=18,
        base_channels=48,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(1, 2),
        frozen_stages=-1,
        norm_cfg=dict(type="BN", requires_grad=True),
        norm_eval=False,
        style="pytorch",
    ),
    img_neck=dict(
        _delete_=True,
        type="FPN",
        in_channels=[96, 192],
        out_channels=embed_dims,
        num_outs=num_levels,
    ),
    pts_bbox_head=dict(
        group_detr=4,
        code_weights=[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.5],
        transformer=dict(
            num_feature_levels=num_levels,
            encoder=dict(num_layers=2),
            decoder=dict(num_layers=3),
        ),
    ),
)

train_pipeline = [
    {{_base_.steps.load}},
    {{_base_.steps.annotations}},
    {{_base_.steps.in_range}},
    {{_base_.steps.in_classes}},
    {{_base_.steps.resize}},
    {{_base_.steps.normalize}},
    {{_base_.steps.pad}},
    {{_base_.steps.format}},
    {{_base_.steps.collect}},
]
test_pipeline = [
    {{_base_.steps.load}},
    {{_base_.steps.resize}},
    {{_base_.steps.normalize}},
    {{_base_.steps.pad}},
    dict(
        type="MultiScaleFlipAug3D",
        img_scale=(800, 450),
        pts_scale_ratio=1,
        flip=False,
        transforms=[{{_base_.steps.format_test}}, {{_base_.steps.collect_test}}],
    ),
]

# bfloat16 where the machine multiplies it fast, and half the memory everywhere.
fp16 = dict(dtype="bfloat16")
channels_last = True  # convolutions in bfloat16 are then twice as fast
lr = 2e-4
optimizer = dict(type="AdamW", lr=lr, weight_decay=0.01)
auto_scale_lr = dict(base_batch_size=1)
optimizer_config = dict(grad_clip=dict(max_norm=35, norm_type=2))
lr_config = dict(
    policy="CosineAnnealing",
    by_epoch=False,
    warmup="linear",
    warmup_iters=20,
    warmup_ratio=0.1,
    min_lr_ratio=1e-2,
)
total_epochs = 1
runner = dict(type="EpochBasedRunner", max_epochs=total_epochs)
log_config = dict(interval=20)
load_from = "data/demo/bevformer_demo.pth"

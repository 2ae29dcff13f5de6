# 24 epochs at a total batch of 8 (8 processes x 1 sample).
lr = 2e-4
optimizer = dict(
    type="AdamW",
    lr=lr,
    paramwise_cfg=dict(custom_keys={"img_backbone": dict(lr_mult=0.1)}),
    weight_decay=0.01,
)
auto_scale_lr = dict(base_batch_size=8)  # the total batch that lr is for
optimizer_config = dict(grad_clip=dict(max_norm=35, norm_type=2))
lr_config = dict(
    policy="CosineAnnealing",
    warmup="linear",
    warmup_iters=500,
    warmup_ratio=1.0 / 3,
    min_lr_ratio=1e-3,
)
total_epochs = 24
runner = dict(type="EpochBasedRunner", max_epochs=total_epochs)

# A small temporal BEVFormer for the synthetic data set (tools/create_synthetic.py): all ten
# classes, one epoch from the demo weights, on two CPU cores. `make demo` runs it.
_base_ = ["./_base_/bevformer.py", "./_base_/default_runtime.py"]

point_cloud_range = {{_base_.point_cloud_range}}
embed_dims = 128
num_heads = 4
bev_h = 50
bev_w = 50
queue_length = 3

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
        _delete_=True, type="FPN", in_channels=[96, 192], out_channels=embed_dims, num_outs=2
    ),
    pts_bbox_head=dict(
        bev_h=bev_h,
        bev_w=bev_w,
        num_query=200,
        group_detr=4,
        in_channels=embed_dims,
        code_weights=[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.5],
        transformer=dict(
            embed_dims=embed_dims,
            num_feature_levels=2,
            encoder=dict(
                num_layers=2,
                transformerlayers=dict(
                    attn_cfgs=[
                        dict(
                            type="TemporalSelfAttention",
                            embed_dims=embed_dims,
                            num_heads=num_heads,
                            num_levels=1,
                            dropout=0.0,
                        ),
                        dict(
                            type="SpatialCrossAttention",
                            embed_dims=embed_dims,
                            pc_range=point_cloud_range,
                            dropout=0.0,
                            deformable_attention=dict(
                                type="MSDeformableAttention3D",
                                embed_dims=embed_dims,
                                num_heads=num_heads,
                                num_points=4,
                                num_levels=2,
                            ),
                        ),
                    ],
                    feedforward_channels=embed_dims * 2,
                    ffn_dropout=0.0,
                ),
            ),
            decoder=dict(
                num_layers=3,
                transformerlayers=dict(
                    attn_cfgs=[
                        dict(
                            type="MultiheadAttention",
                            embed_dims=embed_dims,
                            num_heads=num_heads,
                            dropout=0.0,
                        ),
                        dict(
                            type="CustomMSDeformableAttention",
                            embed_dims=embed_dims,
                            num_heads=num_heads,
                            num_levels=1,
                            dropout=0.0,
                        ),
                    ],
                    feedforward_channels=embed_dims * 2,
                    ffn_dropout=0.0,
                ),
            ),
        ),
        bbox_coder=dict(max_num=200),
        positional_encoding=dict(
            num_feats=embed_dims // 2, row_num_embed=bev_h, col_num_embed=bev_w
        ),
    ),
)

data_root = "data/synthetic/"
pad = dict(type="PadMultiViewImage", size_divisor=16)
train_pipeline = [
    {{_base_.steps.load}},
    {{_base_.steps.annotations}},
    {{_base_.steps.in_range}},
    {{_base_.steps.in_classes}},
    {{_base_.steps.half_size}},
    {{_base_.steps.normalize_torchvision}},
    pad,
    {{_base_.steps.format}},
    {{_base_.steps.collect}},
]
test_pipeline = [
    {{_base_.steps.load}},
    {{_base_.steps.half_size}},
    {{_base_.steps.normalize_torchvision}},
    pad,
    dict(
        type="MultiScaleFlipAug3D",
        img_scale=(800, 450),
        pts_scale_ratio=1,
        flip=False,
        transforms=[{{_base_.steps.format_test}}, {{_base_.steps.collect_test}}],
    ),
]
evaluated = dict(
    data_root=data_root,
    ann_file=data_root + "synthetic_infos_temporal_val.pkl",
    pipeline=test_pipeline,
)
data = dict(
    samples_per_gpu=1,
    workers_per_gpu=1,
    train=dict(
        data_root=data_root,
        ann_file=data_root + "synthetic_infos_temporal_train.pkl",
        pipeline=train_pipeline,
        queue_length=queue_length,
    ),
    val=evaluated,
    test=evaluated,
)

# bfloat16 where the machine multiplies it fast, and half the memory everywhere.
fp16 = dict(dtype="bfloat16")
channels_last = True  # convolutions in bfloat16 are then twice as fast
optimizer = dict(type="AdamW", lr=2e-4, weight_decay=0.01)
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

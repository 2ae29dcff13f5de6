# The published BEVFormer-small, number for number: NDS 47.9, mAP 37.0 on nuScenes val.
_base_ = [
    "../_base_/official_quirks.py",
    "../_base_/schedule_24e.py",
    "../_base_/default_runtime.py",
]
point_cloud_range = {{_base_.point_cloud_range}}
embed_dims = {{_base_.embed_dims}}
bev_h = 150
bev_w = 150
queue_length = 3

model = dict(
    img_backbone=dict(out_indices=(3,), with_cp=True),
    img_neck=dict(in_channels=[2048], num_outs=1),
    pts_bbox_head=dict(
        bev_h=bev_h,
        bev_w=bev_w,
        transformer=dict(
            encoder=dict(
                num_layers=3,
                transformerlayers=dict(
                    attn_cfgs=[
                        dict(type="TemporalSelfAttention", embed_dims=embed_dims, num_levels=1),
                        dict(
                            type="SpatialCrossAttention",
                            pc_range=point_cloud_range,
                            deformable_attention=dict(
                                type="MSDeformableAttention3D",
                                embed_dims=embed_dims,
                                num_points=8,
                                num_levels=1,
                            ),
                            embed_dims=embed_dims,
                        ),
                    ],
                ),
            ),
        ),
        positional_encoding=dict(row_num_embed=bev_h, col_num_embed=bev_w),
    ),
)

train_pipeline = [
    {{_base_.steps.load}},
    {{_base_.steps.distort}},
    {{_base_.steps.annotations}},
    {{_base_.steps.in_range}},
    {{_base_.steps.in_classes}},
    {{_base_.steps.normalize_caffe}},
    {{_base_.steps.four_fifths_size}},
    {{_base_.steps.pad}},
    {{_base_.steps.format}},
    {{_base_.steps.collect}},
]
test_pipeline = [
    {{_base_.steps.load}},
    {{_base_.steps.normalize_caffe}},
    dict(
        type="MultiScaleFlipAug3D",
        img_scale=(1600, 900),
        pts_scale_ratio=1,
        flip=False,
        transforms=[
            {{_base_.steps.four_fifths_size}},
            {{_base_.steps.pad}},
            {{_base_.steps.format_test}},
            {{_base_.steps.collect_test}},
        ],
    ),
]
data = dict(
    train=dict(pipeline=train_pipeline, queue_length=queue_length),
    val=dict(pipeline=test_pipeline),
    test=dict(pipeline=test_pipeline),
)
load_from = "ckpts/r101_dcn_fcos3d_pretrain.pth"

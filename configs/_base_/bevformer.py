# BEVFormer-base: ResNet-101 with DCNv2, four feature levels, BEV 200x200, six encoder layers.
_base_ = ["./nuscenes.py"]
point_cloud_range = {{_base_.point_cloud_range}}
class_names = {{_base_.class_names}}
bev_h = 200
bev_w = 200
embed_dims = 256
num_heads = 8
num_levels = 4  # of image features
num_points = 8
dropout = 0.1
num_query = 900
max_num = 300  # boxes per frame

# Detections may lie this far outside of the range.
margins = [-10, -10, -5, 10, 10, 7]
post_center_range = [bound + margin for bound, margin in zip(point_cloud_range, margins)]
# The published configs do not name what is the default of the attentions.
heads = {} if num_heads == 8 else dict(num_heads=num_heads)
drop = {} if dropout == 0.1 else dict(dropout=dropout)
preprocessor = dict(
    type="ImagePreprocessor",
    **{{_base_.img_norm_cfg}},
    **({} if {{_base_.image_scale}} == 1 else dict(scale={{_base_.image_scale}})),
    size_divisor={{_base_.image_divisor}},
)

model = dict(
    type="BEVFormer",
    use_grid_mask=True,
    video_test_mode=True,
    **(dict(data_preprocessor=preprocessor) if {{_base_.images_on_device}} else {}),
    img_backbone=dict(
        type="ResNet",
        depth=101,
        num_stages=4,
        out_indices=(1, 2, 3),
        frozen_stages=1,
        norm_cfg=dict(type="BN2d", requires_grad=False),
        norm_eval=True,
        style="caffe",
        # mmcv's DCNv2 without its compiled operator; same parameter names.
        dcn=dict(type="TorchvisionDCNv2", deform_groups=1, fallback_on_stride=False),
        stage_with_dcn=(False, False, True, True),
    ),
    img_neck=dict(
        type="FPN",
        in_channels=[512, 1024, 2048],
        out_channels=embed_dims,
        start_level=0,
        add_extra_convs="on_output",
        num_outs=num_levels,
        relu_before_extra_convs=True,
    ),
    pts_bbox_head=dict(
        type="BEVFormerHead",
        bev_h=bev_h,
        bev_w=bev_w,
        num_query=num_query,
        num_classes=len(class_names),
        in_channels=embed_dims,
        sync_cls_avg_factor=True,
        with_box_refine=True,
        as_two_stage=False,
        transformer=dict(
            type="PerceptionTransformer",
            rotate_prev_bev=True,
            use_shift=True,
            use_can_bus=True,
            embed_dims=embed_dims,
            encoder=dict(
                type="BEVFormerEncoder",
                num_layers=6,
                pc_range=point_cloud_range,
                num_points_in_pillar=4,
                return_intermediate=False,
                transformerlayers=dict(
                    type="BEVFormerLayer",
                    attn_cfgs=[
                        dict(
                            type="TemporalSelfAttention",
                            embed_dims=embed_dims,
                            num_levels=1,
                            **heads,
                            **drop,
                        ),
                        dict(
                            type="SpatialCrossAttention",
                            pc_range=point_cloud_range,
                            deformable_attention=dict(
                                type="MSDeformableAttention3D",
                                embed_dims=embed_dims,
                                num_points=num_points,
                                num_levels=num_levels,
                                **heads,
                            ),
                            embed_dims=embed_dims,
                            **drop,
                        ),
                    ],
                    feedforward_channels=embed_dims * 2,
                    ffn_dropout=dropout,
                    operation_order=("self_attn", "norm", "cross_attn", "norm", "ffn", "norm"),
                ),
            ),
            decoder=dict(
                type="DetectionTransformerDecoder",
                num_layers=6,
                return_intermediate=True,
                transformerlayers=dict(
                    type="DetrTransformerDecoderLayer",
                    attn_cfgs=[
                        dict(
                            type="MultiheadAttention",
                            embed_dims=embed_dims,
                            num_heads=num_heads,
                            dropout=dropout,
                        ),
                        dict(
                            type="CustomMSDeformableAttention",
                            embed_dims=embed_dims,
                            num_levels=1,
                            **heads,
                            **drop,
                        ),
                    ],
                    feedforward_channels=embed_dims * 2,
                    ffn_dropout=dropout,
                    operation_order=("self_attn", "norm", "cross_attn", "norm", "ffn", "norm"),
                ),
            ),
        ),
        bbox_coder=dict(
            type="NMSFreeCoder",
            post_center_range=post_center_range,
            pc_range=point_cloud_range,
            max_num=min(max_num, num_query * len(class_names)),
            voxel_size=[0.2, 0.2, point_cloud_range[5] - point_cloud_range[2]],
            num_classes=len(class_names),
        ),
        positional_encoding=dict(
            type="LearnedPositionalEncoding",
            num_feats=embed_dims // 2,
            row_num_embed=bev_h,
            col_num_embed=bev_w,
        ),
        loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=2.0),
        loss_bbox=dict(type="L1Loss", loss_weight=0.25),
        loss_iou=dict(type="GIoULoss", loss_weight=0.0),
    ),
    train_cfg=dict(
        pts=dict(
            assigner=dict(
                type="HungarianAssigner3D",
                cls_cost=dict(type="FocalLossCost", weight=2.0),
                reg_cost=dict(type="BBox3DL1Cost", weight=0.25),
                iou_cost=dict(type="IoUCost", weight=0.0),
                pc_range=point_cloud_range,
            )
        )
    ),
)

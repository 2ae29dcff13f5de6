# The published BEVFormer-tiny, number for number: NDS 35.4, mAP 25.2 on nuScenes val.
_base_ = [
    "../_base_/bevformer.py",
    "../_base_/schedule_24e.py",
    "../_base_/default_runtime.py",
]
point_cloud_range = {{_base_.point_cloud_range}}
embed_dims = {{_base_.embed_dims}}
bev_h = 50
bev_w = 50
queue_length = 3
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)

model = dict(
    pretrained=dict(img="torchvision://resnet50"),
    img_backbone=dict(
        _delete_=True,
        type="ResNet",
        depth=50,
        num_stages=4,
        out_indices=(3,),
        frozen_stages=1,
        norm_cfg=dict(type="BN", requires_grad=False),
        norm_eval=True,
        style="pytorch",
    ),
    img_neck=dict(in_channels=[2048], num_outs=1),
    pts_bbox_head=dict(
        bev_h=bev_h,
        bev_w=bev_w,
        transformer=dict(
            rotate_center=[100, 100],
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

class_names = {{_base_.class_names}}
train_pipeline = [
    dict(type="LoadMultiViewImageFromFiles", to_float32=True),
    dict(type="PhotoMetricDistortionMultiViewImage"),
    dict(type="LoadAnnotations3D", with_bbox_3d=True, with_label_3d=True, with_attr_label=False),
    dict(type="ObjectRangeFilter", point_cloud_range=point_cloud_range),
    dict(type="ObjectNameFilter", classes=class_names),
    dict(type="NormalizeMultiviewImage", **img_norm_cfg),
    dict(type="RandomScaleImageMultiViewImage", scales=[0.5]),
    dict(type="PadMultiViewImage", size_divisor=32),
    dict(type="DefaultFormatBundle3D", class_names=class_names),
    dict(type="CustomCollect3D", keys=["gt_bboxes_3d", "gt_labels_3d", "img"]),
]
test_pipeline = [
    dict(type="LoadMultiViewImageFromFiles", to_float32=True),
    dict(type="NormalizeMultiviewImage", **img_norm_cfg),
    dict(
        type="MultiScaleFlipAug3D",
        img_scale=(1600, 900),
        pts_scale_ratio=1,
        flip=False,
        transforms=[
            dict(type="RandomScaleImageMultiViewImage", scales=[0.5]),
            dict(type="PadMultiViewImage", size_divisor=32),
            dict(type="DefaultFormatBundle3D", class_names=class_names, with_label=False),
            dict(type="CustomCollect3D", keys=["img"]),
        ],
    ),
]
data = dict(
    train=dict(
        pipeline=train_pipeline,
        queue_length=queue_length,
        can_bus_quaternion="official",
        can_bus_message="official",
    ),
    val=dict(pipeline=test_pipeline, can_bus_quaternion="official", can_bus_message="official"),
    test=dict(pipeline=test_pipeline, can_bus_quaternion="official", can_bus_message="official"),
)

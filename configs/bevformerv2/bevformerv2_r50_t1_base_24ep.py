# The published BEVFormer v2 "t1-base": one frame, ResNet-50, a perspective head in addition to
# the BEV head. Published: NDS 42.6, mAP 35.1 on nuScenes val, from ckpts/fcos_r50_coco_2mmdet.pth,
# total batch 8. Not verified here: not trained on nuScenes, official weights and that pretraining
# file not tried. The published recipe takes the objects of the perspective head from the nuScenes tables,
# this one from the info file (docs/checkpoint_compatibility.md#bevformer-v2). The other recipes of
# this folder change the variables.
_base_ = ["../_base_/bevformer.py", "../_base_/default_runtime.py"]
dataset_type = "CustomNuScenesDatasetV2"
assert not {{_base_.images_on_device}}, "images_on_device: this recipe cuts float images"
frames = (0,)
augmented = False  # images of several sizes and mirrored; the scene turned, scaled and mirrored
group_detr = 1  # groups of queries in training
class_names = [
    "barrier",
    "bicycle",
    "bus",
    "car",
    "construction_vehicle",
    "motorcycle",
    "pedestrian",
    "traffic_cone",
    "trailer",
    "truck",
]
width, height = {{_base_.image_size}}
cut_height = 640  # the upper rows are cut off
cut = dict(crop=(0, height - cut_height, width, height), H=height, W=width)
ida_aug_conf = dict(
    reisze=[cut_height * share // 20 for share in (range(16, 25) if augmented else [20])],
    rand_flip=augmented,
    **cut,
)
ida_aug_conf_eval = dict(reisze=[cut_height], rand_flip=False, **cut)
turn_scene = dict(
    type="GlobalRotScaleTransImage",
    rot_range=[-22.5, 22.5],
    scale_ratio_range=[0.95, 1.05],
    flip_dx_ratio=0.5,
    flip_dy_ratio=0.5,
    only_gt=True,
)
bev_h = {{_base_.bev_h}}
bev_w = {{_base_.bev_w}}
embed_dims = {{_base_.embed_dims}}
point_cloud_range = {{_base_.point_cloud_range}}

train_pipeline = [
    {{_base_.steps.load}},
    {{_base_.steps.distort}},
    {{_base_.steps.annotations}},
    *([turn_scene] if augmented else []),
    {{_base_.steps.in_range}},
    {{_base_.steps.in_classes}},
    dict(type="CropResizeFlipImage", data_aug_conf=ida_aug_conf, training=True),
    {{_base_.steps.normalize}},
    {{_base_.steps.pad}},
    {{_base_.steps.format}},
    dict(
        type="CustomCollect3D",
        keys=["gt_bboxes_3d", "gt_labels_3d", "img", "mono_input_dict", "aug_param"],
    ),
    dict(type="DD3DMapper"),
]
test_pipeline = [
    {{_base_.steps.load}},
    dict(type="CropResizeFlipImage", data_aug_conf=ida_aug_conf_eval, training=False),
    {{_base_.steps.normalize}},
    {{_base_.steps.pad}},
    dict(
        type="MultiScaleFlipAug3D",
        img_scale=(width, cut_height),
        pts_scale_ratio=1,
        flip=False,
        transforms=[{{_base_.steps.format_test}}, {{_base_.steps.collect_test}}],
    ),
]
data = dict(
    persistent_workers=True,
    train=dict(
        _delete_=True,
        ann_file={{_base_.data.train.ann_file}},
        pipeline=train_pipeline,
        use_valid_flag=True,
        mono_cfg=dict(min_num_lidar_points=3, min_box_visibility=0.2),
        frames=frames,
        **{{_base_.dataset}},
    ),
    # Velocities of the original's result files.
    val=dict(frames=frames, result_velocity="official"),
    test=dict(frames=frames, result_velocity="official"),
)
# Width, length and height of each class in metres.
canonical_sizes = dict(
    barrier=[2.3524184, 0.5062202, 1.0413622],
    bicycle=[0.61416006, 1.7016163, 1.3054738],
    bus=[2.9139307, 10.725025, 3.2832346],
    car=[1.9751819, 4.641267, 1.74352],
    construction_vehicle=[2.772134, 6.565072, 3.2474296],
    motorcycle=[0.7800532, 2.138673, 1.4437162],
    pedestrian=[0.6667362, 0.7181772, 1.7616143],
    traffic_cone=[0.40246472, 0.4027083, 1.0084083],
    trailer=[3.0059454, 12.8197, 4.1213827],
    truck=[2.4986045, 6.9310856, 2.8382742],
)
assert {*class_names} <= {*canonical_sizes}, "canonical_sizes needs every class of class_names"

model = dict(
    type="BEVFormerV2",
    use_grid_mask=True,
    video_test_mode=False,
    num_levels=4,
    num_mono_levels=5,
    mono_loss_weight=1.0,
    frames=frames,
    img_backbone=dict(
        _delete_=True,
        type="ResNet",
        depth=50,
        num_stages=4,
        out_indices=(1, 2, 3),
        frozen_stages=-1,
        norm_cfg=dict(type="SyncBN"),
        norm_eval=False,
        style="caffe",
    ),
    img_neck=dict(num_outs=5),
    pts_bbox_head=dict(
        **(dict(group_detr=group_detr) if group_detr > 1 else {}),
        transformer=dict(
            _delete_=True,
            type="PerceptionTransformerV2",
            embed_dims=embed_dims,
            frames=frames,
            encoder={{_base_.model.pts_bbox_head.transformer.encoder}},
            decoder={{_base_.model.pts_bbox_head.transformer.decoder}},
        ),
        bbox_coder=dict(
            voxel_size=[
                (point_cloud_range[3] - point_cloud_range[0]) / bev_w,
                (point_cloud_range[4] - point_cloud_range[1]) / bev_h,
                point_cloud_range[5] - point_cloud_range[2],
            ]
        ),
        loss_bbox=dict(_delete_=True, type="SmoothL1Loss", loss_weight=0.75, beta=1.0),
    ),
    fcos3d_bbox_head=dict(
        type="NuscenesDD3D",
        num_classes=len(class_names),
        in_channels=embed_dims,
        strides=[8, 16, 32, 64, 128],
        fcos2d_cfg=dict(
            num_cls_convs=4, num_box_convs=4, norm="SyncBN", box2d_scale_init_factor=1.0
        ),
        # The last option of each of the three kinds of losses is a quirk of the original
        # (docs/checkpoint_compatibility.md#bevformer-v2).
        fcos2d_loss_cfg=dict(
            focal_loss_alpha=0.25,
            focal_loss_gamma=2.0,
            loc_loss_type="giou",
            iou_added_pixels=1.0,
        ),
        fcos3d_cfg=dict(
            num_convs=4,
            norm="SyncBN",
            depth_scale_init_factor=0.3,
            proj_ctr_scale_init_factor=1.0,
            use_per_level_predictors=False,
            mean_depth_per_level=[44.921, 20.252, 11.712, 7.166, 8.548],
            std_depth_per_level=[24.331, 9.833, 6.223, 4.611, 8.275],
        ),
        fcos3d_loss_cfg=dict(
            min_depth=0.1,
            max_depth=80.0,
            box3d_loss_weight=2.0,
            conf3d_loss_weight=1.0,
            conf_3d_temperature=1.0,
            smooth_l1_loss_beta=0.05,
            predict_allocentric_rot=True,
            scale_depth_by_focal_lengths=True,
            scale_depth_by_focal_lengths_factor=500.0,
            canon_box_sizes=[canonical_sizes[name] for name in class_names],
            divide_by_beta=False,
        ),
        target_assign_cfg=dict(
            center_sample=True,
            pos_radius=1.5,
            sizes_of_interest=((-1, 64), (64, 128), (128, 256), (256, 512), (512, 1e8)),
        ),
        nusc_loss_weight=dict(
            attr_loss_weight=0.2, speed_loss_weight=0.2, attr_by_centerness=False
        ),
    ),
    train_cfg=dict(pts=dict(assigner=dict(reg_cost=dict(type="SmoothL1Cost", weight=0.75)))),
)

load_from = "ckpts/fcos_r50_coco_2mmdet.pth"
lr = 4e-4
optimizer = dict(
    type="AdamW",
    lr=lr,
    paramwise_cfg=dict(custom_keys={"img_backbone": dict(lr_mult=0.5)}),
    weight_decay=0.01,
)
auto_scale_lr = dict(base_batch_size=8)
optimizer_config = dict(grad_clip=dict(max_norm=35, norm_type=2))
total_epochs = 24
lr_config = dict(
    policy="step",
    warmup="linear",
    warmup_iters=2000,
    warmup_ratio=1.0 / 3,
    step=[total_epochs - 4],
)
evaluation = dict(interval=4)
runner = dict(type="EpochBasedRunner", max_epochs=total_epochs)

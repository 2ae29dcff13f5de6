"""A config in the layout and with the keys of the original's builds, trains a step and evaluates.

The text is this project's; the keys and numbers are those listed in the original's configs (commit
66b65f3): the plugin by folder, names with underscores, samplers, options that nothing reads.
"""

import json
import textwrap

import pytest
import torch
from mmcv.ops import ModulatedDeformConv2dPack
from tool_runs import as_flags, run

from projects.bevformer import compat
from projects.bevformer.engine.config import load_config
from projects.bevformer.model.mm.deform_conv import TorchvisionDCNv2

from mmdet3d.models import build_model  # isort: skip

pytestmark = pytest.mark.integration

OFFICIAL = """
    plugin = True
    plugin_dir = 'projects/mmdet3d_plugin/'
    point_cloud_range = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]
    voxel_size = [0.2, 0.2, 8]
    img_norm_cfg = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)
    class_names = [
        'car', 'truck', 'construction_vehicle', 'bus', 'trailer', 'barrier',
        'motorcycle', 'bicycle', 'pedestrian', 'traffic_cone']
    input_modality = dict(
        use_lidar=False, use_camera=True, use_radar=False, use_map=False, use_external=True)
    _dim_, _pos_dim_, _ffn_dim_, _num_levels_, bev_h_, bev_w_ = 256, 128, 512, 4, 20, 20
    queue_length = 2
    model = dict(
        type='BEVFormer', use_grid_mask=True, video_test_mode=True,
        img_backbone=dict(
            type='ResNet', depth=101, num_stages=4, out_indices=(1, 2, 3), frozen_stages=1,
            norm_cfg=dict(type='BN2d', requires_grad=False), norm_eval=True, style='caffe',
            dcn=dict(type='DCNv2', deform_groups=1, fallback_on_stride=False),
            stage_with_dcn=(False, False, True, True)),
        img_neck=dict(
            type='FPN', in_channels=[512, 1024, 2048], out_channels=_dim_, start_level=0,
            add_extra_convs='on_output', num_outs=4, relu_before_extra_convs=True),
        pts_bbox_head=dict(
            type='BEVFormerHead', bev_h=bev_h_, bev_w=bev_w_, num_query=900, num_classes=10,
            in_channels=_dim_, sync_cls_avg_factor=True, with_box_refine=True, as_two_stage=False,
            transformer=dict(
                type='PerceptionTransformer', rotate_prev_bev=True, use_shift=True,
                use_can_bus=True, embed_dims=_dim_,
                encoder=dict(
                    type='BEVFormerEncoder', num_layers=1, pc_range=point_cloud_range,
                    num_points_in_pillar=4, return_intermediate=False,
                    transformerlayers=dict(
                        type='BEVFormerLayer',
                        attn_cfgs=[
                            dict(type='TemporalSelfAttention', embed_dims=_dim_, num_levels=1),
                            dict(type='SpatialCrossAttention', pc_range=point_cloud_range,
                                 deformable_attention=dict(
                                     type='MSDeformableAttention3D', embed_dims=_dim_,
                                     num_points=8, num_levels=_num_levels_),
                                 embed_dims=_dim_)],
                        feedforward_channels=_ffn_dim_, ffn_dropout=0.1,
                        operation_order=(
                            'self_attn', 'norm', 'cross_attn', 'norm', 'ffn', 'norm'))),
                decoder=dict(
                    type='DetectionTransformerDecoder', num_layers=2, return_intermediate=True,
                    transformerlayers=dict(
                        type='DetrTransformerDecoderLayer',
                        attn_cfgs=[
                            dict(type='MultiheadAttention', embed_dims=_dim_, num_heads=8,
                                 dropout=0.1),
                            dict(type='CustomMSDeformableAttention', embed_dims=_dim_,
                                 num_levels=1)],
                        feedforward_channels=_ffn_dim_, ffn_dropout=0.1,
                        operation_order=(
                            'self_attn', 'norm', 'cross_attn', 'norm', 'ffn', 'norm')))),
            bbox_coder=dict(
                type='NMSFreeCoder', post_center_range=[-61.2, -61.2, -10.0, 61.2, 61.2, 10.0],
                pc_range=point_cloud_range, max_num=300, voxel_size=voxel_size, num_classes=10),
            positional_encoding=dict(
                type='LearnedPositionalEncoding', num_feats=_pos_dim_, row_num_embed=bev_h_,
                col_num_embed=bev_w_),
            loss_cls=dict(
                type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=2.0),
            loss_bbox=dict(type='L1Loss', loss_weight=0.25),
            loss_iou=dict(type='GIoULoss', loss_weight=0.0)),
        train_cfg=dict(pts=dict(
            grid_size=[512, 512, 1], voxel_size=voxel_size, point_cloud_range=point_cloud_range,
            out_size_factor=4,
            assigner=dict(
                type='HungarianAssigner3D', cls_cost=dict(type='FocalLossCost', weight=2.0),
                reg_cost=dict(type='BBox3DL1Cost', weight=0.25),
                iou_cost=dict(type='IoUCost', weight=0.0), pc_range=point_cloud_range))))
    dataset_type = 'CustomNuScenesDataset'
    data_root = 'data/nuscenes/'
    file_client_args = dict(backend='disk')
    train_pipeline = [
        dict(type='LoadMultiViewImageFromFiles', to_float32=True),
        dict(type='PhotoMetricDistortionMultiViewImage'),
        dict(type='LoadAnnotations3D', with_bbox_3d=True, with_label_3d=True,
             with_attr_label=False),
        dict(type='ObjectRangeFilter', point_cloud_range=point_cloud_range),
        dict(type='ObjectNameFilter', classes=class_names),
        dict(type='NormalizeMultiviewImage', **img_norm_cfg),
        dict(type='RandomScaleImageMultiViewImage', scales=[0.25]),
        dict(type='PadMultiViewImage', size_divisor=32),
        dict(type='DefaultFormatBundle3D', class_names=class_names),
        dict(type='CustomCollect3D', keys=['gt_bboxes_3d', 'gt_labels_3d', 'img'])]
    test_pipeline = [
        dict(type='LoadMultiViewImageFromFiles', to_float32=True),
        dict(type='NormalizeMultiviewImage', **img_norm_cfg),
        dict(type='MultiScaleFlipAug3D', img_scale=(1600, 900), pts_scale_ratio=1, flip=False,
             transforms=[
                 dict(type='RandomScaleImageMultiViewImage', scales=[0.25]),
                 dict(type='PadMultiViewImage', size_divisor=32),
                 dict(type='DefaultFormatBundle3D', class_names=class_names, with_label=False),
                 dict(type='CustomCollect3D', keys=['img'])])]
    data = dict(
        samples_per_gpu=1, workers_per_gpu=4,
        train=dict(
            type=dataset_type, data_root=data_root,
            ann_file=data_root + 'nuscenes_infos_temporal_train.pkl', pipeline=train_pipeline,
            classes=class_names, modality=input_modality, test_mode=False, use_valid_flag=True,
            bev_size=(bev_h_, bev_w_), queue_length=queue_length, box_type_3d='LiDAR'),
        val=dict(
            type=dataset_type, data_root=data_root,
            ann_file=data_root + 'nuscenes_infos_temporal_val.pkl', pipeline=test_pipeline,
            bev_size=(bev_h_, bev_w_), classes=class_names, modality=input_modality,
            samples_per_gpu=1),
        test=dict(
            type=dataset_type, data_root=data_root,
            ann_file=data_root + 'nuscenes_infos_temporal_val.pkl', pipeline=test_pipeline,
            bev_size=(bev_h_, bev_w_), classes=class_names, modality=input_modality),
        shuffler_sampler=dict(type='DistributedGroupSampler'),
        nonshuffler_sampler=dict(type='DistributedSampler'))
    optimizer = dict(
        type='AdamW', lr=2e-4,
        paramwise_cfg=dict(custom_keys={'img_backbone': dict(lr_mult=0.1)}), weight_decay=0.01)
    optimizer_config = dict(grad_clip=dict(max_norm=35, norm_type=2))
    lr_config = dict(
        policy='CosineAnnealing', warmup='linear', warmup_iters=500, warmup_ratio=1.0 / 3,
        min_lr_ratio=1e-3)
    total_epochs = 24
    evaluation = dict(interval=1, pipeline=test_pipeline)
    runner = dict(type='EpochBasedRunner', max_epochs=total_epochs)
    log_config = dict(
        interval=50, hooks=[dict(type='TextLoggerHook'), dict(type='TensorboardLoggerHook')])
    checkpoint_config = dict(interval=1)
    dist_params = dict(backend='nccl')
    log_level = 'INFO'
    load_from = None
    resume_from = None
    workflow = [('train', 1)]
"""


@pytest.fixture(scope="module", params=["plugin_dir", "custom_imports"])
def official_config(request, tmp_path_factory):
    text = textwrap.dedent(OFFICIAL)
    if request.param == "custom_imports":
        text = text.replace("plugin = True", "")
        text += "custom_imports = dict(imports=['projects.bevformer.plugin'])\n"
    path = tmp_path_factory.mktemp("official") / "bevformer_base.py"
    path.write_text(text)
    return path


def test_it_trains_and_evaluates(official_config, synthetic_infos, tmp_path):
    options = {**synthetic_infos.options, "model.pts_bbox_head.num_query": 300}
    run(
        "tools/train.py", official_config, "--work-dir", tmp_path, "--seed", 0, "--max-iters", 1,
        "--no-validate", *as_flags(options),
    )  # fmt: skip
    run(
        "tools/eval.py", official_config, tmp_path / "iter_1.pth", "--work-dir", tmp_path,
        "--eval", "bbox", *as_flags(options),
    )  # fmt: skip
    assert "nd_score" in json.loads((tmp_path / "metrics_summary.json").read_text())


def test_its_variables_can_be_overridden(official_config):
    options = {"queue_length": 5, "bev_h_": 30, "_ffn_dim_": 64, "samples_per_gpu": 2, "lr": 1e-4}
    cfg = load_config(official_config, {**options, "img_norm_cfg.to_rgb": True})
    head = cfg.model.pts_bbox_head
    assert (head.bev_h, head.positional_encoding.row_num_embed, head.bev_w) == (30, 30, 20)
    assert head.transformer.encoder.transformerlayers.feedforward_channels == 64
    assert (cfg.data.train.queue_length, cfg.data.samples_per_gpu, cfg.optimizer.lr) == (5, 2, 1e-4)
    assert cfg.data.train.pipeline[5].to_rgb
    assert cfg.data.test.pipeline[1].to_rgb


@pytest.mark.parametrize(
    ("compiled", "layer"), [(False, TorchvisionDCNv2), (True, ModulatedDeformConv2dPack)]
)
def test_its_dcnv2_runs_without_compiled_cuda(official_config, monkeypatch, compiled, layer):
    cfg = load_config(official_config)
    monkeypatch.setattr(compat, "mmcv_has_cuda_operators", lambda: compiled)
    detector = build_model(cfg.model)
    layers = {
        type(detector.img_backbone.layer3[0].conv2),
        type(detector.img_backbone.layer4[2].conv2),
    }
    assert layers == {layer}
    assert isinstance(detector.img_backbone.layer2[0].conv2, torch.nn.Conv2d)

"""A BEVFormer v2 small enough to run in milliseconds, and inputs for it."""

import math

import numpy as np
import torch
from mmcv import ConfigDict
from tiny_bevformer import (
    BEV_HW,
    CAMERAS,
    CHANNELS,
    CLASSES,
    IMAGE_HW,
    decoder_config,
    encoder_config,
    ground_truth,
    head_config,
    images,
    make_meta,
    shake_weights,
    train_config,
)

from projects.bevformer import plugin  # noqa: F401

from mmdet3d.models import build_model  # isort: skip

MONO_STRIDES = [8, 16]
SIZES_WLH = [[1.9, 4.6, 1.7], [0.7, 0.7, 1.7], [2.5, 7.0, 2.8]]


def mono_head_config(**fcos3d_loss):
    """Config of the perspective head; the options are those of its 3D losses."""
    return dict(
        type="NuscenesDD3D",
        num_classes=CLASSES,
        in_channels=CHANNELS,
        strides=MONO_STRIDES,
        fcos2d_cfg=dict(num_cls_convs=1, num_box_convs=1),
        fcos2d_loss_cfg=dict(),
        fcos3d_cfg=dict(
            num_convs=1, mean_depth_per_level=[20.0, 10.0], std_depth_per_level=[9.0, 5.0]
        ),
        fcos3d_loss_cfg=dict(canon_box_sizes=SIZES_WLH, **fcos3d_loss),
        target_assign_cfg=dict(sizes_of_interest=((-1, 16), (16, 1e8))),
        nusc_loss_weight=dict(attr_loss_weight=0.2, speed_loss_weight=0.2),
    )


def mono_objects(sample=0, number=2):
    """Objects of one image, in front of a level camera, with boxes of 2D around their centres."""
    rng = np.random.RandomState(70 + sample)
    height, width = IMAGE_HW
    intrinsics = np.array([[28.0, 0, width / 2], [0, 28.0, height / 2], [0, 0, 1]])
    labels = rng.randint(0, CLASSES, number)
    center = np.column_stack(
        [rng.uniform(-4, 4, number), rng.uniform(-1, 1, number), rng.uniform(6, 12, number)]
    )
    uv = center @ intrinsics.T
    uv = uv[:, :2] / uv[:, 2:]
    upright = np.array(
        [[1.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]]
    )  # its height is up, its length right
    yaws = rng.uniform(-math.pi / 3, math.pi / 3, number)
    turns = np.array(
        [[[math.cos(a), 0, math.sin(a)], [0, 1, 0], [-math.sin(a), 0, math.cos(a)]] for a in yaws]
    )
    return {
        "intrinsics": intrinsics.astype(np.float32),
        "bbox": np.concatenate((uv - (9, 7), uv + (9, 7)), axis=1).astype(np.float32),
        "label": labels,
        "rotation": (turns.reshape(-1, 3, 3) @ upright).astype(np.float32),
        "center": center.astype(np.float32),
        "size_wlh": (np.array(SIZES_WLH)[labels] * 1.1).reshape(-1, 3).astype(np.float32),
        "attribute": rng.randint(0, 3, number),
        "speed": rng.uniform(0, 5, number).astype(np.float32),
    }


def build_detector_v2(frames=(0,), seed=0, mono=True, group_detr=1, **options):
    """A detector with random weights, in training mode."""
    transformer = dict(
        type="PerceptionTransformerV2",
        embed_dims=CHANNELS,
        num_cams=CAMERAS,
        frames=frames,
        num_fusion=2,
        encoder=encoder_config(),
        decoder=decoder_config(),
    )
    config = ConfigDict(
        type="BEVFormerV2",
        frames=frames,
        num_levels=2,
        num_mono_levels=2,
        img_backbone=dict(
            type="ResNet",
            depth=18,
            base_channels=8,
            num_stages=3,
            strides=(1, 2, 2),
            dilations=(1, 1, 1),
            out_indices=(1, 2),
            norm_cfg=dict(type="SyncBN"),
            norm_eval=False,
        ),
        img_neck=dict(type="FPN", in_channels=[16, 32], out_channels=CHANNELS, num_outs=3),
        pts_bbox_head=head_config(
            type="BEVFormerHead_GroupDETR", transformer=transformer, group_detr=group_detr
        ),
        fcos3d_bbox_head=mono_head_config() if mono else None,
        **options,
    )
    torch.manual_seed(seed)
    model = build_model(config, train_cfg=dict(pts=train_config()))
    model.init_weights()
    shake_weights(model.pts_bbox_head, seed)
    return model.train()


def frame_metas(sample, frames, missing=()):
    """{offset: meta} of one sample."""
    return {
        offset: dict(
            make_meta(sample, 5 + offset),
            frame_exists=offset not in missing,
            image_flip=False,
            bev_augmentation=None,
        )
        for offset in frames
    }


def frame_images(sample, frames):
    """(F, N, 3, H, W)."""
    return torch.stack([images(sample, 5 + offset) for offset in frames])


def training_batch_v2(samples=(0,), frames=(0,), missing=((), ())):
    """Arguments of `forward_train`; `missing` are offsets for sample 0, 1, ..."""
    truths = [ground_truth(sample) for sample in samples]
    metas = [frame_metas(sample, frames, missing[sample]) for sample in samples]
    for sample, queue in zip(samples, metas):
        queue[0]["mono_objects"] = {camera: mono_objects(sample + camera) for camera in range(2)}
    return dict(
        img=torch.stack([frame_images(sample, frames) for sample in samples]),
        img_metas=metas,
        gt_bboxes_3d=[boxes for boxes, _ in truths],
        gt_labels_3d=[labels for _, labels in truths],
    )


def inference_batch_v2(samples=(0,), frames=(0,), missing=((), ())):
    """Arguments of `forward_test`."""
    queues = [frame_metas(sample, frames, missing[sample]) for sample in samples]
    return dict(
        img=[torch.stack([frame_images(sample, frames) for sample in samples])],
        img_metas=[[dict(queue[0], frames=queue) for queue in queues]],
    )


BEV_SIZE = BEV_HW[0] * BEV_HW[1]

"""A BEVFormer small enough to run in milliseconds, and inputs for it.

Grid and images are not square, and the range is not the same in x and y, so that swapped axes show.
Sample b of a batch depends only on b: a batch of two holds the same samples as two batches of one.
"""

import math

import numpy as np
import torch
from mmcv import ConfigDict

from projects.bevformer import plugin  # noqa: F401
from projects.bevformer.geometry.can_bus import CAN_POSITION, CAN_SIZE, CAN_YAW_DEG, CAN_YAW_RAD

from mmdet3d.core.bbox import LiDARInstance3DBoxes  # isort: skip
from mmdet3d.models import build_model  # isort: skip

PC_RANGE = [-8.0, -6.0, -2.0, 8.0, 6.0, 2.0]
BEV_HW = (4, 5)
IMAGE_HW = (32, 64)
CAMERAS = 2
CHANNELS = 16
QUERIES = 7
CLASSES = 3
DECODER_LAYERS = 2


def lidar2img(yaw_deg, image_hw=IMAGE_HW, focal=28.0):
    """(4, 4) matrix of a level camera at the lidar; yaw counter-clockwise from straight ahead."""
    yaw = math.radians(yaw_deg)
    forward = np.array([-math.sin(yaw), math.cos(yaw), 0.0])
    right = np.array([math.cos(yaw), math.sin(yaw), 0.0])
    down = np.array([0.0, 0.0, -1.0])
    height, width = image_hw
    matrix = np.eye(4)
    matrix[0, :3] = focal * right + width / 2 * forward
    matrix[1, :3] = focal * down + height / 2 * forward
    matrix[2, :3] = forward
    return matrix


def encoder_config(num_layers=2, num_levels=2, dropout=0.0):
    """Config of the encoder."""
    return dict(
        type="BEVFormerEncoder",
        num_layers=num_layers,
        pc_range=PC_RANGE,
        num_points_in_pillar=2,
        transformerlayers=dict(
            type="BEVFormerLayer",
            attn_cfgs=[
                dict(
                    type="TemporalSelfAttention",
                    embed_dims=CHANNELS,
                    num_heads=2,
                    num_points=2,
                    dropout=dropout,
                ),
                dict(
                    type="SpatialCrossAttention",
                    embed_dims=CHANNELS,
                    num_cams=CAMERAS,
                    dropout=dropout,
                    deformable_attention=dict(
                        type="MSDeformableAttention3D",
                        embed_dims=CHANNELS,
                        num_heads=2,
                        num_points=4,
                        num_levels=num_levels,
                    ),
                ),
            ],
            feedforward_channels=24,
            ffn_dropout=dropout,
        ),
    )


def decoder_config(dropout=0.0):
    """Config of the decoder."""
    return dict(
        type="DetectionTransformerDecoder",
        num_layers=DECODER_LAYERS,
        transformerlayers=dict(
            type="BEVFormerDecoderLayer",
            attn_cfgs=[
                dict(type="MultiheadAttention", embed_dims=CHANNELS, num_heads=2, dropout=dropout),
                dict(
                    type="CustomMSDeformableAttention",
                    embed_dims=CHANNELS,
                    num_heads=2,
                    num_points=2,
                    dropout=dropout,
                ),
            ],
            feedforward_channels=24,
            ffn_dropout=dropout,
        ),
    )


def transformer_config(dropout=0.0, **options):
    """Config of the perception transformer; `options` are its own arguments."""
    return dict(
        type="PerceptionTransformer",
        embed_dims=CHANNELS,
        num_cams=CAMERAS,
        encoder=encoder_config(dropout=dropout),
        decoder=decoder_config(dropout),
        **options,
    )


def head_config(dropout=0.0, **options):
    """Config of the head; `options` are its own arguments."""
    config = dict(
        type="BEVFormerHead",
        bev_h=BEV_HW[0],
        bev_w=BEV_HW[1],
        num_query=QUERIES,
        num_classes=CLASSES,
        in_channels=CHANNELS,
        with_box_refine=True,
        transformer=transformer_config(dropout),
        bbox_coder=dict(type="NMSFreeCoder", pc_range=PC_RANGE, max_num=10, num_classes=CLASSES),
        positional_encoding=dict(
            type="LearnedPositionalEncoding",
            num_feats=CHANNELS // 2,
            row_num_embed=BEV_HW[0],
            col_num_embed=BEV_HW[1],
        ),
        loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=2.0),
        loss_bbox=dict(type="L1Loss", loss_weight=0.25),
    )
    config.update(options)
    return config


def train_config():
    """The matcher, where the head wants it."""
    return dict(
        assigner=dict(
            type="HungarianAssigner3D",
            cls_cost=dict(type="FocalLossCost", weight=2.0),
            reg_cost=dict(type="BBox3DL1Cost", weight=0.25),
        )
    )


def build_detector(seed=0, dropout=0.0, with_cp=False, head=None, **options):
    """A detector with random weights, in training mode.

    Args:
        seed: of the weights.
        dropout: everywhere in the transformer.
        with_cp: checkpoints in backbone and encoder.
        head: options of the head.
        options: of the detector.
    """
    parts = dict(
        type="BEVFormer",
        img_backbone=dict(
            type="ResNet",
            depth=18,
            base_channels=8,
            out_indices=(2, 3),
            frozen_stages=1,
            norm_cfg=dict(type="BN", requires_grad=False),
            norm_eval=True,
            with_cp=with_cp,
        ),
        img_neck=dict(type="FPN", in_channels=[32, 64], out_channels=CHANNELS, num_outs=2),
        pts_bbox_head=head_config(dropout, **(head or {})),
        video_test_mode=True,
    )
    config = ConfigDict(parts, **options)
    config.pts_bbox_head.transformer.encoder.with_cp = with_cp
    torch.manual_seed(seed)
    model = build_model(config, train_cfg=dict(pts=train_config()))
    model.init_weights()
    shake_weights(model.pts_bbox_head, seed)
    return model.train()


def shake_weights(module, seed=0):
    """Add noise to every weight, so that none is zero or like its neighbour; edits `module`."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "code_weights" not in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)


def image_features(sample, num_levels=2):
    """L tensors (1, N, C, h, w)."""
    generator = torch.Generator().manual_seed(100 + sample)
    return [
        torch.randn(1, CAMERAS, CHANNELS, 4 // 2**level, 8 // 2**level, generator=generator)
        for level in range(num_levels)
    ]


def make_meta(sample=0, frame=0, prev_bev_exists=True, scene_token=None):
    """A meta; cameras, poses and visibility differ from sample to sample and frame to frame."""
    rng = np.random.RandomState(10 * sample + frame)
    can_bus = rng.normal(0, 1, CAN_SIZE)
    can_bus[CAN_POSITION] = rng.uniform(-2, 2, 3)
    can_bus[CAN_YAW_RAD] = rng.uniform(0, 2 * math.pi)
    can_bus[CAN_YAW_DEG] = rng.choice([-1, 1]) * rng.uniform(25, 60)
    padded = [(*IMAGE_HW, 3)] * CAMERAS
    return dict(
        can_bus=can_bus,
        lidar2img=[lidar2img(20 * sample + 3 * frame), lidar2img(180 - 50 * sample)],
        img_shape=padded,
        pad_shape=padded,
        ori_shape=padded,
        scene_token=scene_token or f"scene{sample}",
        sample_idx=f"sample{sample}frame{frame}",
        prev_bev_exists=prev_bev_exists,
        box_type_3d=LiDARInstance3DBoxes,
    )


def images(sample=0, frame=0):
    """(N, 3, H, W)."""
    generator = torch.Generator().manual_seed(1000 + 10 * sample + frame)
    return torch.randn(CAMERAS, 3, *IMAGE_HW, generator=generator)


def ground_truth(sample=0, number=3):
    """LiDARInstance3DBoxes of `number` boxes with velocity, and their labels."""
    rng = np.random.RandomState(50 + sample)
    boxes = np.column_stack(
        [
            rng.uniform(-7, 7, number),
            rng.uniform(-5, 5, number),
            rng.uniform(-2, 0, number),
            rng.uniform(0.5, 4.0, (number, 3)),
            rng.uniform(-math.pi, math.pi, number),
            rng.normal(0, 2, (number, 2)),
        ]
    )
    labels = torch.from_numpy(rng.randint(0, CLASSES, number)).long()
    return LiDARInstance3DBoxes(torch.from_numpy(boxes).float(), box_dim=9), labels


def training_batch(samples=(0,), frames=3, scene_starts=(), boxes=(3, 2)):
    """Arguments of `forward_train`.

    Args:
        samples: which samples make the batch.
        frames: T.
        scene_starts: (sample, frame) pairs that have no previous frame, besides every frame 0.
        boxes: ground truths of sample 0, 1, ...
    """
    truths = [ground_truth(sample, boxes[sample]) for sample in samples]
    return dict(
        img=torch.stack(
            [torch.stack([images(sample, t) for t in range(frames)]) for sample in samples]
        ),
        img_metas=[
            {
                t: make_meta(sample, t, t > 0 and (sample, t) not in scene_starts)
                for t in range(frames)
            }
            for sample in samples
        ],
        gt_bboxes_3d=[boxes for boxes, _ in truths],
        gt_labels_3d=[labels for _, labels in truths],
    )


def inference_batch(samples=(0,), frame=0, scene_tokens=None):
    """Arguments of `forward_test`; the poses are taken as absolute."""
    tokens = scene_tokens or [None] * len(samples)
    return dict(
        img=[torch.stack([images(sample, frame) for sample in samples])],
        img_metas=[[make_meta(s, frame, scene_token=token) for s, token in zip(samples, tokens)]],
    )


def losses_of(detector, item):
    """Losses of one item of a training set."""
    return detector(
        img=item["img"].data[None],
        img_metas=[item["img_metas"].data],
        gt_bboxes_3d=[item["gt_bboxes_3d"].data],
        gt_labels_3d=[item["gt_labels_3d"].data],
    )

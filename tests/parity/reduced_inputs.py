"""The published networks on a small grid and small images, and inputs for them.

Layers, levels, heads, points, quirks: all as in the config. Only the grid, the images and the number
of object queries are smaller, so that plain loops can follow. Everything is drawn from seeds; sample
b of a batch depends only on b.
"""

import math
from pathlib import Path

import numpy as np
import torch
from parity_inputs import camera_matrix, parity_weights

from projects.bevformer import plugin  # noqa: F401
from projects.bevformer.engine.config import load_config
from projects.bevformer.geometry.can_bus import CAN_SIZE
from projects.bevformer.nuscenes.spec import CAMERAS

from mmdet3d.core.bbox import LiDARInstance3DBoxes  # isort: skip
from mmdet3d.models import build_model  # isort: skip

CONFIGS = Path(__file__).parents[2] / "configs" / "bevformer"
SIZES = ("tiny", "small", "base")
BEV_HW = (10, 12)
OBJECTS = 40
IMAGE_HW = (72, 128)  # 0.16 of the parity case's
PADDED_HW = (96, 128)


def reduced_config(size):
    """Config of a published network with the small grid."""
    cfg = load_config(CONFIGS / f"bevformer_{size}.py")
    head = cfg.model.pts_bbox_head
    head.bev_h, head.bev_w = BEV_HW
    head.positional_encoding.row_num_embed, head.positional_encoding.col_num_embed = BEV_HW
    head.num_query = OBJECTS
    return cfg


def reduced_model(size):
    """The network in training mode, random weights everywhere, nothing random in its forward."""
    cfg = reduced_config(size)
    model = build_model(cfg.model, train_cfg=cfg.get("train_cfg"), test_cfg=cfg.get("test_cfg"))
    model.load_state_dict(parity_weights(model.state_dict()), strict=True)
    model.use_grid_mask = False
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(module, torch.nn.MultiheadAttention):
            module.dropout = 0.0
    return model.train()


def absolute_meta(sample, frame, scene=None):
    """A meta with an absolute pose, as the test stream gets it.

    Cameras, poses and visibility differ from sample to sample and from frame to frame.
    """
    rng = np.random.RandomState(100 + 10 * sample + frame)
    scale = np.diag([IMAGE_HW[1] / 800, IMAGE_HW[0] / 450, 1.0, 1.0])
    heading_deg = (350.0 + 40 * sample + 2.1 * frame * (-1) ** sample) % 360
    can_bus = rng.normal(0, 1, CAN_SIZE)
    can_bus[:3] = np.array([300.0, 900.0, 0.0]) + rng.uniform(-8, 8, 3)
    can_bus[16] = math.radians(heading_deg)
    can_bus[17] = heading_deg
    padded = [(*PADDED_HW, 3)] * len(CAMERAS)
    return dict(
        lidar2img=[scale @ camera_matrix(camera, rng.uniform(-6, 6)) for camera in CAMERAS],
        can_bus=can_bus,
        img_shape=padded,
        pad_shape=padded,
        ori_shape=[(*IMAGE_HW, 3)] * len(CAMERAS),
        scene_token=scene or f"scene{sample}",
        sample_idx=f"sample{sample}frame{frame}",
        box_type_3d=LiDARInstance3DBoxes,
    )


def images(sample, frame):
    """(6, 3, 96, 128) float32: noise in blocks of 8 x 8 pixels."""
    rng = np.random.RandomState(500 + 10 * sample + frame)
    height, width = PADDED_HW
    blocks = rng.normal(0, 1, (len(CAMERAS), 3, height // 8, width // 8)).astype(np.float32)
    return torch.from_numpy(blocks.repeat(8, axis=-2).repeat(8, axis=-1))


def ground_truth(sample, number):
    """(G, 9) boxes of mmdet3d >= 1.0rc0, z of the bottom, and their labels.

    The velocity of the first of several boxes is unknown.
    """
    rng = np.random.RandomState(900 + sample)
    boxes = np.column_stack(
        [
            rng.uniform(-45, 45, (number, 2)),
            rng.uniform(-2.5, -1.0, number),
            rng.uniform(0.6, 8.0, number),
            rng.uniform(0.5, 2.5, number),
            rng.uniform(0.8, 3.0, number),
            rng.uniform(-3.1, 3.1, number),
            rng.normal(0, 3, (number, 2)),
        ]
    )
    if number > 1:
        boxes[0, 7:] = float("nan")
    labels = torch.from_numpy(rng.randint(0, 10, number)).long()
    return torch.from_numpy(boxes).float(), labels


def ground_truth_arguments(truths):
    """The detector's arguments of a list of `ground_truth` pairs."""
    return dict(
        gt_bboxes_3d=[LiDARInstance3DBoxes(boxes, box_dim=9) for boxes, _ in truths],
        gt_labels_3d=[labels for _, labels in truths],
    )

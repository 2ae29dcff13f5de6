"""Weights, images, metas and boxes of the parity case (BEVFormer-tiny, one sample, two frames).

Nothing is stored: every array is drawn from a generator that is seeded by a case number and a
name, so another implementation that follows the same rules sees the same numbers. The order of the
draws is part of the case: `expected.npz` (see README.md) holds what the original computed from
exactly these.
"""

import zlib

import numpy as np
import torch

from projects.bevformer.geometry.can_bus import (
    CAN_ORIENTATION,
    CAN_POSITION,
    CAN_SIZE,
    CAN_YAW_DEG,
    CAN_YAW_RAD,
)
from projects.bevformer.nuscenes.spec import CAMERAS

SEED = 11
IMAGE_HW = (450, 800)
PADDED_HW = (480, 800)
NUM_BOXES = 17

# Counter-clockwise from straight ahead, in the order of CAMERAS.
_CAMERA_YAW_DEG = dict(zip(CAMERAS, (0.0, -55.0, 55.0, 180.0, 110.0, -110.0)))
_EMBEDDINGS = ("embedding", "embeds", "row_embed", "col_embed")


def _generator(name):
    """numpy's old generator, whose stream is the same in every numpy version."""
    return np.random.RandomState((zlib.crc32(name.encode()) ^ (SEED * 2654435761)) % 2**32)


def parity_weights(state_dict):
    """A state dict with the given keys and shapes and the case's values.

    Args:
        state_dict: of the model; not edited.

    Returns:
        dict of new tensors; counters and the loss's `code_weights` keep their values.
    """
    return {key: _weight(key, tensor) for key, tensor in state_dict.items()}


def _weight(key, tensor):
    if key.endswith(("num_batches_tracked", "code_weights")):
        return tensor.clone()
    generator, shape = _generator(key), tuple(tensor.shape)
    if key.endswith("running_var"):
        values = generator.uniform(0.5, 1.5, shape)
    elif key.endswith("running_mean"):
        values = generator.normal(0, 0.05, shape)
    elif key.endswith("sampling_offsets.bias"):
        values = generator.uniform(-4, 4, shape)
    elif len(shape) <= 1:
        values = generator.normal(0, 0.05, shape)
        if key.endswith("weight"):  # scales of norm layers
            values = values + 1.0
    else:
        fan_in = int(np.prod(shape[1:]))
        values = generator.normal(0, 1.0, shape) * (0.7 / np.sqrt(fan_in))
        if any(part in key for part in _EMBEDDINGS):
            values = generator.normal(0, 0.5, shape)  # the second draw of the stream
    return torch.from_numpy(values.astype(np.float32)).to(tensor.dtype).reshape(shape)


def camera_matrix(camera, jitter):
    """(4, 4) matrix of a level pinhole camera 1.2 m from the lidar along its optical axis."""
    height, width = IMAGE_HW
    heading = np.deg2rad(_CAMERA_YAW_DEG[camera] + jitter * 2.0) + np.pi / 2
    forward = np.array([np.cos(heading), np.sin(heading), 0.0])
    right = np.array([np.sin(heading), -np.cos(heading), 0.0])
    down = np.array([0.0, 0.0, -1.0])
    lidar2cam = np.eye(4)
    lidar2cam[:3, :3] = np.stack([right, down, forward])
    position = forward * 1.2 + np.array([0, 0, -0.3 + 0.1 * jitter])
    lidar2cam[:3, 3] = -lidar2cam[:3, :3] @ position
    focal = width * 0.8 * (0.6 if camera == "CAM_BACK" else 1.0)
    cam2img = np.eye(4)
    cam2img[0, 0] = cam2img[1, 1] = focal
    cam2img[:2, 2] = width / 2, height / 2
    return cam2img @ lidar2cam


def parity_metas(frame, box_type_3d):
    """The one meta of a frame, `can_bus` relative to the frame before.

    Args:
        frame: 0 or 1.
        box_type_3d: class of the boxes.

    Returns:
        list of one meta.
    """
    generator = _generator(f"meta{frame}.0")
    lidar2img = [camera_matrix(camera, generator.uniform(-1, 1)) for camera in CAMERAS]
    can_bus = np.zeros(CAN_SIZE)
    can_bus[CAN_POSITION] = generator.uniform(-3, 3, 3)
    can_bus[CAN_ORIENTATION] = [np.cos(0.3), 0, 0, np.sin(0.3)]
    can_bus[CAN_ORIENTATION.stop : CAN_YAW_RAD] = generator.normal(0, 1, 9)
    can_bus[CAN_YAW_RAD] = np.deg2rad(34.0)
    can_bus[CAN_YAW_DEG] = generator.uniform(-6, 6)
    padded = [(*PADDED_HW, 3)] * len(CAMERAS)
    return [
        dict(
            lidar2img=lidar2img,
            can_bus=can_bus,
            img_shape=padded,
            pad_shape=padded,
            ori_shape=[(*IMAGE_HW, 3)] * len(CAMERAS),
            scene_token="parity",
            sample_idx=f"frame{frame}",
            prev_bev_exists=True,
            box_type_3d=box_type_3d,
        )
    ]


def parity_images(frame):
    """(1, 6, 3, 480, 800) float32: noise in blocks of 8 x 8 pixels."""
    height, width = PADDED_HW
    blocks = _generator(f"img{frame}").normal(0, 1, (1, len(CAMERAS), 3, height // 8, width // 8))
    return torch.from_numpy(blocks.astype(np.float32).repeat(8, axis=-2).repeat(8, axis=-1))


def parity_boxes():
    """Ground truth of frame 1.

    Returns:
        (17, 9) float32 boxes, old convention (geometry.boxes), z of the bottom, with velocity;
        (17,) long labels.
    """
    generator = _generator("boxes")
    columns = [
        generator.uniform(-45, 45, (NUM_BOXES, 2)),  # x, y
        generator.uniform(-2.5, -1.0, NUM_BOXES),  # z
        generator.uniform(0.5, 2.5, NUM_BOXES),  # w
        generator.uniform(0.6, 8.0, NUM_BOXES),  # l
        generator.uniform(0.8, 3.0, NUM_BOXES),  # h
        generator.uniform(-3.1, 3.1, NUM_BOXES),  # yaw
        generator.normal(0, 3, (NUM_BOXES, 2)),  # velocity
    ]
    boxes = np.column_stack(columns).astype(np.float32)
    labels = generator.randint(0, 10, NUM_BOXES)
    return torch.from_numpy(boxes), torch.from_numpy(labels).long()

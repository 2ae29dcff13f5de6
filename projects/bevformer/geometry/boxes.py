"""Box conventions, the box code of the network, and the conversions between them.

A silent source of errors: mmdet3d changed its box convention between 0.17, which the official
weights use, and 1.0.0rc0, which the installed version uses.

    "wlh_negyaw"  mmdet3d <= 0.17     [x, y, z, w, l, h, yaw_old, ...]
    "lwh_yaw"     mmdet3d >= 1.0rc0   [x, y, z, l, w, h, yaw, ...],   yaw = -yaw_old - pi/2

The network uses the old convention; everything outside it uses the new one. Targets are converted
once on the way in, decoded boxes once on the way out. See docs/coordinate_frames.md.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

BOX_CONVENTION_OLD = "wlh_negyaw"
BOX_CONVENTION_NEW = "lwh_yaw"

# Columns of the network's box code. Centres in metres (lidar frame), sizes as logarithms of metres,
# sine and cosine of the old-convention yaw, velocities in m/s (lidar axes).
CX, CY, LOG_W, LOG_L, CZ, LOG_H, SIN, COS, VX, VY = range(10)
CODE_SIZE = 10

_Boxes = TypeVar("_Boxes", Tensor, "np.ndarray[Any, Any]")


def _swap_convention(boxes: _Boxes) -> _Boxes:
    if boxes.shape[-1] < 7:
        raise ValueError(
            "boxes must have at least 7 columns (x, y, z, 3 sizes, yaw), got shape "
            f"{tuple(boxes.shape)}"
        )
    swapped = boxes.clone() if isinstance(boxes, Tensor) else boxes.copy()
    swapped[..., 3] = boxes[..., 4]
    swapped[..., 4] = boxes[..., 3]
    swapped[..., 6] = -boxes[..., 6] - math.pi / 2
    return swapped


def old_to_new_boxes(boxes: _Boxes) -> _Boxes:
    """Convert mmdet3d <= 0.17 boxes to the mmdet3d >= 1.0rc0 convention.

    Args:
        boxes: (..., 7 or more) [x, y, z, w, l, h, yaw_old, ...], radians and metres.

    Returns:
        A new (..., same) [x, y, z, l, w, h, yaw, ...]; further columns unchanged.

    Raises:
        ValueError: fewer than 7 columns.
    """
    return _swap_convention(boxes)


def new_to_old_boxes(boxes: _Boxes) -> _Boxes:
    """Convert mmdet3d >= 1.0rc0 boxes to the mmdet3d <= 0.17 convention.

    The conversion is its own inverse; two names make the direction clear at the call.

    Args:
        boxes: (..., 7 or more) [x, y, z, l, w, h, yaw, ...], radians and metres.

    Returns:
        A new (..., same) [x, y, z, w, l, h, yaw_old, ...]; further columns unchanged.

    Raises:
        ValueError: fewer than 7 columns.
    """
    return _swap_convention(boxes)


def encode_boxes(boxes: Tensor) -> Tensor:
    """Encode boxes as the network regresses them.

    Args:
        boxes: (..., 9) old convention, gravity centre: x, y, z, w, l, h, yaw_old, vx, vy.

    Returns:
        (..., 10) box code, columns CX ... VY. A box of size zero gives -inf, an unknown (NaN)
        velocity stays NaN: the loss skips such rows.

    Source: DETR3D (arXiv 2110.06922), section 3.3; the column order is the official weights'.
    """
    x, y, z, width, length, height, yaw, vx, vy = boxes.unbind(dim=-1)
    return torch.stack(
        (x, y, width.log(), length.log(), z, height.log(), yaw.sin(), yaw.cos(), vx, vy), dim=-1
    )


def decode_boxes(code: Tensor) -> Tensor:
    """Inverse of `encode_boxes`.

    Args:
        code: (..., 10) box code, columns CX ... VY.

    Returns:
        (..., 9) old convention, gravity centre: x, y, z, w, l, h, yaw_old in (-pi, pi], vx, vy.
    """
    yaw = torch.atan2(code[..., SIN], code[..., COS])
    columns = (
        code[..., CX],
        code[..., CY],
        code[..., CZ],
        code[..., LOG_W].exp(),
        code[..., LOG_L].exp(),
        code[..., LOG_H].exp(),
        yaw,
        code[..., VX],
        code[..., VY],
    )
    return torch.stack(columns, dim=-1)

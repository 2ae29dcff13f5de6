"""3D boxes in a camera frame: rotation, projected centre, depth and size.

Shape legend: G boxes. The camera frame is x right, y down, z forward. In the frame of a box its
length lies along x, its width along y and its height along z.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from projects.bevformer.transfer import constant


def quaternion_to_matrix(quaternion: Tensor) -> Tensor:
    """Rotation matrices of quaternions of any non-zero length.

    Args:
        quaternion: (G, 4) w, x, y, z.

    Returns:
        (G, 3, 3), acts on column vectors.
    """
    w, x, y, z = (quaternion / quaternion.norm(dim=-1, keepdim=True).clamp(min=1e-7)).unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        (2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        (2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def unproject(points_uv: Tensor, inverse_intrinsics: Tensor) -> Tensor:
    """Rays through pixels, at depth 1.

    Args:
        points_uv: (G, 2) pixels.
        inverse_intrinsics: (G, 3, 3) inverted camera matrices; inverting them on a GPU would force
            a sync.

    Returns:
        (G, 3) camera frame; multiplied by a depth, the point at that depth.
    """
    homogeneous = torch.cat((points_uv, torch.ones_like(points_uv[:, :1])), dim=-1)
    # Sums instead of matrix products in this file: a product may run in TF32.
    return (inverse_intrinsics * homogeneous[:, None, :]).sum(dim=-1)


def viewing_rotation(rays: Tensor) -> Tensor:
    """Frame of an upright observer who looks along a ray.

    Args:
        rays: (G, 3) camera frame, any non-zero length, not straight up or down.

    Returns:
        (G, 3, 3) observer to camera: columns right, down, along the ray.

    Source: DD3D (arXiv 2108.06417), the allocentric orientation.
    """
    ahead = rays / rays.norm(dim=-1, keepdim=True)
    down = torch.zeros_like(ahead)
    down[:, 1] = 1.0
    down = down - ahead[:, 1:2] * ahead
    down = down / down.norm(dim=-1, keepdim=True)
    return torch.stack((torch.cross(down, ahead, dim=-1), down, ahead), dim=-1)


def compose(left: Tensor, right: Tensor) -> Tensor:
    """(G, 3, 3) x (G, 3, 3) -> (G, 3, 3) rotations; `right` is applied first."""
    return (left[..., :, :, None] * right[..., None, :, :]).sum(dim=-2)


def box_corners(rotation: Tensor, center: Tensor, size_wlh: Tensor) -> Tensor:
    """Corners of boxes.

    Args:
        rotation: (G, 3, 3) box to camera.
        center: (G, 3) metres, camera frame.
        size_wlh: (G, 3) width, length, height, metres.

    Returns:
        (G, 8, 3) metres, camera frame.
    """
    signs = constant(("signs of box corners", center.dtype), lambda: _signs(center.dtype), center)
    width, length, height = size_wlh.unbind(dim=-1)
    half_lwh = torch.stack((length, width, height), dim=-1) / 2
    offsets = signs * half_lwh[:, None, :]  # (G, 8, 3) box frame
    rotated = (rotation[:, None] * offsets[:, :, None, :]).sum(dim=-1)
    return rotated + center[:, None, :]


def _signs(dtype: torch.dtype) -> Tensor:
    """(8, 3) of +-1, one row per corner."""
    return torch.tensor(list(itertools.product((1, -1), repeat=3)), dtype=dtype)

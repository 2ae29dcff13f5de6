"""Boxes as one camera sees them: a turn, a projected centre, a depth and a size.

Shape legend: G boxes. The camera frame is x right, y down, z ahead; a box has its length along its own
x axis, its width along y and its height along z.
"""

import itertools

import torch

from projects.bevformer.transfer import constant


def quaternion_to_matrix(quaternion):
    """Rotation matrices of quaternions of any length but zero.

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


def unproject(points_uv, inverse_intrinsics):
    """Rays of pixels, at depth 1.

    Args:
        points_uv: (G, 2) pixels.
        inverse_intrinsics: (G, 3, 3) inverted camera matrices; inverting them on a GPU would force a
            sync.

    Returns:
        (G, 3) camera frame; times the depth it is the point.
    """
    homogeneous = torch.cat((points_uv, torch.ones_like(points_uv[:, :1])), dim=-1)
    # Sums instead of matrix products throughout: a product may run in TF32.
    return (inverse_intrinsics * homogeneous[:, None, :]).sum(dim=-1)


def viewing_rotation(rays):
    """The frame of an observer who turns to look along a ray, and keeps upright.

    Args:
        rays: (G, 3) camera frame, any length but zero, not straight up or down.

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


def compose(first, second):
    """(G, 3, 3) x (G, 3, 3) -> (G, 3, 3) rotations: first the second, then the first."""
    return (first[..., :, :, None] * second[..., None, :, :]).sum(dim=-2)


def box_corners(rotation, center, size_wlh):
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
    turned = (rotation[:, None] * offsets[:, :, None, :]).sum(dim=-1)
    return turned + center[:, None, :]


def _signs(dtype):
    """(8, 3) of +-1, one row for each corner."""
    return torch.tensor(list(itertools.product((1, -1), repeat=3)), dtype=dtype)

"""Projection of lidar-frame points into the cameras.

Shape legend: B batch, N cameras, Q BEV queries, D pillar heights.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from projects.bevformer.geometry.precision import full_precision


def image_scaling(from_hw: tuple[int, int], to_hw: tuple[int, int]) -> NDArray[np.float64]:
    """(4, 4) matrix to left-multiply `lidar2img` and `cam2img` with when an image is resized.

    The ratios are those of the sizes, which may have been rounded.

    Args:
        from_hw, to_hw: height and width before and after, pixels.
    """
    return np.diag([to_hw[1] / from_hw[1], to_hw[0] / from_hw[0], 1.0, 1.0])


def project_to_cameras(
    points_lidar: Tensor, lidar2img: Tensor, image_hw: tuple[int, int], eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """Project lidar-frame points into every camera.

    Args:
        points_lidar: (Q, D, 3) metres, x right, y forward, z up; the same for every sample.
        lidar2img: (B, N, 4, 4) maps homogeneous lidar points to (u*d, v*d, d, 1), pixels of the
            padded image.
        image_hw: height and width of the padded image, pixels.
        eps: smallest depth in metres that counts as in front of the camera.

    Returns:
        points_uv: (B, N, Q, D, 2) as fractions of width and height; inside (0, 1) where visible.
        visible: (B, N, Q, D) bool.

    Raises:
        ValueError: a shape is not as above.

    Source: BEVFormer (arXiv 2203.17270), section 3.3. float32 in any autocast state.
    """
    if lidar2img.dim() != 4 or lidar2img.shape[-2:] != (4, 4):
        raise ValueError(f"lidar2img must be (B, N, 4, 4), got {tuple(lidar2img.shape)}")
    if points_lidar.dim() != 3 or points_lidar.shape[-1] != 3:
        raise ValueError(f"points_lidar must be (Q, D, 3), got {tuple(points_lidar.shape)}")
    height, width = image_hw
    with full_precision(points_lidar.device):
        x, y, z = points_lidar.float().unbind(dim=-1)  # each (Q, D)
        m = lidar2img.float()[..., None, None, :, :]  # (B, N, 1, 1, 4, 4)
        # Written out instead of as a matrix product: a product may run in TF32, which is off by pixels.
        ud, vd, depth = (
            m[..., row, 0] * x + m[..., row, 1] * y + m[..., row, 2] * z + m[..., row, 3]
            for row in range(3)
        )  # each (B, N, Q, D)
        safe_depth = depth.clamp(min=eps)
        points_uv = torch.stack((ud / safe_depth / width, vd / safe_depth / height), dim=-1)
        inside = (points_uv > 0) & (points_uv < 1)
        visible = (depth > eps) & inside.all(dim=-1)
    return points_uv, visible

"""Resampling of BEV features on a rotated, scaled or mirrored grid.

Shape legend: B batch, Q BEV queries (= Hb * Wb), C channels.
"""

from __future__ import annotations

from typing import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from projects.bevformer.geometry.bev_grid import cell_points
from projects.bevformer.geometry.precision import full_precision
from projects.bevformer.transfer import upload


def warp_bev(
    bev: Tensor, target_from_source: Tensor, bev_hw: tuple[int, int], pc_range: Sequence[float]
) -> Tensor:
    """Warp each sample's BEV features by a linear map of the ground plane.

    A feature at p moves to `target_from_source` @ p.

    Args:
        bev: (B, Q, C) BEV features.
        target_from_source: (B, 2, 2) of (x, y) in metres, lidar frame, on the CPU; invertible.
        bev_hw: rows and columns of the grid.
        pc_range: (x_min, y_min, z_min, x_max, y_max, z_max), metres, lidar frame.

    Returns:
        (B, Q, C) features, bilinear between cell centres, zero outside the grid. The input is not
        modified.

    Raises:
        ValueError: Q is not Hb * Wb, or there is not one map per sample.
    """
    bev_h, bev_w = bev_hw
    if bev.shape[1] != bev_h * bev_w or target_from_source.shape != (len(bev), 2, 2):
        raise ValueError(
            f"bev {tuple(bev.shape)} does not fit a {bev_h}x{bev_w} grid and maps "
            f"{tuple(target_from_source.shape)}"
        )
    x_min, y_min, _, x_max, y_max, _ = pc_range
    with full_precision(bev.device):
        targets = cell_points(bev_h, bev_w, pc_range, bev.device)  # (Q, 2)
        source_from_target = upload(torch.inverse(target_from_source.float()), bev.device)
        # Not a matrix product, which may run in TF32 and be off by cells.
        sources = (source_from_target[:, None] * targets[:, None, :]).sum(dim=-1)  # (B, Q, 2)
        x, y = sources.unbind(dim=-1)
        fractions = torch.stack(((x - x_min) / (x_max - x_min), (y - y_min) / (y_max - y_min)), -1)
        samples = fractions * 2 - 1  # grid_sample's range over the grid
        moved = F.grid_sample(
            rearrange(bev.float(), "b (h w) c -> b c h w", h=bev_h),
            rearrange(samples, "b (h w) xy -> b h w xy", h=bev_h),
            align_corners=False,
        )
    return rearrange(moved, "b c h w -> b (h w) c").to(bev.dtype)

"""The bird's-eye-view grid: positions of its cells.

Shape legend: Q BEV queries (= Hb * Wb, row-major), D pillar heights.
Row 0 lies at y_min, column 0 at x_min; rows grow with +y (forward), columns with +x (right).
"""

from __future__ import annotations

from typing import Sequence

import torch
from einops import rearrange, repeat
from torch import Tensor


def check_range(name: str, limits: Sequence[float]) -> None:
    """Check a box in space from a config.

    Args:
        name: of the config's key, for the message.
        limits: (x_min, y_min, z_min, x_max, y_max, z_max), metres.

    Raises:
        ValueError: not six numbers, or a minimum that is not below its maximum.
    """
    if len(limits) != 6 or any(low >= high for low, high in zip(limits[:3], limits[3:])):
        raise ValueError(
            f"{name} must be (x_min, y_min, z_min, x_max, y_max, z_max) in metres, each minimum "
            f"below its maximum, got {tuple(limits)}"
        )


def cell_centres(bev_h: int, bev_w: int, device: torch.device | None = None) -> Tensor:
    """Centres of the BEV cells as fractions of the grid.

    Args:
        bev_h: rows of the grid, along y.
        bev_w: columns of the grid, along x.
        device: of the result.

    Returns:
        (Q, 2) float32 (x, y) in (0, 1); half a cell from the border at the ends.
    """
    y = (torch.arange(bev_h, dtype=torch.float32, device=device) + 0.5) / bev_h
    x = (torch.arange(bev_w, dtype=torch.float32, device=device) + 0.5) / bev_w
    grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
    return rearrange(torch.stack((grid_x, grid_y), dim=-1), "h w xy -> (h w) xy")


def cell_points(
    bev_h: int, bev_w: int, pc_range: Sequence[float], device: torch.device | None = None
) -> Tensor:
    """Centres of the BEV cells on the ground plane.

    Args:
        bev_h: rows of the grid, along y.
        bev_w: columns of the grid, along x.
        pc_range: (x_min, y_min, z_min, x_max, y_max, z_max), metres, lidar frame.
        device: of the result.

    Returns:
        (Q, 2) float32 (x, y) metres, lidar frame.
    """
    x_min, y_min, _, x_max, y_max, _ = pc_range
    x, y = cell_centres(bev_h, bev_w, device).unbind(dim=-1)
    # Use Python scalars: a tensor of the limits would trigger a copy to the device and a sync.
    return torch.stack((x * (x_max - x_min) + x_min, y * (y_max - y_min) + y_min), dim=-1)


def vehicle_cell(bev_h: int, bev_w: int, pc_range: Sequence[float]) -> tuple[float, float]:
    """Where the lidar is on the grid, which may be outside of it.

    Args:
        bev_h: rows of the grid, along y.
        bev_w: columns of the grid, along x.
        pc_range: (x_min, y_min, z_min, x_max, y_max, z_max), metres, lidar frame.

    Returns:
        (column, row) from the corner of the grid, cells: the middle of a range that is the same on all sides.
    """
    x_min, y_min, _, x_max, y_max, _ = pc_range
    return (0.0 - x_min) / (x_max - x_min) * bev_w, (0.0 - y_min) / (y_max - y_min) * bev_h


def pillar_points(
    bev_h: int,
    bev_w: int,
    num_heights: int,
    pc_range: Sequence[float],
    device: torch.device | None = None,
) -> Tensor:
    """Points on the vertical pillar over every BEV cell.

    Args:
        bev_h: rows of the grid, along y.
        bev_w: columns of the grid, along x.
        num_heights: D, points per pillar, evenly spaced from z_min + 0.5 m to z_max - 0.5 m.
        pc_range: (x_min, y_min, z_min, x_max, y_max, z_max), metres, lidar frame.
        device: of the result.

    Returns:
        (Q, D, 3) float32 metres, lidar frame.

    Source: BEVFormer (arXiv 2203.17270), section 3.3; the heights are the official ones.
    """
    _, _, z_min, _, _, z_max = pc_range
    height = z_max - z_min
    z = torch.linspace(0.5, height - 0.5, num_heights, dtype=torch.float32, device=device) + z_min
    xy = cell_points(bev_h, bev_w, pc_range, device)
    return torch.cat(
        (
            repeat(xy, "q xy -> q d xy", d=num_heights),
            repeat(z, "d -> q d 1", q=bev_h * bev_w),
        ),
        dim=-1,
    )

"""Multi-scale deformable attention on `F.grid_sample`: the oracle of the other backends.

Exported graphs contain this one. Shape legend: see deform_attn.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from projects.bevformer.ops.backends import LevelShapes, RowsPerMap


def unsupported_reason(value: Tensor, locations: Tensor) -> str | None:
    """Supports all tensors."""
    return None


def attend(
    value: Tensor, shapes: LevelShapes, locations: Tensor, weights: Tensor, rows_per_map: RowsPerMap
) -> Tensor:
    """`packed_multi_scale_deformable_attn` with checked arguments."""
    # grid_sample needs maps and points in one dtype, and points in half precision are off by cells.
    value = value.to(locations.dtype)
    weights = weights.to(locations.dtype)
    if len(set(rows_per_map)) == 1:
        return _attend_evenly(value, shapes, locations, weights)
    per_map = zip(value.split(1), locations.split(rows_per_map), weights.split(rows_per_map))
    return torch.cat([_attend_evenly(one, shapes, *rows) for one, *rows in per_map])


def _attend_evenly(
    value: Tensor, shapes: LevelShapes, locations: Tensor, weights: Tensor
) -> Tensor:
    """The same for maps that all have R / V rows.

    Levels are added one by one, so that no (..., L * P) tensor of samples is ever stacked.
    """
    maps = value.shape[0]
    grids = 2 * locations - 1  # grid_sample's coordinates run from -1 to 1
    output: Tensor = 0  # type: ignore[assignment]
    level_values = value.split([h * w for h, w in shapes], dim=1)
    for level, (h, w) in enumerate(shapes):
        level_maps = rearrange(level_values[level], "v (h w) m c -> (v m) c h w", h=h, w=w)
        grid = rearrange(grids[:, :, level], "(v q) m p xy -> (v m) q p xy", v=maps)
        samples = F.grid_sample(
            level_maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False
        )  # (V*M, C, Q, P)
        level_weights = rearrange(weights[:, :, level], "(v q) m p -> (v m) 1 q p", v=maps)
        output = output + (samples * level_weights).sum(dim=-1)  # (V*M, C, Q)
    return rearrange(output, "(v m) c q -> (v q) (m c)", v=maps)

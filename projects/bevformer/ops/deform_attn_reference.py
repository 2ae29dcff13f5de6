"""Multi-scale deformable attention on `F.grid_sample`: what the other backends are compared with.

It is also what an exported graph holds. Shape legend: see deform_attn.
"""

import torch
import torch.nn.functional as F
from einops import rearrange


def why_not(value, locations):
    """It computes everything."""
    return None


def attend(value, shapes, locations, weights, rows_per_map):
    """`packed_multi_scale_deformable_attn` with checked arguments."""
    # grid_sample wants one dtype for maps and points, and points in half precision are off by cells.
    value = value.to(locations.dtype)
    weights = weights.to(locations.dtype)
    if len(set(rows_per_map)) == 1:
        return _attend_evenly(value, shapes, locations, weights)
    per_map = zip(value.split(1), locations.split(rows_per_map), weights.split(rows_per_map))
    return torch.cat([_attend_evenly(value, shapes, *rows) for value, *rows in per_map])


def _attend_evenly(value, shapes, locations, weights):
    """The same for maps that all have R / V rows.

    Levels are summed one by one, so that no (..., L * P) tensor of samples is ever stacked.
    """
    maps = value.shape[0]
    grids = 2 * locations - 1  # grid_sample counts from -1 to 1
    output = 0
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

"""Multi-scale deformable attention on `F.grid_sample`: no compiled code.

Shape legend: B batch, S keys (= sum of h * w over the levels), M heads, C channels per head,
Q queries, L levels, P points.
"""

import torch.nn.functional as F
from einops import rearrange


def multi_scale_deformable_attn(value, spatial_shapes, sampling_locations, attention_weights):
    """Sample the value maps at a few points per query and sum them with weights.

    Arguments and layout are those of mmcv's `multi_scale_deformable_attn_pytorch`. Levels are
    summed one by one, so that no (..., L * P) tensor of samples is ever stacked.

    Args:
        value: (B, S, M, C) the maps of all levels, flattened row-major, one level after the other.
        spatial_shapes: L pairs (h, w); a list of ints, or an (L, 2) tensor.
        sampling_locations: (B, Q, M, L, P, 2) (x, y) as fractions of width and height; samples
            outside the map read zeros. Its dtype is the one in which sampling runs.
        attention_weights: (B, Q, M, L, P) weights, normalised by the caller.

    Returns:
        (B, Q, M * C) in the dtype of `sampling_locations`.

    Raises:
        ValueError: the shapes do not fit each other.

    Source: Deformable DETR (arXiv 2010.04159), equation 3. Pixel model `align_corners=False`.
    """
    shapes = [(int(h), int(w)) for h, w in spatial_shapes]
    batch, keys, heads, _ = value.shape
    queries, levels = sampling_locations.shape[1], len(shapes)
    if keys != sum(h * w for h, w in shapes):
        raise ValueError(f"value has {keys} keys, but spatial_shapes {shapes} hold another number")
    if sampling_locations.shape[:1] + sampling_locations.shape[2:4] != (batch, heads, levels):
        raise ValueError(
            f"sampling_locations {tuple(sampling_locations.shape)} does not fit value "
            f"{tuple(value.shape)} with {levels} levels"
        )
    if attention_weights.shape != sampling_locations.shape[:-1]:
        raise ValueError(
            f"attention_weights {tuple(attention_weights.shape)} does not fit sampling_locations "
            f"{tuple(sampling_locations.shape)}"
        )
    # grid_sample wants one dtype for maps and points, and points in half precision are off by cells.
    value = value.to(sampling_locations.dtype)
    weights = attention_weights.to(sampling_locations.dtype)
    grids = 2 * sampling_locations - 1  # grid_sample counts from -1 to 1

    output = 0
    level_values = value.split([h * w for h, w in shapes], dim=1)
    for level, (h, w) in enumerate(shapes):
        maps = rearrange(level_values[level], "b (h w) m c -> (b m) c h w", h=h, w=w)
        grid = rearrange(grids[:, :, :, level], "b q m p xy -> (b m) q p xy")
        samples = F.grid_sample(
            maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False
        )  # (B*M, C, Q, P)
        level_weights = rearrange(weights[:, :, :, level], "b q m p -> (b m) 1 q p")
        output = output + (samples * level_weights).sum(dim=-1)  # (B*M, C, Q)
    return rearrange(output, "(b m) c q -> b q (m c)", b=batch, q=queries)

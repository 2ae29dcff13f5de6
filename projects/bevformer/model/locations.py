"""Where deformable attention samples."""

import torch

from projects.bevformer.transfer import constant


def sampling_locations(reference, offsets, map_hw):
    """Reference points plus offsets, as fractions of the maps.

    Args:
        reference: (..., 2) (x, y) fractions; it broadcasts with `offsets`.
        offsets: (..., L, K, 2) float32 (x, y) in cells of their map, K any number of points.
        map_hw: L pairs (h, w).

    Returns:
        Of the shape of `offsets`.
    """
    sizes = tuple((w, h) for h, w in map_hw)
    map_wh = constant(
        ("map_wh", sizes, offsets.dtype),
        lambda: torch.tensor(sizes, dtype=offsets.dtype)[:, None],  # (L, 1, 2)
        offsets,
    )
    return torch.addcdiv(reference, offsets, map_wh)

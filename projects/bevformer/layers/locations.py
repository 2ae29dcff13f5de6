"""Where deformable attention samples."""

import torch


def sampling_locations(reference, offsets, map_hw):
    """Reference points plus offsets, as fractions of the maps.

    Args:
        reference: (..., 2) (x, y) fractions; it broadcasts with `offsets`.
        offsets: (..., L, K, 2) float32 (x, y) in cells of their map, K any number of points.
        map_hw: L pairs (h, w).

    Returns:
        Of the shape of `offsets`.
    """
    map_wh = torch.tensor([[[w, h]] for h, w in map_hw], dtype=offsets.dtype)  # (L, 1, 2)
    # A copy that does not wait for the device; so small a one is taken before the call returns.
    map_wh = map_wh.to(offsets.device, non_blocking=True)
    return torch.addcdiv(reference, offsets, map_wh)

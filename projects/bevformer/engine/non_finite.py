"""NaN and infinite numbers in a training run: found, reported, and kept out of checkpoints."""

from __future__ import annotations

from typing import Mapping

import torch


def non_finite_names(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that hold a NaN or an infinity; whole numbers are always finite.

    Args:
        tensors: name -> tensor. One sync for each, on a GPU.
    """
    return [
        name
        for name, tensor in tensors.items()
        if (tensor.is_floating_point() or tensor.is_complex())
        and not bool(torch.isfinite(tensor).all())
    ]

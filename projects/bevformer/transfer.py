"""Copies of tensors from the host to the device that runs the model."""

from __future__ import annotations

from typing import Any, Callable, Hashable, TypeVar

import torch
from torch import Tensor

_Table = TypeVar("_Table")  # a tensor, or an object of tensors with a method `to(device)`
_constants: dict[Hashable, Any] = {}


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to `device` without blocking the host.

    A non-blocking copy to a GPU is only asynchronous from pinned memory. PyTorch caches pinned
    blocks and keeps each one alive until the copy that reads it is done.

    Args:
        tensor: on the CPU, pinned or not; a tensor already on `device` is returned as it is.
        device: of the result.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def constant(key: Hashable, build: Callable[[], _Table], like: Tensor) -> _Table:
    """A small table that depends on `key` only, copied to the device of `like` once and kept there.

    Args:
        key: identifies the content of the table and its dtype.
        build: makes the table on the CPU: a tensor, or an object of tensors with a method `to`.
            Called for a new key only.
        like: a tensor that the table is used with.

    Returns:
        The table; do not modify it.
    """
    # A tensor made in inference mode cannot be saved for backward, a fake one belongs to its mode.
    mode = torch.is_inference_mode_enabled(), getattr(like, "fake_mode", None)
    key = (key, like.device, mode)
    if key not in _constants:
        # A blocking copy: a later reader may be on another stream.
        _constants[key] = build().to(like.device)  # type: ignore[attr-defined]
    table: _Table = _constants[key]
    return table

"""Full precision within autocast."""

from __future__ import annotations

import contextlib
from typing import ContextManager

import torch


def full_precision(device: torch.device) -> ContextManager[object]:
    """Context manager that disables autocast, for maths that needs float32."""
    if device.type == "meta":  # has no autocast
        return contextlib.nullcontext()
    # The dtype is unused but checked: torch 1.10 rejects bfloat16 on GPUs that lack it and warns
    # about float16 on a CPU.
    dtype = torch.bfloat16 if device.type == "cpu" else torch.float16
    return torch.autocast(device_type=device.type, dtype=dtype, enabled=False)

"""Where mixed precision must not reach."""

import contextlib

import torch


def full_precision(device):
    """Context manager: no autocast inside, for maths that half precision would spoil."""
    if device.type == "meta":  # has no autocast
        return contextlib.nullcontext()
    # The dtype is unused but checked, even here: torch 1.10 refuses bfloat16 on GPUs without it, and
    # warns of float16 on a CPU.
    dtype = torch.bfloat16 if device.type == "cpu" else torch.float16
    return torch.autocast(device_type=device.type, dtype=dtype, enabled=False)

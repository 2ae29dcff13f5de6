"""Where mixed precision must not reach."""

import torch


def full_precision(device):
    """Context manager: no autocast inside, for maths that half precision would spoil."""
    # The dtype is unused but checked: torch 1.10 warns on a CPU unless it is bfloat16.
    return torch.autocast(device_type=device.type, dtype=torch.bfloat16, enabled=False)

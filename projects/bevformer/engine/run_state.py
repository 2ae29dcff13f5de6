"""Random states and buffers of a process."""

from __future__ import annotations

import random
from typing import Any, Mapping

import numpy as np
import torch
from torch import nn


def rank_state(detector: nn.Module) -> dict[str, Any]:
    """What the next iteration depends on besides weights and data."""
    states = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    buffers = {
        f"{prefix}.{name}": value.clone()
        for prefix, module in detector.named_modules()
        if module.training
        for name, value in module.named_buffers(recurse=False)
    }
    return {"random": states, "buffers": buffers}


def restore_rank_state(state: Mapping[str, Any], detector: nn.Module) -> None:
    """Put back what `rank_state` took."""
    own = dict(detector.named_buffers())
    for name, value in state["buffers"].items():
        own[name.lstrip(".")].copy_(value)
    if "random" in state:
        random.setstate(state["random"]["python"])
        np.random.set_state(state["random"]["numpy"])
        torch.set_rng_state(state["random"]["torch"])
        if "cuda" in state["random"]:
            torch.cuda.set_rng_state(state["random"]["cuda"])

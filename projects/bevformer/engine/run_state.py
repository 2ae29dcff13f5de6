"""What a run needs besides weights and optimizer to go on bit for bit, for each process."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import nn

from projects.bevformer.engine.distributed import all_gather

_NUMPY = ("algorithm", "keys", "position", "has_gauss", "gauss")  # of `numpy.random.get_state`


def random_state(device: torch.device) -> dict[str, Any]:
    """States of the global generators: Python's, numpy's, torch's on the CPU and on one GPU.

    Returns:
        dict of plain values and tensors, for `set_random_state`.
    """
    version, words, gauss = random.getstate()
    state = {
        "python": {"version": version, "words": torch.tensor(words), "gauss": gauss},
        "numpy": dict(zip(_NUMPY, np.random.get_state())),
        "torch": torch.get_rng_state(),
    }
    state["numpy"]["keys"] = torch.from_numpy(state["numpy"]["keys"].astype(np.int64))
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Set the global generators to what `random_state` returned; a GPU's only on a GPU.

    Raises:
        KeyError, TypeError, ValueError, RuntimeError: not a state of these generators.
    """
    python, values = state["python"], dict(state["numpy"])
    values["keys"] = values["keys"].numpy().astype(np.uint32)
    np.random.set_state(tuple(values[name] for name in _NUMPY))
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def _changing_buffers(detector: nn.Module) -> dict[str, torch.Tensor]:
    """Buffers of the modules that are in training mode: statistics of batch norms above all."""
    return {
        f"{prefix}.{name}" if prefix else name: value
        for prefix, module in detector.named_modules()
        if module.training
        for name, value in module.named_buffers(recurse=False)
    }


def rank_state(detector: nn.Module, device: torch.device) -> dict[str, Any]:
    """What differs between the processes of a run.

    Args:
        detector: the bare model.
        device: of this process.

    Returns:
        `random`: of `random_state`; `buffers`: name -> copy on the device.
    """
    buffers = {name: value.clone() for name, value in _changing_buffers(detector).items()}
    return {"random": random_state(device), "buffers": buffers}


def restore_rank_state(state: dict[str, Any], detector: nn.Module, device: torch.device) -> None:
    """Set generators and buffers to those of `rank_state`; buffers that it lacks stay."""
    set_random_state(state["random"], device)
    restore_buffers(state["buffers"], detector)


@torch.no_grad()
def restore_buffers(saved: dict[str, torch.Tensor], detector: nn.Module) -> None:
    """Copy saved values into the buffers of these names.

    Raises:
        KeyError, ValueError: there is no such buffer, or it has another shape.
    """
    own = dict(detector.named_buffers())
    for name, value in saved.items():
        if value.shape != own[name].shape:
            raise ValueError(f"the buffer {name} is {tuple(value.shape)}")
        own[name].copy_(value)


def gather_rank_states(detector: nn.Module, device: torch.device) -> list[dict[str, Any]]:
    """`rank_state` of all ranks on the CPU, called by all of them.

    The buffers of rank 0 are in its `state_dict`; of the others only those that differ are kept.
    """
    state = rank_state(detector, device)
    state["buffers"] = {name: value.cpu() for name, value in state["buffers"].items()}
    states = all_gather(state)
    first = states[0]["buffers"]
    for one in states:
        one["buffers"] = {
            name: value
            for name, value in one["buffers"].items()
            if not torch.equal(value, first[name])
        }
    return states

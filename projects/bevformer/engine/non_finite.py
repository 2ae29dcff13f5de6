"""NaN and infinite numbers: found by name, and kept out of checkpoints."""

from __future__ import annotations

from typing import Any, Mapping

import torch

from projects.bevformer.messages import listed

_OF_A_RUN = ("state_dict", "raw_weights", "optimizer", "ranks", "gradients")  # of a checkpoint
_FLOAT16_MAX = 65504


class NonFiniteError(FloatingPointError, ValueError):
    """A number that has to be finite is NaN or infinite."""


def non_finite_names(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that hold a NaN or an infinity; whole numbers are always finite.

    Args:
        tensors: name -> tensor. Each costs a sync on a GPU.
    """
    return [name for name, tensor in tensors.items() if not _is_finite(tensor)]


def _is_finite(tensor: torch.Tensor) -> bool:
    if not tensor.is_floating_point() or tensor.layout != torch.strided:
        return True
    if tensor.element_size() == 1:  # float8 has no sum
        tensor = tensor.float()
    # The sum of finite numbers may overflow, but no other sum is finite: it is ten times faster.
    return bool(tensor.sum().isfinite()) or bool(torch.isfinite(tensor).all())


def tensors_in(content: Any, name: str = "") -> dict[str, torch.Tensor]:
    """All tensors in nested dicts and lists.

    Args:
        content: may be of any kind, and hold itself.
        name: of the whole, with which the dotted names begin.

    Returns:
        dotted name -> tensor.
    """
    found, seen, rest = {}, set(), [(name, content)]
    while rest:
        name, value = rest.pop()
        if isinstance(value, torch.Tensor):
            found[name] = value
        elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            items = list(value.items() if isinstance(value, dict) else enumerate(value))
            rest += [(f"{name}.{key}" if name else str(key), part) for key, part in items[::-1]]
    return found


def check_finite(checkpoint: Mapping[str, Any], what: str, most: int = 3) -> None:
    """Refuse a checkpoint with a NaN or an infinity in its weights or its training state.

    Args:
        checkpoint: its content.
        what: begins the message, such as "checkpoint epoch_1.pth".
        most: names of tensors that the message lists.

    Raises:
        NonFiniteError: names the tensors.
    """
    parts = {key: checkpoint[key] for key in _OF_A_RUN if key in checkpoint}
    tensors = {
        # Networks are float32, in which a large float64 is infinite.
        name.replace("state_dict.", "", 1): value.float() if value.dtype == torch.float64 else value
        for name, value in tensors_in(parts).items()
    }
    names = non_finite_names(tensors)
    if names:
        raise NonFiniteError(
            f"{what}: {len(names)} of {len(tensors)} tensors have a NaN or infinite number: "
            f"{listed(names, most)}"
        )


def check_float16(weights: Mapping[str, torch.Tensor], what: str) -> None:
    """Refuse weights that are infinite since they are stored as float16.

    Raises:
        NonFiniteError: names them.
    """
    names = non_finite_names(weights)
    if names:
        raise NonFiniteError(
            f"{what}: {len(names)} weights have numbers beyond {_FLOAT16_MAX}, the largest of float16: "
            f"{listed(names, 3)}; publish them without --half"
        )

"""Registry of deformable-attention backends and how one is selected.

A package outside this repository adds a backend with `register_backend`; docs/performance.md has an
example. The first of these that is set selects the backend of a call:

1. the argument `backend` of the function,
2. the environment variable `BEVFORMER_MSDA`,
3. the model's default: `set_default_backend(name, model)`; the engine passes the config's
   `deform_attn_backend`,
4. the process's default: `set_default_backend(name)`,
5. the automatic choice: the first of `PREFERENCE` that supports the tensors, else `reference`.

Shape legend: see deform_attn.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Callable, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

ENVIRONMENT_VARIABLE = "BEVFORMER_MSDA"
# The Triton kernels are untested on GPU, so they are only used when requested by name.
PREFERENCE = ("mmcv", "lean")

LevelShapes = Sequence[Tuple[int, int]]
RowsPerMap = Tuple[int, ...]
Attend = Callable[[Tensor, LevelShapes, Tensor, Tensor, RowsPerMap], Tensor]
UnsupportedReason = Callable[[Tensor, Tensor], Optional[str]]

_logger = logging.getLogger(__name__)
_backends: dict[str, Backend] = {}
_process_default: str | None = None
_logged: set[tuple[str, torch.device]] = set()


@dataclass(frozen=True)
class Backend:
    """One implementation of `packed_multi_scale_deformable_attn`.

    Attributes:
        attend: (value, shapes, locations, weights, rows_per_map) -> (R, M * C) in the dtype of
            `locations`, differentiable in the three tensors. Its arguments are checked: value
            (V, S, M, C), `shapes` L pairs (h, w) of ints, locations (R, M, L, P, 2), weights
            (R, M, L, P), `rows_per_map` V ints.
        unsupported_reason: (value, locations) -> None if `attend` supports these tensors on this
            machine, else why not.
        repeatable: whether its gradients on CUDA are the same in every run.
    """

    attend: Attend
    unsupported_reason: UnsupportedReason
    repeatable: bool = False


def register_backend(
    name: str, attend: Attend, unsupported_reason: UnsupportedReason, repeatable: bool = False
) -> None:
    """Add a backend.

    Args:
        name: by which users select it.
        attend, unsupported_reason, repeatable: see Backend.

    Raises:
        ValueError: the name is taken.
    """
    if name in _backends:
        raise ValueError(f"a deformable attention backend {name!r} is already registered")
    _backends[name] = Backend(attend, unsupported_reason, repeatable)


def known_backends() -> list[str]:
    """Sorted names of the registered backends, whether or not this machine supports them."""
    return sorted(_backends)


def get_backend(name: str, source: str = "backend") -> Backend:
    """A registered backend.

    Args:
        name: of the backend.
        source: what asks for it, for the message.

    Raises:
        ValueError: unknown name.
    """
    if name not in _backends:
        raise ValueError(
            f"{source}={name!r} is not a deformable attention backend: choose one of "
            f"{', '.join(known_backends())}"
        )
    return _backends[name]


def set_default_backend(name: str | None, model: nn.Module | None = None) -> None:
    """Set the backend where neither an argument nor BEVFORMER_MSDA names one.

    Args:
        name: of a backend; None to fall back to the next default.
        model: set it for the attention modules of this model only, i.e. for its submodules with an
            attribute `default_backend`. None sets it for the process.

    Raises:
        ValueError: unknown name.
    """
    global _process_default
    if name is not None:
        get_backend(name, "deform_attn_backend")
    if model is None:
        _process_default = name
        return
    for module in model.modules():
        if hasattr(module, "default_backend"):
            module.default_backend = name  # type: ignore[assignment]


def select_backend(
    value: Tensor, locations: Tensor, name: str | None = None, default: str | None = None
) -> Backend:
    """The backend for a call.

    Args:
        value, locations: the tensors of the call.
        name: the argument `backend` of the call.
        default: the model's default.

    Raises:
        ValueError: the name is unknown, or the named backend does not support these tensors.
    """
    for chosen, source in (
        (name, "backend"),
        (os.environ.get(ENVIRONMENT_VARIABLE), ENVIRONMENT_VARIABLE),
        (default or _process_default, "deform_attn_backend"),
    ):
        if chosen:
            reason = get_backend(chosen, source).unsupported_reason(value, locations)
            if reason is not None:
                raise ValueError(
                    f"{source} selects the deformable attention backend {chosen!r}, but {reason}"
                )
            break
    else:
        chosen = _automatic(value, locations)
    _log_once(chosen, value.device)
    return _backends[chosen]


def _automatic(value: Tensor, locations: Tensor) -> str:
    # Exported graphs consist of standard operators.
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return "reference"
    for name in PREFERENCE:
        if name in _backends and _backends[name].unsupported_reason(value, locations) is None:
            return name
    return "reference"


def _log_once(name: str, device: torch.device) -> None:
    if (name, device) not in _logged:
        _logged.add((name, device))
        _logger.info("deformable attention on %s: backend %s", device, name)

"""Who computes deformable attention: the backends by name, and the choice among them.

The choice is the explicit argument, then the environment variable `BEVFORMER_MSDA`, then what
`set_default_backend` was given (the engine hands it the config's `deform_attn_backend`), then
automatic.
"""

import logging
import os
from dataclasses import dataclass
from typing import Callable

import torch

ENVIRONMENT_VARIABLE = "BEVFORMER_MSDA"
# Automatic choice, best first; the first that can compute the tensors at hand is taken. Triton's kernels
# have never run on a GPU: they are there for who names them.
PREFERENCE = ("mmcv", "lean")

_logger = logging.getLogger(__name__)
_backends = {}
_default_name = None
_logged = set()


@dataclass(frozen=True)
class Backend:
    """One way to compute `packed_multi_scale_deformable_attn`.

    Attributes:
        attend: (value, shapes, locations, weights, rows_per_map) -> (R, M * C), with checked
            arguments, `shapes` L pairs of ints and `rows_per_map` a tuple of V ints.
        why_not: (value, locations) -> None if `attend` can compute them, else the reason.
    """

    attend: Callable
    why_not: Callable


def register_backend(name, attend, why_not):
    """Add a backend.

    Args:
        name: how users choose it.
        attend, why_not: see Backend.

    Raises:
        ValueError: the name is taken.
    """
    if name in _backends:
        raise ValueError(f"a deformable attention backend {name!r} is registered already")
    _backends[name] = Backend(attend, why_not)


def known_backends():
    """Names of the registered backends, usable here or not."""
    return sorted(_backends)


def set_default_backend(name):
    """What this process uses where neither an argument nor BEVFORMER_MSDA says otherwise.

    Args:
        name: of a backend; None for the automatic choice.

    Raises:
        ValueError: unknown name.
    """
    global _default_name
    if name is not None:
        _check_name(name, "deform_attn_backend")
    _default_name = name


def choose_backend(name, value, locations):
    """The backend for a call.

    Args:
        name: explicit choice or None.
        value, locations: the tensors of the call.

    Returns:
        The `attend` of a Backend.

    Raises:
        ValueError: the name is unknown, or the named backend cannot compute these tensors.
    """
    for chosen, source in (
        (name, "backend"),
        (os.environ.get(ENVIRONMENT_VARIABLE), ENVIRONMENT_VARIABLE),
        (_default_name, "deform_attn_backend"),
    ):
        if chosen:
            _check_name(chosen, source)
            reason = _backends[chosen].why_not(value, locations)
            if reason is not None:
                raise ValueError(
                    f"{source} asks for deformable attention by {chosen!r}, but {reason}"
                )
            break
    else:
        chosen = _automatic(value, locations)
    _log_once(chosen, value.device)
    return _backends[chosen].attend


def _check_name(name, source):
    if name not in _backends:
        raise ValueError(
            f"{source}={name!r} is no deformable attention backend: choose one of "
            f"{', '.join(known_backends())}"
        )


def _automatic(value, locations):
    if torch.jit.is_tracing():  # exported graphs are made of standard operators
        return "reference"
    for name in PREFERENCE:
        if name in _backends and _backends[name].why_not(value, locations) is None:
            return name
    return "reference"


def _log_once(name, device):
    if (name, device) not in _logged:
        _logged.add((name, device))
        _logger.info("deformable attention on %s: backend %s", device, name)

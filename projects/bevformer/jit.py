"""Compilation of loops over pixels, rays and boxes."""

from __future__ import annotations

from typing import Callable, TypeVar, cast

import numba

_Function = TypeVar("_Function", bound=Callable[..., object])


def jit(function: _Function) -> _Function:
    """Compile `function` with numba, cached on disk where the installation is writable.

    numba keeps its cache in `__pycache__` or in the user's cache folder, and fails if both are
    read-only; the function is then compiled once per process. The cache only notices changes of the
    function's own file: after changing a constant that it imports from another module, delete
    `__pycache__`.
    """
    try:
        return cast(_Function, numba.njit(cache=True)(function))
    except RuntimeError:
        return cast(_Function, numba.njit(function))

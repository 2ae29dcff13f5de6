"""Compilation of loops over pixels, rays and boxes."""

import numba


def jit(function):
    """Compile `function` with numba, cached on disk where the installation is writable.

    numba keeps its cache in `__pycache__`, or in the user's cache folder, and refuses to compile at
    all when it may write to neither; such an installation compiles anew in every process. The cache
    notices changes of a function's own file only: whoever changes a constant that a compiled
    function imports from another module must delete `__pycache__`.
    """
    try:
        return numba.njit(cache=True)(function)
    except RuntimeError:
        return numba.njit(function)

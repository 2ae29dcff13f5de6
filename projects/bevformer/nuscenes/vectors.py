"""Which of many values are vectors or matrices of finite numbers."""

from __future__ import annotations

import warnings
from typing import Any, Sequence

import numpy as np

_TINY = 1e-6  # a quaternion or a determinant below it counts as zero


def finite_rows(values: Sequence[Any], shape: tuple[int, ...]) -> np.ndarray:
    """(len(values),) bool: whether each value holds finite numbers (no texts or booleans) of a shape."""
    return _finite(values, shape)[0]


def usable_rows(values: Sequence[Any], shape: tuple[int, ...]) -> np.ndarray:
    """As `finite_rows`; (4,) are quaternions that are not zero, (3, 3) are invertible matrices."""
    return stack_usable(values, shape)[0]


def stack_usable(values: Sequence[Any], shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """`usable_rows`, and the finite values as one (n, *shape) float64 array."""
    good, rows = _finite(values, shape)
    if shape == (4,):
        good[good] = np.abs(rows).max(axis=1, initial=0) > _TINY
    if shape == (3, 3):
        good[good] = np.abs(np.linalg.det(rows)) > _TINY
    return good, rows


def _finite(values, shape):
    """Which values are finite, and these as one float64 array."""
    rows = _numbers(values)
    if rows is not None and rows.shape == (len(values), *shape):
        good = np.isfinite(rows).all(axis=tuple(range(1, rows.ndim)))
        finite = rows if good.all() else rows[good]
    else:  # of different shapes or kinds: slowly, one by one
        parsed = [_numbers(value) for value in values]
        good = np.array(
            [p is not None and p.shape == shape and np.isfinite(p).all() for p in parsed],
            dtype=bool,
        )
        finite = [p for p, fine in zip(parsed, good) if fine]
    return good, np.asarray(finite, dtype=np.float64).reshape(-1, *shape)


def described(shape: tuple[int, ...]) -> str:
    """What `usable_rows` asks of a value, for messages."""
    if not shape:
        return "one finite number"
    numbers = f"{' x '.join(map(str, shape))} finite numbers"
    if shape == (4,):
        return f"a quaternion of {numbers}, not all zero"
    return f"an invertible matrix of {numbers}" if shape == (3, 3) else numbers


def _numbers(value: Any) -> np.ndarray | None:
    """The value as an array of numbers, or None."""
    if _has_bool(value):
        return None  # NumPy would take it for 0 or 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # older NumPy warns of rows of different lengths
        try:
            array = np.array(value)
        except (TypeError, ValueError, OverflowError):
            return None
    return array if array.dtype.kind in "iuf" else None


def _has_bool(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_has_bool, value))
    return isinstance(value, bool)

"""Rotations as quaternions w, x, y, z: rows of float64 NumPy arrays.

Everything is computed element by element, so the result of a row does not depend on the number of rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

Array = NDArray[np.float64]


def matrices(quaternions: ArrayLike) -> Array:
    """(..., 4) of any length but 0 -> (..., 3, 3) rotation matrices, acting on column vectors."""
    elements = np.asarray(quaternions, dtype=np.float64)
    rows = np.roll(elements, -1, axis=-1).reshape(-1, 4)  # SciPy wants w last, and one row or more
    turns = Rotation.from_quat(rows).as_matrix() if len(rows) else np.zeros((0, 3, 3))
    shaped: Array = turns.reshape(*elements.shape[:-1], 3, 3)
    return shaped


def normalise(quaternions: Array) -> Array:
    """(N, 4) of any length but 0 -> (N, 4) of length 1."""
    lengths: Array = np.linalg.norm(quaternions, axis=1, keepdims=True)
    return quaternions / lengths


def multiply(left: Array, right: Array) -> Array:
    """(N, 4) products: `right` is applied first."""
    w, x, y, z = left.T
    a, b, c, d = right.T
    return np.stack(
        (
            w * a - x * b - y * c - z * d,
            w * b + x * a + y * d - z * c,
            w * c - x * d + y * a + z * b,
            w * d + x * c - y * b + z * a,
        ),
        axis=1,
    )


def rotate(quaternions: Array, vectors: Array) -> Array:
    """Turn vectors (N, 3) by unit quaternions (N, 4)."""
    axis = quaternions[:, 1:]
    twice = 2 * np.cross(axis, vectors)
    return vectors + quaternions[:, :1] * twice + np.cross(axis, twice)


def rotate_back(quaternions: Array, vectors: Array) -> Array:
    """The inverse of `rotate`."""
    return rotate(quaternions * [1, -1, -1, -1], vectors)


def about_z(angles_rad: Array) -> Array:
    """(N,) angles -> (N, 4)."""
    zeros = np.zeros(len(angles_rad))
    return np.stack((np.cos(angles_rad / 2), zeros, zeros, np.sin(angles_rad / 2)), axis=1)


def yaws(quaternions: Array) -> Array:
    """Heading of the turned x axis in the x-y plane, rad, of (N, 4) quaternions of any length."""
    w, x, y, z = quaternions.T
    angles: Array = np.arctan2(2 * (x * y + w * z), w * w + x * x - y * y - z * z)
    return angles

"""Rotations as quaternions w, x, y, z: rows of float64 NumPy arrays.

Everything is computed element by element, so the result of a row does not depend on the number of rows.
"""

from __future__ import annotations

import math

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


def matrices_about_z(angles_rad: ArrayLike) -> Array:
    """(...) angles about +z, counter-clockwise -> (..., 3, 3) matrices that act on column vectors."""
    angles = np.asarray(angles_rad, dtype=np.float64)
    cos, sin = np.cos(angles), np.sin(angles)
    zero, one = np.zeros_like(cos), np.ones_like(cos)
    rows = [cos, -sin, zero, sin, cos, zero, zero, zero, one]
    matrices: Array = np.stack(rows, axis=-1).reshape(*angles.shape, 3, 3)
    return matrices


def matrix_from_angles(z_rad: float, y_rad: float, x_rad: float) -> Array:
    """(3, 3) rotation about x, then about y, then about z, all of them fixed axes."""
    about_x, about_y, about_z = (
        np.insert([math.cos(angle / 2), 0.0, 0.0], axis, math.sin(angle / 2))[None]
        for axis, angle in ((1, x_rad), (2, y_rad), (3, z_rad))
    )
    w, x, y, z = multiply(multiply(about_z, about_y), about_x)[0]
    # q v q* as a product of the two matrices that multiply by q from the left and by q* from the right.
    left = np.array([[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]])
    right = np.array([[w, x, y, z], [-x, w, -z, y], [-y, z, w, -x], [-z, -y, x, w]])
    matrix: Array = (left @ right)[1:, 1:]
    return matrix


def quaternion_from_matrix(rotation: ArrayLike) -> Array:
    """(3, 3) rotation matrix -> (4,) unit quaternion with w >= 0.

    Source: M. Day, Converting a Rotation Matrix to a Quaternion, with the branch whose root is largest.
    """
    m = np.asarray(rotation, dtype=np.float64)
    a, b, c = np.diag(m)
    x, y, z = m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]
    xy, xz, yz = m[1, 0] + m[0, 1], m[0, 2] + m[2, 0], m[2, 1] + m[1, 2]
    if c < 0 and a > b:
        square = 1 + a - b - c
        elements = [x, square, xy, xz]
    elif c < 0:
        square = 1 - a + b - c
        elements = [y, xy, square, yz]
    elif a < -b:
        square = 1 - a - b + c
        elements = [z, xz, yz, square]
    else:
        square = 1 + a + b + c
        elements = [square, x, y, z]
    quaternion = np.array(elements) * (0.5 / math.sqrt(square))
    return -quaternion if quaternion[0] < 0 else quaternion

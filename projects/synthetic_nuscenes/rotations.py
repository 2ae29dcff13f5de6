"""Rotations of the synthetic world: matrices from angles, and quaternions from matrices."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from projects.bevformer.geometry.rotations import Array, multiply


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

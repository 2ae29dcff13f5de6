"""Rigid transforms as 4x4 matrices named `src2dst`, acting on column vectors."""

import numpy as np
from pyquaternion import Quaternion


def yaw_rotation(yaw_rad):
    """Rotation about +z, counter-clockwise.

    Args:
        yaw_rad: (...) angles in radians.

    Returns:
        (..., 3, 3).
    """
    cos, sin = np.cos(yaw_rad), np.sin(yaw_rad)
    zero, one = np.zeros_like(cos), np.ones_like(cos)
    rows = [cos, -sin, zero, sin, cos, zero, zero, zero, one]
    return np.stack(rows, axis=-1).reshape(np.shape(yaw_rad) + (3, 3))


def rigid(rotation, translation):
    """4x4 matrices from (..., 3, 3) rotations and (..., 3) translations."""
    rotation = np.asarray(rotation, dtype=np.float64)
    matrix = np.zeros(rotation.shape[:-2] + (4, 4))
    matrix[..., :3, :3] = rotation
    matrix[..., :3, 3] = translation
    matrix[..., 3, 3] = 1.0
    return matrix


def planar_pose(x, y, yaw_rad):
    """body2world of upright bodies that stand at (x, y) on the ground, z = 0; all arguments (...)."""
    translation = np.stack([x, y, np.zeros_like(x)], axis=-1)
    return rigid(yaw_rotation(yaw_rad), translation)


def inverse(matrix):
    """Inverse of one rigid 4x4 matrix."""
    rotation = matrix[:3, :3].T
    return rigid(rotation, -rotation @ matrix[:3, 3])


def quaternion(rotation):
    """(w, x, y, z) with w >= 0, as Python floats, of one 3x3 rotation."""
    elements = Quaternion(matrix=np.asarray(rotation)).normalised.elements
    if elements[0] < 0:
        elements = -elements
    return [float(value) for value in elements]

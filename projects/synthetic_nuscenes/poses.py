"""Poses of upright bodies, and the inverse of a pose."""

import numpy as np

from projects.bevformer.geometry.poses import rigid_matrix
from projects.synthetic_nuscenes.rotations import matrices_about_z


def planar_pose(x, y, yaw_rad) -> np.ndarray:
    """body2world of upright bodies at (x, y) on the ground, z = 0; metres, all arguments (...)."""
    translation = np.stack([x, y, np.zeros_like(x)], axis=-1)
    return rigid_matrix(matrices_about_z(yaw_rad), translation)


def inverse(pose: np.ndarray) -> np.ndarray:
    """Inverse of one rigid (4, 4) matrix.

    `geometry.poses.inverse_poses` adds in another order: its last bit would change the lidar points and
    images of data sets that exist.
    """
    rotation = pose[:3, :3].T
    return rigid_matrix(rotation, -rotation @ pose[:3, 3])

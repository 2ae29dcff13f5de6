"""Rigid transforms between the frames of a vehicle that moves; float64 NumPy arrays."""

from __future__ import annotations

from typing import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation


def pose_matrix(rotation_wxyz: Sequence[float], translation: ArrayLike) -> NDArray[np.float64]:
    """`src2dst` of a quaternion and a translation, as the tables and the info files give them.

    Args:
        rotation_wxyz: (4,) unit quaternion w, x, y, z.
        translation: (3,) metres.

    Returns:
        (4, 4), acts on column vectors.
    """
    w, x, y, z = rotation_wxyz
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_quat((x, y, z, w)).as_matrix()
    matrix[:3, 3] = translation
    return matrix


def inverse_poses(src2dst: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., 4, 4) rigid transforms -> their inverses `dst2src`.

    Avoids np.linalg.inv, whose BLAS threads keep spinning on cores that other workers need.
    """
    rotations = np.swapaxes(src2dst[..., :3, :3], -1, -2)
    inverses = np.zeros_like(src2dst)
    inverses[..., :3, :3] = rotations
    inverses[..., :3, 3] = -np.einsum("...ij,...j->...i", rotations, src2dst[..., :3, 3])
    inverses[..., 3, 3] = 1.0
    return inverses


def adjacent_to_current(
    lidar2global_adjacent: NDArray[np.float64], lidar2global_current: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Where a place seen from the lidar of an adjacent frame lies for the lidar of the current one.

    Args:
        lidar2global_adjacent: (4, 4) at the time of the adjacent frame.
        lidar2global_current: (4, 4) at the time of the current frame.

    Returns:
        (4, 4) adjacent lidar frame to current lidar frame.
    """
    return inverse_poses(lidar2global_current) @ lidar2global_adjacent


def check_frame_offsets(frames: Sequence[int]) -> None:
    """Check which frames around the current one a model fuses.

    Args:
        frames: offsets in key frames; 0 is the current one.

    Raises:
        ValueError: the offsets are not in time order, one occurs twice, or 0 is missing.
    """
    if 0 not in frames or list(frames) != sorted(set(frames)):
        raise ValueError(f"frames must be in time order and contain 0, got {tuple(frames)}")


def rigid_matrix(rotation: ArrayLike, translation: ArrayLike) -> NDArray[np.float64]:
    """(..., 3, 3) rotations and (..., 3) translations -> (..., 4, 4), acting on column vectors."""
    turn = np.asarray(rotation, dtype=np.float64)
    matrix = np.zeros((*turn.shape[:-2], 4, 4))
    matrix[..., :3, :3] = turn
    matrix[..., :3, 3] = translation
    matrix[..., 3, 3] = 1.0
    return matrix

"""Rigid transforms between the frames of a vehicle that moves; float64 NumPy arrays named `src2dst`."""

from __future__ import annotations

from typing import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from projects.bevformer.geometry import rotations


def pose_matrix(rotation_wxyz: ArrayLike, translation: ArrayLike) -> NDArray[np.float64]:
    """`src2dst` from quaternions and translations, as the tables and the info files store them.

    Args:
        rotation_wxyz: (..., 4) quaternions w, x, y, z.
        translation: (..., 3) metres.

    Returns:
        (..., 4, 4), acting on column vectors.
    """
    return rigid_matrix(rotations.matrices(rotation_wxyz), translation)


def inverse_poses(src2dst: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., 4, 4) rigid transforms -> their inverses `dst2src`.

    Avoids np.linalg.inv, whose BLAS threads keep spinning on cores that other workers need.
    """
    turned = np.swapaxes(src2dst[..., :3, :3], -1, -2)
    return rigid_matrix(turned, -np.einsum("...ij,...j->...i", turned, src2dst[..., :3, 3]))


def adjacent_to_current(
    lidar2global_adjacent: NDArray[np.float64], lidar2global_current: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Transform from the lidar of an adjacent frame to the lidar of the current one.

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

"""Rotation matrices and their quaternions agree with scipy's."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from projects.synthetic_nuscenes.rotations import (
    matrices_about_z,
    matrix_from_angles,
    quaternion_from_matrix,
)


def test_matrices_about_z():
    np.testing.assert_allclose(
        matrices_about_z(np.array(np.pi / 2)), [[0, -1, 0], [1, 0, 0], [0, 0, 1]], atol=1e-15
    )
    angles = np.array([[0.0, 0.3], [-2.0, 3.1]])
    expected = Rotation.from_euler("z", angles.ravel()).as_matrix().reshape(2, 2, 3, 3)
    np.testing.assert_allclose(matrices_about_z(angles), expected, atol=1e-15)


def test_matrix_from_angles_turns_about_x_first():
    expected = Rotation.from_euler("xyz", [0.3, 0.2, 0.1]).as_matrix()
    np.testing.assert_allclose(matrix_from_angles(0.1, 0.2, 0.3), expected, atol=1e-15)


@pytest.mark.parametrize(
    "rotation",
    [
        np.eye(3),
        np.diag([1.0, -1.0, -1.0]),
        np.diag([-1.0, 1.0, -1.0]),
        np.diag([-1.0, -1.0, 1.0]),
        *Rotation.random(20, random_state=0).as_matrix(),
    ],
)
def test_quaternion_from_matrix(rotation):
    quaternion = quaternion_from_matrix(rotation)
    assert quaternion[0] >= 0
    assert np.linalg.norm(quaternion) == pytest.approx(1)
    again = Rotation.from_quat(np.roll(quaternion, -1)).as_matrix()
    np.testing.assert_allclose(again, rotation, atol=1e-12)

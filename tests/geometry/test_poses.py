import math

import numpy as np
import pytest

from projects.bevformer.geometry import rotations
from projects.bevformer.geometry.poses import (
    adjacent_to_current,
    check_frame_offsets,
    inverse_poses,
    pose_matrix,
    rigid_matrix,
)

HALF = math.sqrt(0.5)


def test_pose_by_hand():
    quarter_turn = pose_matrix((HALF, 0, 0, HALF), (1.0, 2.0, 3.0))
    np.testing.assert_allclose(quarter_turn @ [1, 0, 0, 1], [1, 3, 3, 1], atol=1e-12)


def test_adjacent_to_current_by_hand():
    # The car was at x = 10 heading along +x; now it is at x = 14 heading along +y.
    before = pose_matrix((1, 0, 0, 0), (10.0, 0.0, 0.0))
    now = pose_matrix((HALF, 0, 0, HALF), (14.0, 0.0, 0.0))
    # What was 6 m ahead is at x = 16: now 2 m to the right, which is -y of its own axes.
    seen_now = adjacent_to_current(before, now) @ [6, 0, 0, 1]
    np.testing.assert_allclose(seen_now, [0, -2, 0, 1], atol=1e-12)


def test_inverse_of_a_batch():
    poses = np.stack(
        [
            pose_matrix((0.8, 0.0, 0.6, 0.0), (3.0, -2.0, 1.0)),
            pose_matrix((HALF, 0.0, 0.0, HALF), (-500.0, 4000.0, 0.5)),
        ]
    )[:, None]
    inverses = inverse_poses(poses)
    assert inverses.shape == (2, 1, 4, 4)
    np.testing.assert_allclose(inverses @ poses, np.eye(4) + 0 * poses, atol=1e-9)


def test_round_trip_between_frames_is_the_identity():
    a = pose_matrix((0.8, 0.0, 0.6, 0.0), (3.0, -2.0, 1.0))
    b = pose_matrix((HALF, HALF, 0.0, 0.0), (-5.0, 4.0, 0.5))
    round_trip = adjacent_to_current(b, a) @ adjacent_to_current(a, b)
    np.testing.assert_allclose(round_trip, np.eye(4), atol=1e-12)


@pytest.mark.parametrize("frames", [(), (-1,), (0, -1), (0, 0)])
def test_unordered_or_incomplete_offsets_are_refused(frames):
    with pytest.raises(ValueError, match="time order"):
        check_frame_offsets(frames)


def test_rigid_matrix_moves_points():
    turn = rotations.matrices(rotations.about_z(np.array([0.0, np.pi / 2])))
    poses = rigid_matrix(turn, [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    np.testing.assert_allclose(poses @ [1, 0, 0, 1], [[2, 2, 3, 1], [4, 6, 6, 1]], atol=1e-15)
    np.testing.assert_allclose(inverse_poses(poses) @ poses, [np.eye(4)] * 2, atol=1e-12)

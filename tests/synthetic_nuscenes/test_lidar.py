"""The lidar against a scene whose distances are known."""

import numpy as np
import pytest

from projects.bevformer.geometry.poses import rigid_matrix
from projects.synthetic_nuscenes.lidar import GROUND, scan
from projects.synthetic_nuscenes.objects import Path, make_object
from projects.synthetic_nuscenes.poses import planar_pose
from projects.synthetic_nuscenes.renderer import gather_faces

SIZE = (4.0, 2.0, 3.0)
LIDAR_TO_WORLD = rigid_matrix(np.eye(3), [0.0, 0.0, 1.8])


def _scan(*places):
    """Scan buildings, the plainest boxes, at the given (x, y, yaw)."""
    still = Path.still(0.0, 0.0, 0.0, steps=2)
    objects = [make_object("building", still, np.random.default_rng(0), SIZE) for _ in places]
    poses = np.array([planar_pose(*(np.array(value) for value in place)) for place in places])
    points, owner = scan(LIDAR_TO_WORLD, poses, gather_faces(objects), np.random.default_rng(1))
    return points, owner, poses


def test_returns_lie_on_the_visible_faces_and_inside_the_box():
    points, owner, poses = _scan((12.0, 5.0, 0.4))
    world = points[owner == 0, :3] + [0.0, 0.0, 1.8]
    local = (world - poses[0, :3, 3]) @ poses[0, :3, :3]
    low, high = np.array([-2.0, -1.0, 0.0]), np.array([2.0, 1.0, 3.0])
    assert len(world) > 200
    assert ((local > low) & (local < high)).all()
    to_surface = np.minimum(local - low, high - local).min(axis=1)
    assert to_surface.max() < 0.03
    # Only the two sides that look towards the lidar (behind and right of the box) return anything.
    assert (np.minimum(local[:, 0] + 2.0, local[:, 1] + 1.0) < 0.03).all()


def test_a_box_hides_what_is_behind_it():
    _, alone, _ = _scan((30.0, 0.0, 0.0))
    _, hidden, _ = _scan((30.0, 0.0, 0.0), (10.0, 0.0, np.pi / 2))
    assert (alone == 0).sum() > 10
    assert (hidden == 0).sum() == 0


def test_a_box_across_the_seam_of_the_turn_is_whole():
    """Azimuths run from -pi to pi: the seam points along -x."""
    _, ahead, _ = _scan((12.0, 0.0, 0.0))
    _, behind, _ = _scan((-12.0, 0.0, np.pi))
    assert (behind == 0).sum() == pytest.approx((ahead == 0).sum(), abs=2)


def test_the_ground_is_flat_and_within_range():
    points, owner, _ = _scan((500.0, 0.0, 0.0))
    assert (owner == GROUND).all()
    np.testing.assert_allclose(points[:, 2], -1.8, atol=0.012)
    assert np.hypot(points[:, 0], points[:, 1]).max() < 71.0
    assert points.dtype == np.float32
    assert points.shape[1] == 5
    assert set(np.unique(points[:, 4])) <= set(range(32))

"""The rig: where sensors look, and how intrinsics follow the image size."""

import numpy as np
import pytest

from projects.bevformer.nuscenes.spec import CAMERAS
from projects.synthetic_nuscenes.cameras import NUSCENES_RIG, camera_ring, draw_rig
from projects.synthetic_nuscenes.poses import inverse

VIEW_DEG = {
    "CAM_FRONT": 0, "CAM_FRONT_RIGHT": -55, "CAM_FRONT_LEFT": 55,
    "CAM_BACK": 180, "CAM_BACK_LEFT": 109, "CAM_BACK_RIGHT": -109,
}  # fmt: skip


def _rig(image_hw=(450, 800), seed=0):
    return draw_rig(image_hw, np.random.default_rng(seed))


def test_camera_headings_match_their_names():
    rig = _rig()
    assert tuple(rig.cameras) == CAMERAS
    for channel, camera in rig.cameras.items():
        right, down, forward = camera.camera2ego[:3, :3].T
        yaw = np.radians(VIEW_DEG[channel])
        assert forward @ [np.cos(yaw), np.sin(yaw), 0] > np.cos(np.radians(4))
        assert down[2] < -0.99
        np.testing.assert_allclose(np.cross(right, down), forward, atol=1e-12)


def test_lidar_axes_are_right_and_forward():
    lidar2ego = _rig().lidar2ego
    np.testing.assert_allclose(lidar2ego[:3, :3] @ [0, 1, 0], [1, 0, 0], atol=0.04)
    np.testing.assert_allclose(lidar2ego[:3, :3] @ [1, 0, 0], [0, -1, 0], atol=0.04)
    assert lidar2ego[2, 3] == pytest.approx(1.84, abs=0.05)


def test_intrinsics_scale_with_the_image():
    for channel in CAMERAS:
        large = _rig((900, 1600)).cameras[channel].intrinsic
        small = _rig((225, 400)).cameras[channel].intrinsic
        np.testing.assert_allclose(small[:2], large[:2] / 4)
    focal = _rig((900, 1600)).cameras["CAM_FRONT"].intrinsic[0, 0]
    assert focal == pytest.approx(1266, rel=0.03)


def test_rigs_depend_only_on_the_generator():
    first, again, other = _rig(seed=1), _rig(seed=1), _rig(seed=2)
    for channel in CAMERAS:
        np.testing.assert_array_equal(
            first.cameras[channel].camera2ego, again.cameras[channel].camera2ego
        )
        assert not np.allclose(first.cameras[channel].camera2ego, other.cameras[channel].camera2ego)


def test_inverse_of_a_pose():
    pose = _rig().cameras["CAM_BACK_LEFT"].camera2ego
    np.testing.assert_allclose(inverse(pose) @ pose, np.eye(4), atol=1e-12)


def test_the_default_rig_is_that_of_nuscenes():
    assert tuple(mount.channel for mount in NUSCENES_RIG) == CAMERAS


@pytest.mark.parametrize("count", [1, 5, 7])
def test_a_ring_of_cameras_sees_all_around(count):
    rig = draw_rig((225, 400), np.random.default_rng(0), camera_ring(count))
    assert list(rig.cameras) == [f"CAM_{i}" for i in range(count)]
    views = np.zeros(360, dtype=int)  # how many cameras see each degree around the vehicle
    for camera in rig.cameras.values():
        _, _, (x, y, _) = camera.camera2ego[:3, :3].T
        half_deg = np.degrees(np.arctan(200 / camera.intrinsic[0, 0]))
        away = (np.arange(360) - np.degrees(np.arctan2(y, x)) + 180) % 360 - 180
        views += np.abs(away) < half_deg
    assert count == 1 or views.min() >= 1

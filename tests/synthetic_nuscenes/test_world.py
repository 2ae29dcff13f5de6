"""A scene: reproducible, smooth, free of collisions, and populated with all classes."""

import numpy as np
import pytest
from nuscenes.eval.common.config import config_factory
from shapely.geometry import Polygon

from projects.bevformer.nuscenes.spec import CATEGORY_TO_CLASS, CLASSES
from projects.synthetic_nuscenes.catalogue import KINDS
from projects.synthetic_nuscenes.world import build_world, scene_number

DURATION_S = 19.5
RANGE_OF_CLASS = config_factory("detection_cvpr_2019").class_range


@pytest.fixture(scope="module")
def world():
    return build_world("scene-0061", seed=0, duration_s=DURATION_S)


def test_world_depends_on_name_and_seed(world):
    again = build_world("scene-0061", 0, DURATION_S)
    other = build_world("scene-0553", 0, DURATION_S)
    np.testing.assert_array_equal(world.object_poses(3.3), again.object_poses(3.3))
    assert world.light.noise == again.light.noise
    assert len(other.objects) != len(world.objects) or not np.array_equal(
        other.object_poses(3.3), world.object_poses(3.3)
    )


def test_invalid_scene_names_are_refused():
    assert scene_number("scene-0103") == 103
    with pytest.raises(ValueError, match="scene-NNNN"):
        scene_number("scene103")


def test_ego_drive_is_smooth_and_heads_where_it_moves(world):
    times = np.arange(0.0, DURATION_S, 0.1)
    poses = np.array([world.ego_pose(time) for time in times])
    step = np.diff(poses[:, :2, 3], axis=0)
    speed = np.linalg.norm(step, axis=1) / 0.1
    assert speed.max() < 12.0
    assert np.abs(np.diff(speed)).max() < 1.0
    driving = speed > 1.0
    heading = np.arctan2(poses[:-1, 1, 0], poses[:-1, 0, 0])
    course = np.arctan2(step[:, 1], step[:, 0])
    turn = np.angle(np.exp(1j * (course - heading)))
    assert np.abs(turn[driving]).max() < 0.03
    assert np.ptp(np.unwrap(heading)) > 0.05  # the road bends
    assert (poses[:, 2, 3] == 0).all()


def test_the_drive_lies_inside_the_mapped_region(world):
    for time in (0.0, DURATION_S):
        x, y = world.ego_pose(time)[:2, 3]
        assert 90.0 < x < world.region_m[0] - 90.0
        assert 90.0 < y < world.region_m[1] - 90.0


def _footprint(length, width, pose):
    corners = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) * [length / 2, width / 2]
    return Polygon(corners @ pose[:2, :2].T + pose[:2, 3])


@pytest.mark.parametrize("name", ["scene-0061", "scene-0103", "scene-0916"])
def test_nobody_collides(name):
    world = build_world(name, 0, DURATION_S)
    chosen = [index for index, item in enumerate(world.objects) if item.annotated]
    for time in np.arange(0.0, DURATION_S, 1.5):
        poses, ego = world.object_poses(time), world.ego_pose(time)
        near = [i for i in chosen if np.hypot(*(poses[i, :2, 3] - ego[:2, 3])) < 75.0]
        shapes = [_footprint(*world.objects[i].size_lwh[:2], poses[i]) for i in near]
        shapes.append(_footprint(4.0, 1.8, ego))
        names = [*(world.objects[i].kind for i in near), "ego"]
        centers = np.array([shape.centroid.coords[0] for shape in shapes])
        for a in range(len(shapes)):
            close = np.hypot(*(centers[a + 1 :] - centers[a]).T) < 16.0
            for b in np.flatnonzero(close) + a + 1:
                overlap = shapes[a].intersection(shapes[b]).area
                assert overlap < 0.02, f"{names[a]} and {names[b]} at {time} s: {overlap:.2f} m^2"


@pytest.mark.parametrize("name", ["scene-0061", "scene-0103", "scene-0916"])
def test_every_class_occurs_within_its_range(name):
    world = build_world(name, 0, DURATION_S)
    kinds = np.array(
        [
            CATEGORY_TO_CLASS[KINDS[item.kind].category] if item.annotated else ""
            for item in world.objects
        ]
    )
    times = np.arange(0.0, DURATION_S, 2.0)
    counts = dict.fromkeys(CLASSES, 0.0)
    for time in times:
        offset = world.object_poses(time)[:, :2, 3] - world.ego_pose(time)[:2, 3]
        away = np.linalg.norm(offset, axis=1)
        for class_name in CLASSES:
            near = (kinds == class_name) & (away < RANGE_OF_CLASS[class_name])
            counts[class_name] += near.sum() / len(times)
    assert min(counts.values()) > 0.5, counts
    assert counts["car"] > 4, counts
    assert counts["pedestrian"] > 4, counts


def test_attributes_follow_from_state_and_speed(world):
    by_kind = {}
    for item in world.objects:
        if item.annotated:
            by_kind.setdefault((item.kind, item.parked), item)
    assert by_kind["car", True].attribute(0.0) == "vehicle.parked"
    assert by_kind["car", False].attribute(0.0) == "vehicle.stopped"
    assert by_kind["car", False].attribute(5.0) == "vehicle.moving"
    assert by_kind["bicycle", True].attribute(0.0) == "cycle.without_rider"
    assert by_kind["ridden_bicycle", False].attribute(0.0) == "cycle.with_rider"
    assert by_kind["pedestrian", False].attribute(1.2) == "pedestrian.moving"
    assert by_kind["pedestrian", False].attribute(0.0) == "pedestrian.standing"
    assert by_kind["traffic_cone", True].attribute(0.0) is None


def test_parked_and_moving_cars_differ_only_in_motion(world):
    cars = [item for item in world.objects if item.kind == "car"]
    poses = world.object_poses(10.5)[:, :2, 3] - world.object_poses(9.5)[:, :2, 3]
    speed = np.linalg.norm(poses, axis=1)
    parked = [item.parked for item in cars]
    assert 0.2 < np.mean(parked) < 0.9
    assert all(speed[i] == 0 for i, item in enumerate(world.objects) if item.parked)
    faces = {len(item.mesh.corners) for item in cars if item.parked}
    assert faces == {len(item.mesh.corners) for item in cars if not item.parked}

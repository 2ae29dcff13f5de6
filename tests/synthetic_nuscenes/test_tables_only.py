"""Tables without pictures: the devkit reads them, and their numbers are like those of nuScenes."""

import hashlib
import json

import numpy as np
import pytest
from nuscenes.nuscenes import NuScenes

from projects.bevformer.nuscenes.spec import CATEGORY_TO_CLASS, CLASSES
from projects.synthetic_nuscenes.data_set import create_tables_only

FRAMES = 6
SCENES = ("scene-0001", "scene-0002", "scene-0003")


def make(folder, **options):
    options = {"scenes": SCENES, "workers": 1, **options}
    return create_tables_only(folder, frames_per_scene=FRAMES, show_progress=False, **options)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make(tmp_path_factory.mktemp("tables") / "data")


@pytest.fixture(scope="module")
def nusc(root):
    return NuScenes("v1.0-trainval", str(root), verbose=False)


def test_rows_per_key_frame_match_nuscenes(nusc):
    frames = len(nusc.sample)
    assert frames == FRAMES * len(SCENES)
    assert len(nusc.sensor) == 12
    assert len(nusc.calibrated_sensor) == 12 * len(SCENES)
    between = FRAMES - 1
    per_scene = (6 * 6 + 10 + 5 * 6) * between + 12
    assert len(nusc.sample_data) == len(nusc.ego_pose) == per_scene * len(SCENES)
    assert 15 < len(nusc.sample_annotation) / frames < 60  # nuScenes: 34
    names = {CATEGORY_TO_CLASS[row["category_name"]] for row in nusc.sample_annotation}
    assert len(names & set(CLASSES)) > 6


def test_key_frames_have_all_sensors(nusc):
    for sample in nusc.sample:
        assert len(sample["data"]) == 12
        for token in sample["data"].values():
            data = nusc.get("sample_data", token)
            assert abs(data["timestamp"] - sample["timestamp"]) < 60_000
            assert data["filename"].startswith("samples/")


def test_chains_run_through_all_rows(nusc):
    for table in ("sample_data", "sample_annotation", "sample"):
        rows = getattr(nusc, table)
        for row in rows:
            if row["next"]:
                after = nusc.get(table, row["next"])
                assert after["prev"] == row["token"]
        starts = sum(not row["prev"] for row in rows)
        assert starts == sum(not row["next"] for row in rows) > 0


def test_speeds_and_points_are_believable(nusc):
    speeds = [np.linalg.norm(nusc.box_velocity(a["token"])[:2]) for a in nusc.sample_annotation]
    assert np.nanmax(speeds) < 15
    assert np.nanmin(speeds) == 0
    assert np.mean(np.isnan(speeds)) < 0.1
    points = np.array([a["num_lidar_pts"] for a in nusc.sample_annotation])
    assert 0 < np.mean(points == 0) < 0.3
    assert 3 < np.median(points) < 100


def test_can_bus_follows_the_poses(nusc, root):
    scene = nusc.scene[0]
    messages = json.loads((root / "can_bus" / f"{scene['name']}_pose.json").read_text())
    sample = nusc.get("sample", scene["last_sample_token"])
    pose = nusc.get(
        "ego_pose", nusc.get("sample_data", sample["data"]["LIDAR_TOP"])["ego_pose_token"]
    )
    near = min(messages, key=lambda message: abs(message["utime"] - sample["timestamp"]))
    np.testing.assert_allclose(near["pos"], pose["translation"], atol=0.3)
    assert messages[0]["utime"] < nusc.sample[0]["timestamp"]


def test_bytes_do_not_depend_on_the_number_of_processes(root, tmp_path):
    def digests(folder):
        return {
            str(path.relative_to(folder)): hashlib.md5(path.read_bytes()).hexdigest()
            for path in folder.rglob("*.json")
        }

    assert digests(make(tmp_path / "two", workers=2)) == digests(root)
    assert digests(make(tmp_path / "other", seed=1)) != digests(root)

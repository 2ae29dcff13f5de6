"""Data sets with other cameras than nuScenes' six, from the tables to the score."""

import json
import shutil

import numpy as np
import pytest
import torch
from mmdet3d.core.bbox import LiDARInstance3DBoxes
from nuscenes.nuscenes import NuScenes

from projects.bevformer.datasets import TemporalNuScenesDataset
from projects.bevformer.nuscenes.create_infos import create_nuscenes_infos
from projects.bevformer.nuscenes.infos import load_infos
from projects.bevformer.nuscenes.records import lidar2img_of_camera
from projects.bevformer.nuscenes.spec import CAMERAS, CLASSES
from projects.bevformer.nuscenes.tables import NuScenesTables
from tools._mono3d import write_mono3d


def read_tables(root):
    """Table -> rows."""
    return {p.stem: json.loads(p.read_text()) for p in (root / "v1.0-mini").glob("*.json")}


def without_camera(tables, channel):
    """Remove a camera from the tables."""
    (sensor,) = [row["token"] for row in tables["sensor"] if row["channel"] == channel]
    calibrations = {
        row["token"] for row in tables["calibrated_sensor"] if row["sensor_token"] == sensor
    }
    tables["sensor"] = [row for row in tables["sensor"] if row["token"] != sensor]
    tables["calibrated_sensor"] = [
        row for row in tables["calibrated_sensor"] if row["token"] not in calibrations
    ]
    tables["sample_data"] = [
        row for row in tables["sample_data"] if row["calibrated_sensor_token"] not in calibrations
    ]


def with_copy_of(tables, channel, name):
    """Add a camera that records what another one does."""
    (sensor,) = [row for row in tables["sensor"] if row["channel"] == channel]
    tables["sensor"].append({**sensor, "token": name, "channel": name})
    copies = {}
    for row in list(tables["calibrated_sensor"]):
        if row["sensor_token"] == sensor["token"]:
            copies[row["token"]] = f"{name}{row['token']}"
            tables["calibrated_sensor"].append(
                {**row, "token": copies[row["token"]], "sensor_token": name}
            )
    for row in list(tables["sample_data"]):
        if row["calibrated_sensor_token"] in copies:
            calibration = copies[row["calibrated_sensor_token"]]
            ends = {key: row[key] and f"{name}{row[key]}" for key in ("token", "prev", "next")}
            tables["sample_data"].append({**row, **ends, "calibrated_sensor_token": calibration})


def five(tables):
    without_camera(tables, "CAM_BACK")


def eight(tables):
    with_copy_of(tables, "CAM_BACK", "CAM_ROOF")
    with_copy_of(tables, "CAM_FRONT", "CAM_BUMPER")


RIGS = {
    "five": (five, tuple(name for name in CAMERAS if name != "CAM_BACK")),
    "eight": (eight, (*CAMERAS, "CAM_BUMPER", "CAM_ROOF")),
}


@pytest.fixture(params=RIGS)
def rig(request, synthetic_root, tmp_path):
    """Root of a data set with other cameras, and their names."""
    change, cameras = RIGS[request.param]
    shutil.copytree(str(synthetic_root / "v1.0-mini"), str(tmp_path / "v1.0-mini"))
    for name in ("maps", "can_bus", "samples"):
        (tmp_path / name).symlink_to(synthetic_root / name)
    tables = read_tables(tmp_path)
    change(tables)
    for name, rows in tables.items():
        (tmp_path / "v1.0-mini" / f"{name}.json").write_text(json.dumps(rows))
    assert NuScenesTables(str(tmp_path), "v1.0-mini", check_all=True).cameras == cameras
    return tmp_path, cameras


def test_other_rigs_from_tables_to_score(rig):
    root, cameras = rig
    create_nuscenes_infos(str(root), str(root), "t", "v1.0-mini", str(root))
    path = str(root / "t_infos_temporal_val.pkl")
    infos, metadata = load_infos(path)
    assert metadata["cameras"] == list(cameras)
    nusc = NuScenes("v1.0-mini", str(root), verbose=False)
    images = json.loads(write_mono3d(path, str(root)).read_text())["images"]
    assert len(images) == len(infos) * len(cameras)

    pipeline = [
        {"type": "LoadMultiViewImageFromFiles"},
        {"type": "DefaultFormatBundle3D", "class_names": CLASSES, "with_label": False},
        {"type": "CustomCollect3D", "keys": ["img"]},
    ]
    dataset = TemporalNuScenesDataset(
        path, data_root=str(root), classes=CLASSES, test_mode=True, pipeline=pipeline
    )
    assert dataset.cameras == cameras
    item = dataset[1]
    assert item["img"].data.shape[0] == len(cameras)
    meta = item["img_metas"].data
    assert meta["timestamp"] == infos[1]["timestamp"] / 1e6
    for name, filename, lidar2img in zip(cameras, meta["filename"], meta["lidar2img"]):
        token = nusc.get("sample", infos[1]["token"])["data"][name]
        assert filename == nusc.get_sample_data_path(token)
        np.testing.assert_array_equal(lidar2img, lidar2img_of_camera(infos[1]["cams"][name]))

    results = []
    for index in range(len(dataset)):
        truth = dataset.ground_truth(index)
        known = torch.from_numpy(truth["labels_3d"] >= 0)
        found = {
            "boxes_3d": LiDARInstance3DBoxes(truth["boxes_3d"].tensor[known], box_dim=9),
            "scores_3d": torch.ones(int(known.sum())),
            "labels_3d": torch.from_numpy(truth["labels_3d"])[known],
        }
        results.append({"pts_bbox": found})
    assert dataset.evaluator.score(results)["mean_ap"] > 0.2


def test_missing_key_frame_of_another_camera_is_named(rig):
    root, cameras = rig
    tables = read_tables(root)
    sensors = {row["token"]: row["channel"] for row in tables["sensor"]}
    channel_of = {row["token"]: sensors[row["sensor_token"]] for row in tables["calibrated_sensor"]}
    rows = tables["sample_data"]
    gone = next(row for row in rows if channel_of[row["calibrated_sensor_token"]] == cameras[-1])
    path = root / "v1.0-mini" / "sample_data.json"
    path.write_text(json.dumps([row for row in rows if row is not gone]))
    message = f"sample {gone['sample_token']} has no key frame of {cameras[-1]}"
    with pytest.raises(ValueError, match=message):
        create_nuscenes_infos(str(root), str(root), "t", "v1.0-mini", str(root))

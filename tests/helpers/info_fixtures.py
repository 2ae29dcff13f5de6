"""Handmade info records (no files needed) and the info files of the synthetic data set."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from mmcv.parallel import DataContainer
from nuscenes.nuscenes import NuScenes

from projects.bevformer.datasets import TemporalNuScenesDataset
from projects.bevformer.nuscenes.create_infos import create_nuscenes_infos
from projects.bevformer.nuscenes.spec import CAMERAS, CLASSES

REAL_ROOT = Path(__file__).parents[3] / "shared" / "data" / "nuscenes_real4" / "nuscenes"


@pytest.fixture(scope="session")
def real_root():
    """Four real key frames; a nuScenes root next to the repository."""
    if not REAL_ROOT.is_dir():
        pytest.skip("the real nuScenes fixture is not there")
    return REAL_ROOT


@pytest.fixture(scope="session", params=["synthetic", "real"])
def nuscenes_root(request):
    """A nuScenes root in v1.0-mini's schema; can_bus lies in it or next to it."""
    return Path(request.getfixturevalue(f"{request.param}_root"))


@pytest.fixture(scope="session")
def can_bus_parent(nuscenes_root):
    """What --canbus should be for `nuscenes_root`."""
    return nuscenes_root if (nuscenes_root / "can_bus").is_dir() else nuscenes_root.parent


@pytest.fixture(scope="session")
def info_folder(nuscenes_root, can_bus_parent, tmp_path_factory):
    """Folder with the info files of `nuscenes_root`, tag "test"."""
    folder = tmp_path_factory.mktemp("infos")
    create_nuscenes_infos(str(nuscenes_root), str(folder), "test", "v1.0-mini", str(can_bus_parent))
    return folder


@pytest.fixture(scope="session")
def nusc(nuscenes_root):
    """The devkit's tables of `nuscenes_root`."""
    return NuScenes("v1.0-mini", str(nuscenes_root), verbose=False)


@pytest.fixture
def make_info():
    """Factory of info records with two cars and a wheelchair."""

    def make(scene="scene_a", frame=0, prev="", next="", start_us=1_000_000):
        camera = {
            "data_path": "samples/CAM/0.jpg",
            "sensor2lidar_rotation": np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),
            "sensor2lidar_translation": np.array([0.0, 0.5, -0.3]),
            "cam_intrinsic": np.array([[100.0, 0, 200], [0, 100, 112], [0, 0, 1]]),
        }
        yaw = np.deg2rad(10.0 * (frame + 1))
        return {
            "token": f"{scene}_{frame}",
            "prev": prev,
            "next": next,
            "scene_token": scene,
            "frame_idx": frame,
            "timestamp": start_us + 500_000 * frame,
            "lidar_path": "samples/LIDAR_TOP/0.pcd.bin",
            "cams": {name: dict(camera) for name in CAMERAS},
            "can_bus": np.arange(18.0),
            "can_bus_motion_after": -np.arange(9.0),
            "lidar2ego_translation": [0.9, 0.0, 1.8],
            "lidar2ego_rotation": [np.sqrt(0.5), 0.0, 0.0, -np.sqrt(0.5)],
            "ego2global_translation": [100.0 + 2 * frame, 200.0 + frame, 0.0],
            "ego2global_rotation": [np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)],
            "gt_boxes": np.array(
                [
                    [5.0, 10.0, -1.0, 4.5, 1.9, 1.6, 0.3],
                    [-8.0, 12.0, -1.0, 4.7, 2.0, 1.7, -2.0],
                    [1.0, 3.0, -1.0, 1.0, 0.7, 1.2, 0.0],
                ]
            ),
            "gt_names": np.array(["car", "car", "human.pedestrian.wheelchair"]),
            "gt_velocity": np.array([[1.0, 2.0], [np.nan, np.nan], [0.0, 0.0]]),
            "num_lidar_pts": np.array([3, 0, 5]),
            "num_radar_pts": np.array([0, 2, 0]),
            "valid_flag": np.array([True, True, True]),
        }

    return make


@pytest.fixture
def two_scenes(make_info):
    """Three frames of a first and three of a second scene."""
    return [make_info("scene_a", i) for i in range(3)] + [
        make_info("scene_b", i, start_us=9_000_000) for i in range(3)
    ]


@pytest.fixture
def write_infos(tmp_path):
    """Factory of info files."""

    def write(infos, name="infos.pkl", **metadata):
        metadata = {"version": "v1.0-mini", "box_convention": "lwh_yaw", **metadata}
        metadata = {key: value for key, value in metadata.items() if value is not None}
        path = tmp_path / name
        path.write_bytes(pickle.dumps({"infos": infos, "metadata": metadata}))
        return str(path)

    return write


def collect_without_images(results):
    """A pipeline of one step that opens no file; the image says which frame it is."""
    frame = float(results["sample_idx"][-1])
    metas = {
        key: results[key]
        for key in ("sample_idx", "scene_token", "timestamp", "can_bus", "lidar2img", "cam2img")
    }
    collected = {
        "img": DataContainer(torch.full((len(results["lidar2img"]), 3, 2, 2), frame), stack=True),
        "img_metas": DataContainer(metas, cpu_only=True),
    }
    if "ann_info" in results:
        annotations = results["ann_info"]
        known = annotations["gt_labels_3d"] >= 0
        collected["gt_bboxes_3d"] = DataContainer(annotations["gt_bboxes_3d"][known], cpu_only=True)
        collected["gt_labels_3d"] = DataContainer(torch.tensor(annotations["gt_labels_3d"][known]))
    return collected


@pytest.fixture
def collect():
    """A pipeline of one step that opens no file."""
    return collect_without_images


@pytest.fixture
def make_dataset(write_infos):
    """Factory of datasets over handmade infos that open no file."""

    def make(infos, **options):
        defaults = {"queue_length": 3, "data_root": "root", "classes": CLASSES}
        options = {"pipeline": [collect_without_images], **defaults, **options}
        return TemporalNuScenesDataset(write_infos(infos), **options)

    return make

"""nuScenes tables and CAN bus -> info files; docs/data_format.md describes what comes out.

Frames: matrices are named `src2dst`, are 4x4 float64 and act on column vectors; metres. `lidar` is
LIDAR_TOP at the key frame; each camera has its own ego pose, because it fires at its own time.
"""

import os
import os.path as osp
import pickle
from dataclasses import dataclass, field
from typing import Dict, List

import numpy as np
from nuscenes.nuscenes import NuScenes
from nuscenes.utils.splits import create_splits_scenes
from scipy.spatial.transform import Rotation

from projects.bevformer.datasets.can_bus import (
    CAN_MOTION,
    SCENES_WITHOUT_CAN_BUS,
    SceneCanBus,
    find_can_bus_folder,
)
from projects.bevformer.datasets.table_checks import TABLES, check_tables, read_tables
from projects.bevformer.geometry.boxes import BOX_CONVENTION_NEW
from projects.bevformer.nuscenes_spec import CAMERAS, CAN_SIZE, CATEGORY_TO_CLASS

# --version -> table folders to read; table folder -> {info split: devkit split}.
TABLE_FOLDERS = {
    "v1.0": ("v1.0-trainval", "v1.0-test"),
    "v1.0-trainval": ("v1.0-trainval",),
    "v1.0-test": ("v1.0-test",),
    "v1.0-mini": ("v1.0-mini",),
}
SPLITS = {
    "v1.0-trainval": {"train": "train", "val": "val"},
    "v1.0-test": {"test": "test"},
    "v1.0-mini": {"train": "mini_train", "val": "mini_val"},
}


@dataclass
class InfoSummary:
    """What `create_nuscenes_infos` wrote and what it left out."""

    frames: Dict[str, int] = field(default_factory=dict)  # info file -> number of frames
    scenes_without_can_bus: List[str] = field(default_factory=list)  # can_bus is zeros
    scenes_without_images: List[str] = field(default_factory=list)  # left out
    scenes_in_no_split: List[str] = field(default_factory=list)  # left out


def create_nuscenes_infos(
    root_path, out_dir, extra_tag, version, canbus, max_sweeps=10, progress=iter
):
    """Write `{extra_tag}_infos_temporal_{train,val,test}.pkl`.

    Images and lidar files are not opened. Scenes of which no camera image is there (a part of the
    download) are left out and counted; lidar files need not be there at all.

    Args:
        root_path: nuScenes root, holding `samples`, `maps` and the table folders.
        out_dir: folder for the info files; made where missing.
        extra_tag: first part of the file names.
        version: a key of `TABLE_FOLDERS`; "v1.0" is trainval and test.
        canbus: the folder `can_bus`, or the one it lies in.
        max_sweeps: lidar sweeps before the key frame to list in each info.
        progress: wraps the list of scenes, for a progress bar.

    Returns:
        `InfoSummary`.

    Raises:
        FileNotFoundError: no tables, no CAN bus folder, or no pose file for a scene that has one.
        ValueError: unknown version, unreadable tables, or no scene with images.

    Source: field names as in the original BEVFormer's converter, boxes as in mmdet3d 1.0.0rc6's.
    """
    if version not in TABLE_FOLDERS:
        raise ValueError(f"version {version!r} is not one of {', '.join(TABLE_FOLDERS)}")
    for folder in TABLE_FOLDERS[version]:
        if not osp.isdir(osp.join(root_path, folder)):
            raise FileNotFoundError(
                f"no nuScenes tables at {osp.join(root_path, folder)}: unpack the metadata there, "
                "or check --root-path and --version"
            )
    can_bus_folder = find_can_bus_folder(canbus)
    os.makedirs(out_dir, exist_ok=True)

    summary = InfoSummary()
    for folder in TABLE_FOLDERS[version]:
        nusc = _load_tables(root_path, folder)
        infos = {split: [] for split in SPLITS[folder]}
        for scene in progress(sorted(nusc.scene, key=lambda scene: _first_time_us(nusc, scene))):
            split = _split_of(scene["name"], folder)
            if split is None:
                summary.scenes_in_no_split.append(scene["name"])
            elif not _has_images(nusc, scene):
                summary.scenes_without_images.append(scene["name"])
            else:
                can_bus = _load_can_bus(can_bus_folder, nusc, scene, split)
                if can_bus is None:
                    summary.scenes_without_can_bus.append(scene["name"])
                infos[split] += _scene_infos(nusc, scene, can_bus, max_sweeps)
        if not any(infos.values()):
            raise ValueError(
                f"no scene of {folder} can be used: of {len(nusc.scene)} scenes, "
                f"{len(summary.scenes_without_images)} have no camera images under "
                f"{osp.join(root_path, 'samples')} and {len(summary.scenes_in_no_split)} belong to no split"
            )
        for split, split_infos in infos.items():
            path = osp.join(out_dir, f"{extra_tag}_infos_temporal_{split}.pkl")
            metadata = {"version": folder, "split": split, "box_convention": BOX_CONVENTION_NEW}
            _write_pickle({"infos": split_infos, "metadata": metadata}, path)
            summary.frames[path] = len(split_infos)
    return summary


def _load_tables(root_path, folder):
    path = osp.join(root_path, folder)
    try:
        nusc = NuScenes(version=folder, dataroot=root_path, verbose=False)
    except (AssertionError, OSError, LookupError, TypeError, ValueError, AttributeError) as error:
        check_tables(read_tables(path), path)  # says which file and which field
        raise ValueError(
            f"the devkit cannot read the tables in {path} "
            f"({type(error).__name__}: {error}): unpack the metadata and the maps again"
        ) from error
    check_tables({name: getattr(nusc, name) for name in TABLES}, path)
    return nusc


def _first_time_us(nusc, scene):
    return nusc.get("sample", scene["first_sample_token"])["timestamp"]


def _split_of(scene_name, folder):
    devkit_splits = create_splits_scenes()
    for split, devkit_split in SPLITS[folder].items():
        if scene_name in devkit_splits[devkit_split]:
            return split
    return None


def _has_images(nusc, scene):
    """Whether the first key frame's images are there; the archives hold whole scenes."""
    data = nusc.get("sample", scene["first_sample_token"])["data"]
    return any(
        osp.isfile(nusc.get_sample_data_path(data[camera])) for camera in CAMERAS if camera in data
    )


def _load_can_bus(folder, nusc, scene, split):
    """The scene's CAN bus, or None where there truly is none."""
    name = scene["name"]
    if name in SCENES_WITHOUT_CAN_BUS:
        return None
    if split == "test" and not osp.isfile(osp.join(folder, f"{name}_pose.json")):
        return None
    can_bus = SceneCanBus(folder, name)
    last = nusc.get("sample", scene["last_sample_token"])
    can_bus.check_overlap(_first_time_us(nusc, scene), last["timestamp"])
    return can_bus


def _scene_infos(nusc, scene, can_bus, max_sweeps):
    """Infos of a scene's key frames in time order."""
    infos = []
    token = scene["first_sample_token"]
    while token:
        sample = nusc.get("sample", token)
        infos.append(_frame_info(nusc, sample, len(infos), can_bus, max_sweeps))
        token = sample["next"]
    return infos


def _frame_info(nusc, sample, frame_idx, can_bus, max_sweeps):
    lidar_data = nusc.get("sample_data", sample["data"]["LIDAR_TOP"])
    lidar = _sensor_record(nusc, lidar_data)
    lidar2global = _sensor2global(lidar)

    cams = {}
    for camera in CAMERAS:
        data = nusc.get("sample_data", sample["data"][camera])
        cams[camera] = _sensor_record(nusc, data, lidar2global)
        calibration = nusc.get("calibrated_sensor", data["calibrated_sensor_token"])
        cams[camera]["cam_intrinsic"] = np.array(calibration["camera_intrinsic"])

    time_us = sample["timestamp"]
    info = {
        "lidar_path": lidar["data_path"],
        "token": sample["token"],
        "prev": sample["prev"],
        "next": sample["next"],
        "can_bus": np.zeros(CAN_SIZE) if can_bus is None else can_bus.at(time_us),
        "can_bus_motion_after": (
            np.zeros(CAN_SIZE)[CAN_MOTION] if can_bus is None else can_bus.motion_after(time_us)
        ),
        "frame_idx": frame_idx,
        "sweeps": _sweeps(nusc, lidar_data, lidar2global, max_sweeps),
        "cams": cams,
        "scene_token": sample["scene_token"],
        "lidar2ego_translation": lidar["sensor2ego_translation"],
        "lidar2ego_rotation": lidar["sensor2ego_rotation"],
        "ego2global_translation": lidar["ego2global_translation"],
        "ego2global_rotation": lidar["ego2global_rotation"],
        "timestamp": time_us,
    }
    if nusc.sample_annotation:
        info.update(_annotations(nusc, sample, lidar2global))
    return info


def _sensor_record(nusc, data, lidar2global=None):
    """Where and when a sensor recorded; with `lidar2global` also its pose in the key frame's lidar frame."""
    calibration = nusc.get("calibrated_sensor", data["calibrated_sensor_token"])
    ego_pose = nusc.get("ego_pose", data["ego_pose_token"])
    record = {
        "data_path": data["filename"],
        "type": data["channel"],
        "sample_data_token": data["token"],
        "sensor2ego_translation": calibration["translation"],
        "sensor2ego_rotation": calibration["rotation"],
        "ego2global_translation": ego_pose["translation"],
        "ego2global_rotation": ego_pose["rotation"],
        "timestamp": data["timestamp"],
    }
    if lidar2global is not None:
        sensor2lidar = np.linalg.inv(lidar2global) @ _sensor2global(record)
        record["sensor2lidar_rotation"] = sensor2lidar[:3, :3]
        record["sensor2lidar_translation"] = sensor2lidar[:3, 3]
    return record


def _sensor2global(record):
    sensor2ego = _pose_matrix(record["sensor2ego_rotation"], record["sensor2ego_translation"])
    ego2global = _pose_matrix(record["ego2global_rotation"], record["ego2global_translation"])
    return ego2global @ sensor2ego


def _pose_matrix(rotation_wxyz, translation):
    matrix = np.eye(4)
    matrix[:3, :3] = _rotation_matrices(rotation_wxyz)
    matrix[:3, 3] = translation
    return matrix


def _rotation_matrices(rotations_wxyz):
    """(..., 4) quaternions w, x, y, z -> (..., 3, 3); scipy wants w last."""
    return Rotation.from_quat(np.roll(rotations_wxyz, -1, axis=-1)).as_matrix()


def _sweeps(nusc, lidar_data, lidar2global, max_sweeps):
    """Up to `max_sweeps` lidar records before the key frame, latest first."""
    sweeps = []
    while len(sweeps) < max_sweeps and lidar_data["prev"]:
        lidar_data = nusc.get("sample_data", lidar_data["prev"])
        sweep = _sensor_record(nusc, lidar_data, lidar2global)
        sweep["type"] = "lidar"
        sweeps.append(sweep)
    return sweeps


def _annotations(nusc, sample, lidar2global):
    """Boxes of a key frame in its lidar frame, box convention `BOX_CONVENTION_NEW`, gravity centre."""
    annotations = [nusc.get("sample_annotation", token) for token in sample["anns"]]
    names = [annotation["category_name"] for annotation in annotations]
    global2lidar = np.linalg.inv(lidar2global)

    centers_global = _rows(3, [annotation["translation"] for annotation in annotations])
    centers = centers_global @ global2lidar[:3, :3].T + global2lidar[:3, 3]
    sizes_wlh = _rows(3, [annotation["size"] for annotation in annotations])
    rotations = _rows(4, [annotation["rotation"] for annotation in annotations])
    yaws = _yaws_lidar(rotations, global2lidar)
    # The vertical part is left out before the rotation, as in mmdet3d.
    velocities_global = _rows(2, [nusc.box_velocity(token)[:2] for token in sample["anns"]])
    velocities = velocities_global @ global2lidar[:2, :2].T

    num_lidar_pts = np.array([annotation["num_lidar_pts"] for annotation in annotations], int)
    num_radar_pts = np.array([annotation["num_radar_pts"] for annotation in annotations], int)
    return {
        "gt_boxes": np.concatenate((centers, sizes_wlh[:, [1, 0, 2]], yaws[:, None]), axis=1),
        "gt_names": np.array([CATEGORY_TO_CLASS.get(name, name) for name in names], dtype=str),
        "gt_velocity": velocities,
        "num_lidar_pts": num_lidar_pts,
        "num_radar_pts": num_radar_pts,
        "valid_flag": num_lidar_pts + num_radar_pts > 0,
    }


def _rows(width, rows):
    """Float array (len(rows), width), also where there are no rows."""
    return np.array(rows, dtype=np.float64).reshape(-1, width)


def _yaws_lidar(rotations_wxyz, global2lidar):
    """Yaw of boxes in the lidar frame as mmdet3d 1.0.0rc6 takes it: pyquaternion's `yaw_pitch_roll[0]`.

    It differs from the heading of the box's x axis only by the product of the lidar's roll and pitch.
    """
    if len(rotations_wxyz) == 0:
        return np.zeros(0)  # scipy refuses empty input
    box2lidar = global2lidar[:3, :3] @ _rotation_matrices(rotations_wxyz)  # (G, 3, 3)
    return np.arctan2(-box2lidar[:, 0, 1], box2lidar[:, 0, 0])


def _write_pickle(content, path):
    """Write beside the file and move: an interrupted run leaves no half info file behind."""
    with open(path + ".tmp", "wb") as file:
        pickle.dump(content, file)
    os.replace(path + ".tmp", path)

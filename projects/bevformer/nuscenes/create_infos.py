"""nuScenes tables and CAN bus -> info files; docs/data_format.md describes what comes out.

Frames: matrices are named `src2dst`, are 4x4 float64 and act on column vectors; metres. `lidar` is
LIDAR_TOP at the key frame; each camera has its own ego pose, because it fires at its own time.

Shape legend: F frames of a scene, N cameras, S sensors, G ground truths of a scene.
"""

import multiprocessing
import os
import os.path as osp
import pickle
import signal
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Dict, List

import numpy as np
from nuscenes.utils.splits import create_splits_scenes
from scipy.spatial.transform import Rotation

from projects.bevformer.geometry.boxes import BOX_CONVENTION_NEW
from projects.bevformer.geometry.can_bus import CAN_MOTION, CAN_SIZE
from projects.bevformer.geometry.poses import inverse_poses
from projects.bevformer.io import atomic_write
from projects.bevformer.nuscenes.can_bus import (
    SCENES_WITHOUT_CAN_BUS,
    SceneCanBus,
    find_can_bus_folder,
)
from projects.bevformer.nuscenes.mono3d import mono3d_of_scene, write_mono3d
from projects.bevformer.nuscenes.spec import CAMERAS, CATEGORY_TO_CLASS, TABLE_FOLDERS
from projects.bevformer.nuscenes.table_checks import check_columns, check_tables, read_tables
from projects.bevformer.nuscenes.tables import NuScenesTables

# Table folder -> {info split: devkit split}.
SPLITS = {
    "v1.0-trainval": {"train": "train", "val": "val"},
    "v1.0-test": {"test": "test"},
    "v1.0-mini": {"train": "mini_train", "val": "mini_val"},
}
_PICKLE_PROTOCOL = 4  # the same on every Python


@dataclass
class InfoSummary:
    """What `create_nuscenes_infos` wrote and what it left out."""

    frames: Dict[str, int] = field(default_factory=dict)  # info file -> number of frames
    scenes_without_can_bus: List[str] = field(default_factory=list)  # can_bus is zeros
    scenes_without_images: List[str] = field(default_factory=list)  # left out
    scenes_in_no_split: List[str] = field(default_factory=list)  # left out


def create_nuscenes_infos(
    root_path,
    out_dir,
    extra_tag,
    version,
    canbus,
    max_sweeps=0,
    workers=1,
    need_images=True,
    mono3d=False,
    progress=lambda scenes, total: scenes,
):
    """Write `{extra_tag}_infos_temporal_{train,val,test}.pkl`.

    Images and lidar files are not opened. Scenes of which no camera image is there (a part of the
    download) are left out and counted; lidar files need not be there at all. The bytes of the files
    depend on the data and on `max_sweeps` alone. A file is there whole, or as it was before.

    Args:
        root_path: nuScenes root, holding `samples` and the table folders.
        out_dir: folder for the info files; made where missing.
        extra_tag: first part of the file names.
        version: a key of `TABLE_FOLDERS`; "v1.0" is trainval and test.
        canbus: the folder `can_bus`, or the one it lies in.
        max_sweeps: lidar sweeps before the key frame to list in each info.
        workers: processes; 1 for none but this one.
        need_images: leave out scenes without images.
        mono3d: also write `{extra_tag}_infos_temporal_{split}_mono3d.coco.json`, the boxes of each
            image as mmdet3d's monocular detectors read them; not for the test split.
        progress: wraps the iterator of scenes, for a progress bar.

    Returns:
        `InfoSummary`.

    Raises:
        FileNotFoundError: no tables, no CAN bus folder, or no pose file for a scene that has one.
        ValueError: unknown version, unreadable tables, or no scene with images.

    Source: field names as in the original BEVFormer's converter, boxes as in mmdet3d 1.0.0rc6's.
    """
    if version not in TABLE_FOLDERS:
        raise ValueError(f"version {version!r} is not one of {', '.join(TABLE_FOLDERS)}")
    if workers < 1:
        raise ValueError(f"workers is {workers}; it must be 1 or more")
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
        tables = _read_tables(root_path, folder, with_sweeps=max_sweeps > 0)
        split_of = _scene_splits(folder)
        samples_in_split = dict.fromkeys(SPLITS[folder], 0)  # also of scenes that are left out
        samples_of_scene = Counter(row["scene_token"] for row in tables.samples.values())
        jobs = []
        for scene in sorted(tables.scenes, key=lambda scene: _first_time_us(tables, scene)):
            split = split_of.get(scene["name"])
            if split is None:
                summary.scenes_in_no_split.append(scene["name"])
                continue
            samples_in_split[split] += samples_of_scene[scene["token"]]
            if need_images and not _has_images(tables, scene, root_path):
                summary.scenes_without_images.append(scene["name"])
            else:
                jobs.append((scene, split))
        if not jobs:
            raise ValueError(
                f"no scene of {folder} can be used: of {len(tables.scenes)} scenes, "
                f"{len(summary.scenes_without_images)} have no camera images under "
                f"{osp.join(root_path, 'samples')} and {len(summary.scenes_in_no_split)} belong to no split"
            )
        with_boxes = mono3d and len(tables.annotations.category) > 0
        reader = _SceneReader(tables, can_bus_folder, max_sweeps, with_boxes)
        contents = {split: _SplitContent() for split in SPLITS[folder]}
        results = _run(reader, jobs, workers)
        for pickled, (scene, split) in zip(progress(results, len(jobs)), jobs):
            infos, has_can_bus, images, boxes = pickle.loads(pickled)
            contents[split].infos += infos
            contents[split].images += images
            contents[split].boxes += boxes
            if not has_can_bus:
                summary.scenes_without_can_bus.append(scene["name"])
        for split, content in contents.items():
            path = osp.join(out_dir, f"{extra_tag}_infos_temporal_{split}")
            metadata = {
                "version": folder,
                "split": split,
                "box_convention": BOX_CONVENTION_NEW,
                "samples_in_split": samples_in_split[split],
            }
            with atomic_write(f"{path}.pkl", "wb") as file:
                info_file = {"infos": content.infos, "metadata": metadata}
                pickle.dump(info_file, file, protocol=_PICKLE_PROTOCOL)
            if with_boxes:
                with atomic_write(f"{path}_mono3d.coco.json", "w") as file:
                    write_mono3d(file, content.images, content.boxes)
            summary.frames[f"{path}.pkl"] = len(content.infos)
    return summary


@dataclass
class _SplitContent:
    """What goes into the files of a split; images and boxes as text, see `mono3d_of_scene`."""

    infos: List[dict] = field(default_factory=list)
    images: List[str] = field(default_factory=list)
    boxes: List[str] = field(default_factory=list)


class _SceneReader:
    """Makes the infos of one scene after the other."""

    def __init__(self, tables, can_bus_folder, max_sweeps, mono3d):
        self.tables, self.can_bus_folder = tables, can_bus_folder
        self.max_sweeps, self.mono3d = max_sweeps, mono3d

    def __call__(self, job):
        """Pickled (infos of the scene, whether it has a CAN bus, its mono3d images and annotations).

        Which objects of a record are one and the same shows in the bytes of a pickle. All records go
        through one here, with or without other processes, so that info files are equal byte by byte.
        """
        scene, split = job
        can_bus = _load_can_bus(self.can_bus_folder, self.tables, scene, split)
        infos = _scene_infos(self.tables, scene, can_bus, self.max_sweeps)
        mono3d = ([], [])
        if self.mono3d:
            frames = (self.tables.sample_data[info["token"]] for info in infos)
            sizes = {data.token: data.image_size for frame in frames for data in frame.values()}
            mono3d = mono3d_of_scene(infos, sizes)
        return pickle.dumps((infos, can_bus is not None, *mono3d), protocol=_PICKLE_PROTOCOL)


def _run(reader, jobs, workers):
    """Results of all jobs, in order."""
    workers = min(workers, len(jobs))
    if workers == 1:
        yield from map(reader, jobs)
        return
    # Forked, so that the tables are shared and not sent. An executor, unlike a Pool, notices a worker
    # that was killed for its memory.
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, fork, _set_reader, (reader,)) as executor:
        try:
            yield from executor.map(_read_scene, jobs)
        except BrokenProcessPool as error:
            raise ValueError(
                "a worker process was killed, most likely because memory ran out: fewer --workers need less"
            ) from error


_reader = None


def _set_reader(reader):
    global _reader
    _reader = reader
    # Whatever the forking process made of it: a handler in Python may wait for a lock for ever.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _read_scene(job):
    return _reader(job)


def _read_tables(root_path, folder, with_sweeps):
    """NuScenesTables that can be computed with."""
    try:
        tables = NuScenesTables(root_path, folder, with_sweeps)
        check_columns(tables, osp.join(root_path, folder))
        return tables
    except (ValueError, TypeError, AttributeError, LookupError):
        # Slowly, with all tables as they are: says which file, row and field.
        path = osp.join(root_path, folder)
        check_tables(read_tables(path), path)
        raise


def _scene_splits(folder):
    """Scene name -> info split."""
    devkit_splits = create_splits_scenes()
    return {
        name: split
        for split, devkit_split in SPLITS[folder].items()
        for name in devkit_splits[devkit_split]
    }


def _first_time_us(tables, scene):
    return tables.samples[scene["first_sample_token"]]["timestamp"]


def _has_images(tables, scene, root_path):
    """Whether the first key frame's images are there; the archives hold whole scenes."""
    data = tables.sample_data[scene["first_sample_token"]]
    return any(
        osp.isfile(osp.join(root_path, data[camera].filename))
        for camera in CAMERAS
        if camera in data
    )


def _load_can_bus(folder, tables, scene, split):
    """The scene's CAN bus, or None where there truly is none."""
    name = scene["name"]
    if name in SCENES_WITHOUT_CAN_BUS:
        return None
    if split == "test" and not osp.isfile(osp.join(folder, f"{name}_pose.json")):
        return None
    can_bus = SceneCanBus(folder, name)
    last = tables.samples[scene["last_sample_token"]]
    can_bus.check_overlap(_first_time_us(tables, scene), last["timestamp"])
    return can_bus


def _scene_infos(tables, scene, can_bus, max_sweeps):
    """Infos of a scene's key frames in time order."""
    samples = _samples_of(tables, scene)
    records = [_key_frame_records(tables, sample) for sample in samples]
    sensor2global = _sensors2global(records)  # (F, 1 + N, 4, 4)
    lidar2global = sensor2global[:, 0]
    global2lidar = inverse_poses(lidar2global)
    sensor2lidar = global2lidar[:, None] @ sensor2global
    annotations = [{}] * len(samples)
    if len(tables.annotations.category):
        annotations = _annotations(tables, samples, global2lidar)

    infos = []
    intrinsics = {}  # one array for all frames: a pickle holds an object once
    for frame_idx, (sample, (lidar, *cameras)) in enumerate(zip(samples, records)):
        for camera, matrix in zip(cameras, sensor2lidar[frame_idx, 1:]):
            camera.update(_in_lidar_frame(matrix))
            # Last, as in the original's files.
            rows = tables.sample_data[sample["token"]][camera["type"]].calibration.camera_intrinsic
            camera["cam_intrinsic"] = intrinsics.setdefault(id(rows), np.array(rows))
        time_us = sample["timestamp"]
        infos.append(
            {
                "lidar_path": lidar["data_path"],
                "token": sample["token"],
                "prev": sample["prev"],
                "next": sample["next"],
                "can_bus": np.zeros(CAN_SIZE) if can_bus is None else can_bus.at(time_us),
                "can_bus_motion_after": (
                    np.zeros(CAN_SIZE)[CAN_MOTION]
                    if can_bus is None
                    else can_bus.motion_after(time_us)
                ),
                "frame_idx": frame_idx,
                "sweeps": _sweeps(tables, sample, global2lidar[frame_idx], max_sweeps),
                "cams": {camera["type"]: camera for camera in cameras},
                "scene_token": scene["token"],
                "lidar2ego_translation": lidar["sensor2ego_translation"],
                "lidar2ego_rotation": lidar["sensor2ego_rotation"],
                "ego2global_translation": lidar["ego2global_translation"],
                "ego2global_rotation": lidar["ego2global_rotation"],
                "timestamp": time_us,
                **annotations[frame_idx],
            }
        )
    return infos


def _samples_of(tables, scene):
    """Rows of the sample table, from the first key frame of a scene to its last."""
    samples = []
    token = scene["first_sample_token"]
    while token:
        samples.append(tables.samples[token])
        token = samples[-1]["next"]
    return samples


def _key_frame_records(tables, sample):
    """Where and when the lidar and the six cameras recorded a key frame."""
    data = tables.sample_data[sample["token"]]
    return [_sensor_record(tables, data[channel]) for channel in ("LIDAR_TOP", *CAMERAS)]


def _sensor_record(tables, data):
    pose = tables.ego_poses[data.ego_pose_token]
    return {
        "data_path": data.filename,
        "type": data.calibration.channel,
        "sample_data_token": data.token,
        "sensor2ego_translation": data.calibration.translation,
        "sensor2ego_rotation": data.calibration.rotation,
        "ego2global_translation": pose.translation,
        "ego2global_rotation": pose.rotation,
        "timestamp": data.timestamp,
    }


def _sensors2global(records):
    """(F, S, 4, 4) of F lists of S sensor records."""

    def matrices(name):
        rotations = np.array([[r[f"{name}_rotation"] for r in frame] for frame in records])
        translations = np.array([[r[f"{name}_translation"] for r in frame] for frame in records])
        poses = np.zeros((*rotations.shape[:2], 4, 4))
        poses[..., :3, :3] = _rotation_matrices(rotations)
        poses[..., :3, 3] = translations
        poses[..., 3, 3] = 1.0
        return poses

    return matrices("ego2global") @ matrices("sensor2ego")


def _rotation_matrices(rotations_wxyz):
    """(..., 4) quaternions w, x, y, z -> (..., 3, 3); scipy wants w last, and one row or more."""
    rotations = np.roll(rotations_wxyz, -1, axis=-1).reshape(-1, 4)
    if len(rotations) == 0:
        return np.zeros((*rotations_wxyz.shape[:-1], 3, 3))
    return Rotation.from_quat(rotations).as_matrix().reshape(*rotations_wxyz.shape[:-1], 3, 3)


def _in_lidar_frame(sensor2lidar):
    return {
        "sensor2lidar_rotation": sensor2lidar[:3, :3],
        "sensor2lidar_translation": sensor2lidar[:3, 3],
    }


def _sweeps(tables, sample, global2lidar, max_sweeps):
    """Up to `max_sweeps` lidar records before the key frame, latest first."""
    data = tables.sample_data[sample["token"]]["LIDAR_TOP"]
    sweeps = []
    while len(sweeps) < max_sweeps and data.prev:
        data = tables.lidar_data[data.prev]
        sweeps.append({**_sensor_record(tables, data), "type": "lidar"})
    if sweeps:
        for sweep, matrix in zip(sweeps, global2lidar @ _sensors2global([sweeps])[0]):
            sweep.update(_in_lidar_frame(matrix))
    return sweeps


def _annotations(tables, samples, global2lidar):
    """Boxes of key frames in their lidar frames, convention `BOX_CONVENTION_NEW`, gravity centre.

    Args:
        tables: NuScenesTables.
        samples: F rows of the sample table.
        global2lidar: (F, 4, 4).

    Returns:
        F dicts of the annotation fields.
    """
    columns = tables.annotations
    rows = [tables.annotations_of[sample["token"]] for sample in samples]
    counts = [len(of_frame) for of_frame in rows]
    rows = np.array([row for of_frame in rows for row in of_frame], dtype=np.int64)
    of_box = np.repeat(global2lidar, counts, axis=0)  # (G, 4, 4)

    centers_global, sizes_wlh = columns.translation[rows], columns.size_wlh[rows]
    rotations = columns.rotation_wxyz[rows]
    centers = np.einsum("gij,gj->gi", of_box[:, :3, :3], centers_global) + of_box[:, :3, 3]
    yaws = _yaws_lidar(rotations, of_box)
    boxes = np.concatenate((centers, sizes_wlh[:, [1, 0, 2]], yaws[:, None]), axis=1)
    # The vertical part is left out before the rotation, as in mmdet3d.
    velocities = np.einsum("gij,gj->gi", of_box[:, :2, :2], columns.velocity[rows])
    num_lidar_pts, num_radar_pts = columns.num_lidar_pts[rows], columns.num_radar_pts[rows]
    names = [columns.category[row] for row in rows]
    names = [CATEGORY_TO_CLASS.get(name, name) for name in names]
    attributes = [columns.attribute[row] for row in rows]

    frames = []
    stop = 0
    # Names are kept as objects: an array of fixed width is as wide as the longest name, in every row.
    for count in counts:
        here = slice(stop, stop + count)
        stop += count
        frames.append(
            {
                "gt_boxes": boxes[here],
                "gt_names": np.array(names[here], dtype=object),
                "gt_velocity": velocities[here],
                "gt_centers_global": centers_global[here],
                "gt_rotations_global": rotations[here],
                "gt_attributes": np.array(attributes[here], dtype=object),
                "num_lidar_pts": num_lidar_pts[here],
                "num_radar_pts": num_radar_pts[here],
                "valid_flag": num_lidar_pts[here] + num_radar_pts[here] > 0,
            }
        )
    return frames


def _yaws_lidar(rotations_wxyz, global2lidar):
    """Yaw of boxes in the lidar frame as mmdet3d 1.0.0rc6 takes it: pyquaternion's `yaw_pitch_roll[0]`.

    It differs from the heading of the box's x axis only by the product of the lidar's roll and pitch.
    """
    # The first row of box2lidar is all it takes.
    row = np.einsum("gi,gij->gj", global2lidar[:, 0, :3], _rotation_matrices(rotations_wxyz))
    return np.arctan2(-row[:, 1], row[:, 0])

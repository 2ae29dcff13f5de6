"""Info records of one scene, from the nuScenes tables and the CAN bus.

Frames: matrices are named `src2dst`, are 4x4 float64 and act on column vectors; metres. `lidar` is
LIDAR_TOP at the key frame; each camera has its own ego pose, because it fires at its own time.

Shape legend: F frames of a scene, N cameras, S sensors, G ground truths of a scene.
"""

from __future__ import annotations

import numpy as np

from projects.bevformer.geometry import rotations
from projects.bevformer.geometry.can_bus import CAN_MOTION, CAN_SIZE
from projects.bevformer.geometry.poses import inverse_poses, pose_matrix
from projects.bevformer.nuscenes.can_bus import SceneCanBus
from projects.bevformer.nuscenes.spec import CATEGORY_TO_CLASS
from projects.bevformer.nuscenes.table_rows import Row
from projects.bevformer.nuscenes.tables import NuScenesTables


def scene_infos(
    tables: NuScenesTables, scene: Row, can_bus: SceneCanBus | None, max_sweeps: int
) -> list[dict]:
    """Infos of a scene's key frames, in time order.

    Args:
        tables: the tables.
        scene: row of the scene table.
        can_bus: of the scene; None for zeros.
        max_sweeps: lidar sweeps before the key frame to list in each info.

    Source: field names as in the original BEVFormer's converter, boxes as in mmdet3d 1.0.0rc6's.
    """
    samples = tables.samples_of[scene["token"]]
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
            data = tables.sample_data[sample["token"]][camera["type"]]
            rows = data.calibration.camera_intrinsic
            camera["cam_intrinsic"] = intrinsics.setdefault(id(rows), np.array(rows))
            camera["width"], camera["height"] = data.image_size
        time_us = sample["timestamp"]
        at, motion_after = np.zeros(CAN_SIZE), np.zeros(CAN_SIZE)[CAN_MOTION]
        if can_bus is not None:
            at, motion_after = can_bus.at(time_us), can_bus.motion_after(time_us)
        infos.append(
            {
                "lidar_path": lidar["data_path"],
                "token": sample["token"],
                "prev": sample["prev"],
                "next": sample["next"],
                "can_bus": at,
                "can_bus_motion_after": motion_after,
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


def _key_frame_records(tables, sample):
    """Where and when the lidar and the cameras recorded a key frame."""
    data = tables.sample_data[sample["token"]]
    return [_sensor_record(tables, data[channel]) for channel in ("LIDAR_TOP", *tables.cameras)]


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
    ego2global, sensor2ego = (
        pose_matrix(
            *(np.array([[r[f"{name}_{part}"] for r in frame] for frame in records])
              for part in ("rotation", "translation"))
        )
        for name in ("ego2global", "sensor2ego")
    )  # fmt: skip
    return ego2global @ sensor2ego


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
    turns_wxyz = columns.rotation_wxyz[rows]
    centers = np.einsum("gij,gj->gi", of_box[:, :3, :3], centers_global) + of_box[:, :3, 3]
    yaws = _yaws_lidar(turns_wxyz, of_box)
    boxes = np.concatenate((centers, sizes_wlh[:, [1, 0, 2]], yaws[:, None]), axis=1)
    # The vertical part is left out before the rotation, as in mmdet3d.
    velocities = np.einsum("gij,gj->gi", of_box[:, :2, :2], columns.velocity[rows])
    num_lidar_pts, num_radar_pts = columns.num_lidar_pts[rows], columns.num_radar_pts[rows]
    names = [columns.category[row] for row in rows]
    names = [CATEGORY_TO_CLASS.get(name, name) for name in names]
    attributes = [columns.attribute[row] for row in rows]

    frames = []
    stop = 0
    # dtype=object, because a fixed-width string array pads every row to the longest name.
    for count in counts:
        here = slice(stop, stop + count)
        stop += count
        frames.append(
            {
                "gt_boxes": boxes[here],
                "gt_names": np.array(names[here], dtype=object),
                "gt_velocity": velocities[here],
                "gt_centers_global": centers_global[here],
                "gt_rotations_global": turns_wxyz[here],
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
    # Only the first row of box2lidar is needed.
    row = np.einsum("gi,gij->gj", global2lidar[:, 0, :3], rotations.matrices(rotations_wxyz))
    return np.arctan2(-row[:, 1], row[:, 0])

"""The plain way to make an info: the devkit's own functions, sample by sample, box by box.

It takes its time, and is the reference of the tests and of benchmarks/bench_data.py.
"""

import json
from pathlib import Path

import numpy as np
from pyquaternion import Quaternion

from projects.bevformer.nuscenes.spec import CAMERAS, CATEGORY_TO_CLASS

_CAN_FIELDS = ("pos", "orientation", "accel", "rotation_rate", "vel")


def devkit_info(nusc, sample, can_bus_folder, max_sweeps=0):
    """The info of one key frame.

    Args:
        nusc: the devkit's tables.
        sample: row of the sample table.
        can_bus_folder: the folder `can_bus`; None for zeros.
        max_sweeps: lidar sweeps before the key frame.

    Returns:
        dict of fields as in an info file, without `frame_idx`.
    """
    lidar_token = sample["data"]["LIDAR_TOP"]
    lidar = _sensor(nusc, lidar_token)
    lidar_path, boxes, _ = nusc.get_sample_data(lidar_token)
    cams = {}
    for name in CAMERAS:
        token = sample["data"][name]
        path, _, intrinsic = nusc.get_sample_data(token)
        cams[name] = _sensor(nusc, token)
        cams[name]["data_path"] = str(Path(path).relative_to(nusc.dataroot))
        data = nusc.get("sample_data", token)
        cams[name].update(_to_lidar(cams[name], lidar), cam_intrinsic=intrinsic)
        cams[name].update(width=data["width"], height=data["height"])
    can_bus, motion_after = _can_bus(nusc, sample, can_bus_folder)
    info = {
        "lidar_path": str(Path(lidar_path).relative_to(nusc.dataroot)),
        "token": sample["token"],
        "prev": sample["prev"],
        "next": sample["next"],
        "can_bus": can_bus,
        "can_bus_motion_after": motion_after,
        "sweeps": _sweeps(nusc, lidar, max_sweeps),
        "cams": cams,
        "scene_token": sample["scene_token"],
        "lidar2ego_translation": lidar["sensor2ego_translation"],
        "lidar2ego_rotation": lidar["sensor2ego_rotation"],
        "ego2global_translation": lidar["ego2global_translation"],
        "ego2global_rotation": lidar["ego2global_rotation"],
        "timestamp": sample["timestamp"],
    }
    annotations = [nusc.get("sample_annotation", token) for token in sample["anns"]]
    global2lidar = _rotation(lidar["sensor2ego_rotation"]).T @ (
        _rotation(lidar["ego2global_rotation"]).T
    )
    velocities = [
        (global2lidar @ [*nusc.box_velocity(token)[:2], 0.0])[:2] for token in sample["anns"]
    ]
    attributes = [
        nusc.get("attribute", a["attribute_tokens"][0])["name"] if a["attribute_tokens"] else ""
        for a in annotations
    ]
    points = np.array([[a["num_lidar_pts"], a["num_radar_pts"]] for a in annotations], int)
    points = points.reshape(-1, 2)
    info.update(
        gt_boxes=np.array(
            [(*b.center, *b.wlh[[1, 0, 2]], b.orientation.yaw_pitch_roll[0]) for b in boxes]
        ).reshape(-1, 7),
        gt_names=np.array([CATEGORY_TO_CLASS.get(b.name, b.name) for b in boxes], dtype=str),
        gt_velocity=np.array(velocities).reshape(-1, 2),
        gt_centers_global=np.array([a["translation"] for a in annotations]).reshape(-1, 3),
        gt_rotations_global=np.array([a["rotation"] for a in annotations]).reshape(-1, 4),
        gt_attributes=np.array(attributes, dtype=str),
        num_lidar_pts=points[:, 0],
        num_radar_pts=points[:, 1],
        valid_flag=points.sum(axis=1) > 0,
    )
    return info


def _rotation(wxyz):
    return Quaternion(wxyz).rotation_matrix


def _sensor(nusc, token):
    data = nusc.get("sample_data", token)
    calibration = nusc.get("calibrated_sensor", data["calibrated_sensor_token"])
    pose = nusc.get("ego_pose", data["ego_pose_token"])
    return {
        "type": data["channel"],
        "sample_data_token": data["token"],
        "sensor2ego_translation": calibration["translation"],
        "sensor2ego_rotation": calibration["rotation"],
        "ego2global_translation": pose["translation"],
        "ego2global_rotation": pose["rotation"],
        "timestamp": data["timestamp"],
    }


def _sweeps(nusc, lidar, count):
    sweeps = []
    data = nusc.get("sample_data", lidar["sample_data_token"])
    while len(sweeps) < count and data["prev"]:
        data = nusc.get("sample_data", data["prev"])
        sweep = {**_sensor(nusc, data["token"]), "data_path": data["filename"], "type": "lidar"}
        sweeps.append({**sweep, **_to_lidar(sweep, lidar)})
    return sweeps


def _to_lidar(sensor, lidar):
    """Sensor -> its ego -> global -> ego of the lidar -> lidar, step by step."""
    rotation, translation = np.eye(3), np.zeros(3)
    for name in ("sensor2ego", "ego2global"):
        step = _rotation(sensor[f"{name}_rotation"])
        rotation = step @ rotation
        translation = step @ translation + sensor[f"{name}_translation"]
    for name in ("ego2global", "sensor2ego"):
        step = _rotation(lidar[f"{name}_rotation"]).T
        rotation = step @ rotation
        translation = step @ (translation - lidar[f"{name}_translation"])
    return {"sensor2lidar_rotation": rotation, "sensor2lidar_translation": translation}


def _can_bus(nusc, sample, folder):
    """Vector of the last message at or before the sample, and motion of the one after it."""
    if folder is None:
        return np.zeros(18), np.zeros(9)
    scene = nusc.get("scene", sample["scene_token"])["name"]
    messages = json.loads((Path(folder) / f"{scene}_pose.json").read_text())
    before, after = messages[0], messages[-1]
    for message in messages:
        if message["utime"] > sample["timestamp"]:
            after = message
            break
        before = message
    vector = np.concatenate([*(before[field] for field in _CAN_FIELDS), [0.0, 0.0]])
    return vector, np.concatenate([after[field] for field in _CAN_FIELDS[2:]])

"""Whether poses, cameras and times of an info file are in the units and orders that they should be."""

from __future__ import annotations

from typing import Any, Mapping, Sequence

import numpy as np

from projects.bevformer.geometry import rotations
from projects.bevformer.geometry.poses import inverse_poses, pose_matrix
from projects.bevformer.nuscenes.records import boxes_global, poses_of

_REMEDY = "write the file again with tools/create_data.py"
_ON_A_VEHICLE = 50  # metres from the ego frame or the lidar
_TILT = 60  # degrees; neither streets nor lidars are so steep
_COMPARED_FRAMES = 64
# Between a camera's pose in the file and the one that follows from its ego pose. Files that leave out the
# vehicle's motion between lidar and camera differ by less.
_CAMERA_DEGREES, _CAMERA_METRES = 5, 3
_BOX_METRES, _BOX_DEGREES = 0.1, 15  # boxes are turned about z of the lidar only, which is tilted
_SHORTEST_FOCAL = 5  # pixels; in parts of the image's size it is about 1
_SPACING_US = (1e3, 1e8)  # of key frames, median
_FASTEST = 100  # m/s


_Rows = Mapping[str, np.ndarray]


def check_poses(poses: _Rows, cameras: Mapping[str, _Rows], path: str) -> None:
    """Refuse poses and calibrations that are in other units, orders or directions.

    Args:
        poses: field of a record -> (F, ...).
        cameras: camera -> field -> (F, ...).
        path: the file, for messages.

    Raises:
        ValueError: names field and frame.
    """
    for name, what in (("lidar2ego", "lidar"), ("ego2global", "vehicle")):
        field = f"{name}_rotation"
        wxyz = poses[field]
        norms = np.linalg.norm(wxyz, axis=1)
        _require(np.abs(norms - 1) < 0.01, f"{path}: {field} of frame", "is not of length 1")
        cosine = 1 - 2 * (wxyz[:, 1] ** 2 + wxyz[:, 2] ** 2)
        reason = f"tilts the {what} by more than {_TILT} degrees; quaternions are w, x, y, z"
        _require(cosine > np.cos(np.radians(_TILT)), f"{path}: {field} of frame", reason)
    on_vehicle = {"lidar2ego_translation": poses["lidar2ego_translation"]}
    for name, camera in cameras.items():
        prefix = f"cams.{name}."
        field = "sensor2lidar_translation"
        on_vehicle[prefix + field] = camera[field]
        rotation = camera["sensor2lidar_rotation"]
        _require(
            (np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2)) < 0.01)
            & (np.linalg.det(rotation) > 0),
            f"{path}: {prefix}sensor2lidar_rotation of frame",
            "is not a rotation: an orthogonal matrix of determinant 1",
        )
        intrinsic = camera["cam_intrinsic"]
        _require(
            (np.abs(intrinsic[:, 2] - (0, 0, 1)).max(axis=1) < 1e-3)
            & (intrinsic[:, [0, 1], [0, 1]] > _SHORTEST_FOCAL).all(axis=1),
            f"{path}: {prefix}cam_intrinsic of frame",
            "is not fx, 0, cx; 0, fy, cy; 0, 0, 1 in pixels",
        )
    for field, offsets in on_vehicle.items():
        reason = f"is further than {_ON_A_VEHICLE} m away: it must be in metres"
        near = np.linalg.norm(offsets, axis=1) < _ON_A_VEHICLE
        _require(near, f"{path}: {field} of frame", reason)


def check_motion(infos: Sequence[dict], path: str) -> None:
    """Refuse times that are not microseconds, and positions that are not metres.

    Args:
        infos: scene after scene in time order.
        path: the file, for messages.

    Raises:
        ValueError: names the field, with the spacing or the speed.
    """
    scenes = np.array([info["scene_token"] for info in infos])
    same_scene = np.flatnonzero(scenes[1:] == scenes[:-1])
    if not len(same_scene):
        return
    spacing_us = np.diff(_rows(infos, "timestamp"))[same_scene]
    if spacing_us.min() <= 0:
        first = same_scene[spacing_us.argmin()]
        raise ValueError(
            f"{path}: samples {infos[first]['token']} and {infos[first + 1]['token']} of one scene have "
            f"the same timestamp: {_REMEDY}"
        )
    median_us = np.median(spacing_us)
    if not _SPACING_US[0] <= median_us <= _SPACING_US[1]:
        raise ValueError(
            f"{path}: the timestamps of neighbouring frames differ by {median_us:g} (median): they must "
            f"be in microseconds, about 500000 apart in nuScenes: {_REMEDY}"
        )
    moved = np.diff(_rows(infos, "ego2global_translation"), axis=0)[same_scene]
    speed = np.quantile(np.linalg.norm(moved, axis=1) / (spacing_us / 1e6), 0.9)
    if speed > _FASTEST:
        raise ValueError(
            f"{path}: by ego2global_translation the vehicle drives at {speed:.0f} m/s: it must be in "
            f"metres: {_REMEDY}"
        )


def compare_cameras(infos: Sequence[dict], cameras: Sequence[str], path: str) -> None:
    """Compare `sensor2lidar` of the cameras with their poses, where some frames have these.

    Raises:
        ValueError: names camera and frame.
    """
    step = max(1, len(infos) // _COMPARED_FRAMES)
    for name in cameras:
        _compare_camera(infos[::step], name, step, path)


def _compare_camera(infos, name, step, path):
    records = [info["cams"][name] for info in infos]
    try:
        sensor2global = _poses(records, "ego2global") @ _poses(records, "sensor2ego")
        found = np.tile(np.eye(4), (len(records), 1, 1))
        found[:, :3, :3] = _rows(records, "sensor2lidar_rotation")
        found[:, :3, 3] = _rows(records, "sensor2lidar_translation")
    except (KeyError, TypeError, ValueError):
        return  # optional fields, which nothing else reads
    lidar2global = _poses(infos, "ego2global") @ _poses(infos, "lidar2ego")
    expected = inverse_poses(lidar2global) @ sensor2global
    cosine = (np.einsum("nij,nij->n", expected[:, :3, :3], found[:, :3, :3]) - 1) / 2
    degrees = np.degrees(np.arccos(cosine.clip(-1, 1)))
    metres = np.linalg.norm(expected[:, :3, 3] - found[:, :3, 3], axis=1)
    for position in np.flatnonzero((degrees > _CAMERA_DEGREES) | (metres > _CAMERA_METRES))[:1]:
        raise ValueError(
            f"{path}: cams.{name} of frame {position * step}: sensor2lidar differs by "
            f"{degrees[position]:.0f} degrees and {metres[position]:.1f} m from the pose that "
            "sensor2ego, ego2global and lidar2ego give (point_lidar = R @ point_camera + t, quaternions "
            f"w, x, y, z, metres): {_REMEDY}"
        )


def compare_boxes(infos: Sequence[dict], path: str) -> None:
    """Compare `gt_boxes` of "lwh_yaw", which are trained, with the fields that are scored, if there are.

    Raises:
        ValueError: names the frame.
    """
    step = max(1, len(infos) // _COMPARED_FRAMES)
    scored = ("gt_centers_global", "gt_rotations_global")
    for position, info in list(enumerate(infos))[::step]:
        if not all(len(info.get(field, ())) for field in ("gt_boxes", *scored)):
            continue
        found = boxes_global(info)
        expected = boxes_global({key: value for key, value in info.items() if key not in scored})
        metres = np.linalg.norm((found - expected)[:, :3], axis=1)
        cosine = np.abs((rotations.normalise(found[:, 6:]) * expected[:, 6:]).sum(axis=1))
        degrees = np.degrees(2 * np.arccos(cosine.clip(max=1)))
        bad = np.flatnonzero((metres > _BOX_METRES) | (degrees > _BOX_DEGREES))
        if len(bad):
            raise ValueError(
                f"{path}: row {bad[0]} of gt_boxes of frame {position} differs by {metres[bad[0]]:.1f} m "
                f"and {degrees[bad[0]]:.0f} degrees from gt_centers_global and gt_rotations_global: "
                "gt_boxes must be of the centre of the box, in the frame of the lidar (without the two "
                f"fields the truth follows from gt_boxes): {_REMEDY}"
            )


def _poses(records: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """(n, 4, 4)"""
    return pose_matrix(*poses_of(records, name))


def _rows(records: Sequence[Mapping[str, Any]], field: str) -> np.ndarray:
    return np.array([record[field] for record in records], dtype=np.float64)


def _require(good: np.ndarray, where: str, reason: str) -> None:
    if not good.all():
        raise ValueError(f"{where} {int(np.argmin(good))} {reason}: {_REMEDY}")

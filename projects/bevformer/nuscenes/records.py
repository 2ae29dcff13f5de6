"""What follows from one record of an info file: matrices, global boxes, the `can_bus` vector.

Frames: matrices are named `src2dst`, are 4x4 float64 and act on column vectors; metres. Camera axes: x
right, y down, z forward.

Shape legend: G ground truths.
"""

from __future__ import annotations

from typing import Any, Mapping, Sequence

import numpy as np

from projects.bevformer.geometry import rotations
from projects.bevformer.geometry.can_bus import (
    CAN_MOTION,
    CAN_ORIENTATION,
    CAN_POSITION,
    CAN_YAW_DEG,
    CAN_YAW_RAD,
)
from projects.bevformer.geometry.poses import pose_matrix, rigid_matrix

Record = Mapping[str, Any]


def lidar2cam_of_camera(record: Record) -> np.ndarray:
    """(4, 4) lidar frame of the key frame to camera frame, from an entry of `info["cams"]`."""
    rotation = np.asarray(record["sensor2lidar_rotation"], dtype=np.float64)
    return rigid_matrix(rotation.T, -rotation.T @ record["sensor2lidar_translation"])


def cam2img_of_camera(record: Record) -> np.ndarray:
    """(4, 4) camera frame to homogeneous pixels, from an entry of `info["cams"]`."""
    return rigid_matrix(record["cam_intrinsic"], 0.0)


def lidar2img_of_camera(record: Record) -> np.ndarray:
    """Projection of one camera.

    Args:
        record: an entry of `info["cams"]`.

    Returns:
        (4, 4), maps homogeneous lidar points to (u*d, v*d, d, 1): pixels of the image as recorded, d the
        depth in metres.
    """
    return cam2img_of_camera(record) @ lidar2cam_of_camera(record)


def recorded_size(record: Record) -> tuple[int, int] | None:
    """Width and height of the images of an entry of `info["cams"]`; None where it does not say."""
    size = int(record.get("width", 0)), int(record.get("height", 0))
    return size if all(size) else None


def lidar2global_of(info: Record) -> np.ndarray:
    """(4, 4) lidar frame of the key frame to global frame."""
    lidar2ego, ego2global = (
        pose_matrix(info[f"{name}_rotation"], info[f"{name}_translation"])
        for name in ("lidar2ego", "ego2global")
    )
    return ego2global @ lidar2ego


def poses_of(records: Sequence[Record], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Unit quaternions (F, 4) and translations (F, 3), m, of a pose of F records.

    Args:
        records: info records, or entries of their `cams`.
        name: such as "lidar2ego".
    """
    turns = np.array([record[f"{name}_rotation"] for record in records], np.float64)
    translations = np.array([record[f"{name}_translation"] for record in records], np.float64)
    return rotations.normalise(turns.reshape(-1, 4)), translations.reshape(-1, 3)


def boxes_global(info: Record) -> np.ndarray:
    """(G, 10) x, y, z, w, l, h, quaternion w, x, y, z of a record's objects in the global frame, m.

    These are the tables' own numbers where the record has them: at the edge of a threshold rounding would
    decide. Otherwise they follow from `gt_boxes`.
    """
    if "gt_centers_global" not in info or "gt_rotations_global" not in info:
        return _boxes_global_from_lidar(info)
    sizes_wlh = info["gt_boxes"][:, [4, 3, 5]]
    return np.concatenate(
        (info["gt_centers_global"], sizes_wlh, info["gt_rotations_global"]), axis=1
    )


def _boxes_global_from_lidar(info: Record) -> np.ndarray:
    boxes, lidar2global = info["gt_boxes"].reshape(-1, 7), lidar2global_of(info)
    turn = rotations.multiply(*(poses_of([info], name)[0] for name in ("ego2global", "lidar2ego")))
    turns = rotations.multiply(turn.repeat(len(boxes), axis=0), rotations.about_z(boxes[:, 6]))
    centers = boxes[:, :3] @ lidar2global[:3, :3].T + lidar2global[:3, 3]
    return np.concatenate((centers, boxes[:, [4, 3, 5]], turns), axis=1)


def velocities_global(info: Record) -> np.ndarray:
    """(G, 2) velocities of a record's objects along the global axes, m/s, up to rounding."""
    # The vertical part was dropped before the rotation, so this matrix is not a rotation: invert it.
    global2lidar_xy = lidar2global_of(info)[:2, :2].T
    return info["gt_velocity"].reshape(-1, 2) @ np.linalg.inv(global2lidar_xy).T


def can_bus_of(info: Record, quaternion: str = "wxyz", message: str = "same") -> np.ndarray:
    """The `can_bus` vector of a frame, with the ego pose of the tables in place of the CAN bus's own.

    Args:
        info: record of an info file.
        quaternion, message: `can_bus_quaternion` and `can_bus_message` of TemporalNuScenesDataset.

    Returns:
        (18,) float64, columns as in `geometry.can_bus`; position and yaw are absolute.
    """
    can_bus = np.array(info["can_bus"], dtype=np.float64)
    if message == "official" and "can_bus_motion_after" in info:
        can_bus[CAN_MOTION] = info["can_bus_motion_after"]
    rotation = info["ego2global_rotation"]
    can_bus[CAN_ORIENTATION] = rotation[0] if quaternion == "official" else rotation
    can_bus[CAN_POSITION] = info["ego2global_translation"]
    heading = rotations.matrices(rotation)[:, 0]
    yaw_rad = np.arctan2(heading[1], heading[0]) % (2 * np.pi)
    can_bus[CAN_YAW_RAD] = yaw_rad
    can_bus[CAN_YAW_DEG] = np.rad2deg(yaw_rad)
    return can_bus

"""Records as the original BEVFormer and what derives from it read them.

Their boxes are w, l, h, -yaw - pi/2, their `can_bus` mixes two messages, and their paths begin with the
root. Fields that the original does not have stay, as it does not read them; the motion of the first message
is kept next to it, so that `from_official` gives back the same numbers.
"""

from __future__ import annotations

import os.path as osp
from typing import Any

import numpy as np

from projects.bevformer.geometry.boxes import new_to_old_boxes
from projects.bevformer.geometry.can_bus import CAN_MOTION

_AFTER, _SAME = "can_bus_motion_after", "can_bus_motion_same"


def to_official(info: dict[str, Any], root_path: str) -> dict[str, Any]:
    """A copy of a record in the original's format.

    Args:
        info: record of `scene_infos`.
        root_path: nuScenes root, which is put before the paths.
    """
    can_bus = info["can_bus"].copy()
    can_bus[CAN_MOTION] = info[_AFTER]
    official = {**info, "can_bus": can_bus, _SAME: info["can_bus"][CAN_MOTION]}
    del official[_AFTER]
    official["lidar_path"] = osp.join(root_path, info["lidar_path"])
    official["sweeps"] = [_with_root(sweep, root_path) for sweep in info["sweeps"]]
    official["cams"] = {name: _with_root(c, root_path) for name, c in info["cams"].items()}
    if "gt_boxes" in info:
        official["gt_boxes"] = new_to_old_boxes(info["gt_boxes"])
        official["gt_names"] = np.array(info["gt_names"], dtype=str)
    return official


def _with_root(record, root_path):
    return {**record, "data_path": osp.join(root_path, record["data_path"])}


def from_official(info: dict[str, Any]) -> None:
    """Undo the mixture of `can_bus` in place, in a record of `to_official`; others stay."""
    if _SAME in info:
        info[_AFTER] = np.array(info["can_bus"])[CAN_MOTION]
        info["can_bus"] = np.array(info["can_bus"], dtype=np.float64)
        info["can_bus"][CAN_MOTION] = info.pop(_SAME)

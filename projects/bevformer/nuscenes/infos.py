"""Reading info files. docs/data_format.md lists the fields."""

from __future__ import annotations

import os.path as osp
import re
from typing import Any

import numpy as np

from projects.bevformer.geometry.boxes import (
    BOX_CONVENTION_NEW,
    BOX_CONVENTION_OLD,
    old_to_new_boxes,
)
from projects.bevformer.io import load_pickle_restricted
from projects.bevformer.nuscenes.info_checks import (
    cameras_of,
    check_attributes,
    check_cameras,
    check_objects,
    check_records,
    check_split,
)

# Classes whose boxes are clearly longer than wide, which shows the convention.
_LONG_CLASSES = ("car", "truck", "bus")
_CLEARLY_LONGER = 1.2


def load_infos(path: str) -> tuple[list[dict], dict[str, Any]]:
    """Read an info file, check it, and convert its boxes to the convention of mmdet3d 1.0.0rc6.

    Args:
        path: `{tag}_infos_temporal_{train,val,test}.pkl`, written by tools/create_data.py or by the
            original BEVFormer's.

    Returns:
        infos: list of dicts, scene after scene in time order; boxes are "lwh_yaw"; `cams` holds the
            cameras of `metadata["cameras"]` in that order.
        metadata: the file's own metadata; "box_convention" is "lwh_yaw", "cameras" the list of cameras.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an info file, it contains anything but plain values and arrays, a field or a
            camera is missing, of a wrong type or not finite, version and split contradict each other, a
            sample occurs twice, or the box convention is neither stamped nor recognisable.
    """
    if not osp.isfile(path):
        raise FileNotFoundError(
            f"info file {path} does not exist: write it with tools/create_data.py, or check ann_file"
        )
    content = load_pickle_restricted(
        path, "an info file", "write it again with tools/create_data.py"
    )
    try:
        infos, metadata = content["infos"], content["metadata"]
        metadata = dict(metadata, version=metadata["version"])
        if not isinstance(metadata["version"], str):
            raise TypeError(f"version is {metadata['version']!r}, not a text")
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f'{path} is not an info file {{"infos": [...], "metadata": {{"version": ...}}}} '
            f"({type(error).__name__}: {error}): write it again with tools/create_data.py"
        ) from error

    check_split(metadata, path)
    check_records(infos, path)
    cameras = metadata["cameras"] = cameras_of(infos, metadata, path)
    check_cameras(infos, cameras, path)
    check_objects(infos, path)
    check_attributes(infos, metadata, path)
    for info in infos:
        info["cams"] = {name: info["cams"][name] for name in cameras}
    if _box_convention(infos, metadata, path) == BOX_CONVENTION_OLD:
        for info in infos:
            if "gt_boxes" in info:
                info["gt_boxes"] = old_to_new_boxes(info["gt_boxes"])
    metadata["box_convention"] = BOX_CONVENTION_NEW
    return _in_scene_order(infos), metadata


def path_below_root(path: str) -> str | None:
    """`samples/CAM_FRONT/x.jpg` of a path that names the root of another machine, or None."""
    match = re.search(r"(?:^|/)((?:samples|sweeps)/.*)$", path.replace("\\", "/"))
    return match.group(1) if match else None


def _box_convention(infos, metadata, path):
    """The stamp if there is one, else the convention that fits the boxes of long vehicles."""
    known = (BOX_CONVENTION_NEW, BOX_CONVENTION_OLD)
    stamp = metadata.get("box_convention")
    if stamp is not None:
        if stamp not in known:
            raise ValueError(f'{path}: metadata["box_convention"] is {stamp!r}, not one of {known}')
        return stamp

    if not any(len(info.get("gt_boxes", ())) for info in infos):
        return BOX_CONVENTION_NEW  # no box, nothing to convert
    long_boxes = np.concatenate(
        [
            info["gt_boxes"][np.isin(info["gt_names"], _LONG_CLASSES)]
            for info in infos
            if len(info.get("gt_boxes", ()))
        ]
    )
    ratio = (long_boxes[:, 3] / long_boxes[:, 4]).mean() if len(long_boxes) else 1.0
    if ratio > _CLEARLY_LONGER:
        return BOX_CONVENTION_NEW
    if ratio < 1 / _CLEARLY_LONGER:
        return BOX_CONVENTION_OLD
    raise ValueError(
        f"{path} has no box convention, and its cars, trucks and buses do not show which one it is: set "
        f'metadata["box_convention"] to "{BOX_CONVENTION_NEW}" (mmdet3d >= 1.0: x, y, z, l, w, h, yaw) '
        f'or "{BOX_CONVENTION_OLD}" (mmdet3d <= 0.17: x, y, z, w, l, h, -yaw - pi/2), '
        "or write the file again with tools/create_data.py"
    )


def _in_scene_order(infos):
    """Sort by scene and time: a temporal model must never see two scenes interleaved."""
    scene_start = {}
    for info in infos:
        start = scene_start.get(info["scene_token"], info["timestamp"])
        scene_start[info["scene_token"]] = min(start, info["timestamp"])

    def scene_then_time(info):
        return scene_start[info["scene_token"]], info["scene_token"], info["timestamp"]

    return sorted(infos, key=scene_then_time)

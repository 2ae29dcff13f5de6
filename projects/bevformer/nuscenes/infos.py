"""Reading info files. docs/data_format.md lists the fields."""

from __future__ import annotations

import contextlib
import gc
import os.path as osp
import re
from typing import Any, Iterator

from projects.bevformer.files.pickles import load_pickle_restricted
from projects.bevformer.geometry.boxes import (
    BOX_CONVENTION_NEW,
    BOX_CONVENTION_OLD,
    old_to_new_boxes,
)
from projects.bevformer.nuscenes.info_boxes import box_convention, check_headings
from projects.bevformer.nuscenes.info_checks import (
    cameras_of,
    check_attributes,
    check_cameras,
    check_objects,
    check_records,
    check_split,
    fill_objects,
)
from projects.bevformer.nuscenes.info_poses import (
    check_motion,
    check_poses,
    compare_boxes,
    compare_cameras,
)
from projects.bevformer.nuscenes.official_format import from_official


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Millions of new objects start the garbage collector again and again, for half of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_collector_paused()
def load_infos(path: str) -> tuple[list[dict], dict[str, Any]]:
    """Read an info file, check it, and convert its boxes to the convention of mmdet3d 1.0.0rc6.

    Args:
        path: `{tag}_infos_temporal_{train,val,test}.pkl`, written by tools/create_data.py or by the
            original BEVFormer's.

    Returns:
        infos: list of dicts, scene after scene in time order; boxes are "lwh_yaw"; `cams` holds the
            cameras of `metadata["cameras"]` in that order. Optional fields that are missing have their
            defaults, `valid_flag` is a mask.
        metadata: the file's own metadata; "box_convention" is "lwh_yaw", "cameras" the list of cameras.
            "filled_in" is a list of lines about missing fields, if there are any.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an info file, it contains anything but plain values and arrays, a field or a
            camera is missing, of a wrong type, unit or order, or not finite, version and split contradict
            each other, a sample occurs twice, the box convention is neither stamped nor recognisable, or
            the boxes do not point the way that they move.
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
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f'{path} is not an info file {{"infos": [...], "metadata": {{"version": ...}}}} '
            f"({type(error).__name__}: {error}): write it again with tools/create_data.py"
        ) from error

    check_split(metadata, path)
    poses = check_records(infos, path)
    cameras = metadata["cameras"] = cameras_of(infos, metadata, path)
    calibrations = check_cameras(infos, cameras, path)
    check_poses(poses, calibrations, path)
    compare_cameras(infos, cameras, path)
    check_objects(infos, path)
    check_attributes(infos, metadata, path)
    filled_in = fill_objects(infos)
    if filled_in:
        metadata["filled_in"] = filled_in
    for info in infos:
        info["cams"] = {name: info["cams"][name] for name in cameras}
        from_official(info)
    convention = box_convention(infos, metadata, path)
    if convention == BOX_CONVENTION_OLD:
        for info in infos:
            if "gt_boxes" in info:
                info["gt_boxes"] = old_to_new_boxes(info["gt_boxes"])
    metadata["box_convention"] = BOX_CONVENTION_NEW
    check_headings(infos, convention, path)
    compare_boxes(infos, path)
    infos = _in_scene_order(infos)
    check_motion(infos, path)
    _link(infos)
    return infos, metadata


def path_below_root(path: str) -> str | None:
    """`samples/CAM_FRONT/x.jpg` of a path that names the root of another machine, or None.

    That root may lie below a folder `samples` itself, so the last one counts.
    """
    match = re.search(r"(?:^|.*/)((?:samples|sweeps)/.*)$", path.replace("\\", "/"))
    return match.group(1) if match else None


def _in_scene_order(infos):
    """Sort by scene and time: a temporal model must never see two scenes interleaved."""
    scene_start = {}
    for info in infos:
        start = scene_start.get(info["scene_token"], info["timestamp"])
        scene_start[info["scene_token"]] = min(start, info["timestamp"])

    def scene_then_time(info):
        return scene_start[info["scene_token"]], info["scene_token"], info["timestamp"]

    return sorted(infos, key=scene_then_time)


def _link(infos):
    """Fill in what records lack of `prev` and `next`: the neighbours in their scene."""
    scenes = [None, *(info["scene_token"] for info in infos), None]
    tokens = ["", *(info["token"] for info in infos), ""]
    for i, info in enumerate(infos, 1):
        info.setdefault("prev", tokens[i - 1] if scenes[i - 1] == scenes[i] else "")
        info.setdefault("next", tokens[i + 1] if scenes[i + 1] == scenes[i] else "")

"""Info files: what a frame's record must hold, and which box convention it speaks.

docs/data_format.md lists the fields.
"""

import os.path as osp
import re

import numpy as np

from projects.bevformer.geometry.boxes import (
    BOX_CONVENTION_NEW,
    BOX_CONVENTION_OLD,
    old_to_new_boxes,
)
from projects.bevformer.geometry.can_bus import CAN_SIZE
from projects.bevformer.io import load_pickle_restricted
from projects.bevformer.nuscenes.spec import ATTRIBUTES, CAMERAS

_REQUIRED_FIELDS = (
    "token",
    "prev",
    "next",
    "scene_token",
    "timestamp",
    "lidar_path",
    "cams",
    "can_bus",
    "lidar2ego_translation",
    "lidar2ego_rotation",
    "ego2global_translation",
    "ego2global_rotation",
)
_TEXT_FIELDS = ("token", "prev", "next", "scene_token", "lidar_path")
# Numbers of a frame and of each camera, which must be finite, and their shapes.
_POSE_SHAPES = {
    "lidar2ego_translation": (3,),
    "lidar2ego_rotation": (4,),
    "ego2global_translation": (3,),
    "ego2global_rotation": (4,),
    "can_bus": (CAN_SIZE,),
    "timestamp": (),
}
_CAMERA_SHAPES = {
    "sensor2lidar_rotation": (3, 3),
    "sensor2lidar_translation": (3,),
    "cam_intrinsic": (3, 3),
}
# Arrays of a row for each annotated object, and the columns of a row.
_OBJECT_WIDTHS = {
    "gt_boxes": 7,
    "gt_names": None,
    "gt_velocity": 2,  # NaN where unknown
    "num_lidar_pts": None,
    "num_radar_pts": None,
    "valid_flag": None,
    "gt_centers_global": 3,
    "gt_rotations_global": 4,
    "gt_attributes": None,
}
_REQUIRED_OBJECT_FIELDS = ("gt_boxes", "gt_names", "gt_velocity", "num_lidar_pts")
_FINITE_OBJECT_FIELDS = ("gt_boxes", "gt_centers_global", "gt_rotations_global")
_TINY = 1e-6  # a quaternion or a determinant below it is none
_REMEDY = "write the file again with tools/create_data.py"
# nuScenes' table folders and the splits that they hold.
SPLITS_OF_VERSION = {
    "v1.0-trainval": ("train", "val"),
    "v1.0-test": ("test",),
    "v1.0-mini": ("train", "val"),
}
# Classes whose boxes are plainly longer than wide: they tell the conventions apart.
_LONG_CLASSES = ("car", "truck", "bus")
_CLEARLY_LONGER = 1.2


def load_infos(path):
    """Read an info file, check it, and bring its boxes to the convention of mmdet3d 1.0.0rc6.

    Args:
        path: `{tag}_infos_temporal_{train,val,test}.pkl`, written by tools/create_data.py or by the
            original BEVFormer's.

    Returns:
        infos: list of dicts, scene after scene in time order; boxes are "lwh_yaw".
        metadata: the file's own metadata; "box_convention" is "lwh_yaw".

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an info file, it names anything but plain values and arrays, a field is missing,
            of a wrong type or not finite, version and split contradict each other, a sample occurs
            twice, or the box convention is neither stamped nor recognisable.
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

    _check_split(metadata, path)
    _check_fields(infos, path)
    _check_numbers(infos, path)
    _check_objects(infos, path)
    if _box_convention(infos, metadata, path) == BOX_CONVENTION_OLD:
        for info in infos:
            if "gt_boxes" in info:
                info["gt_boxes"] = old_to_new_boxes(info["gt_boxes"])
    metadata["box_convention"] = BOX_CONVENTION_NEW
    return _in_scene_order(infos), metadata


def path_below_root(path):
    """`samples/CAM_FRONT/x.jpg` of a path that names the root of another machine, or None."""
    match = re.search(r"(?:^|/)((?:samples|sweeps)/.*)$", path.replace("\\", "/"))
    return match.group(1) if match else None


def _check_split(metadata, path):
    splits = SPLITS_OF_VERSION.get(metadata["version"])  # None: other data in nuScenes' format
    split = metadata.get("split")
    if splits is not None and split is not None and split not in splits:
        raise ValueError(
            f"{path}: metadata says split {split!r} of version {metadata['version']!r}, which has "
            f"{' and '.join(splits)}: {_REMEDY}"
        )


def _check_fields(infos, path):
    if not isinstance(infos, list) or not all(isinstance(info, dict) for info in infos):
        raise ValueError(f'{path}: "infos" is not a list of dicts: {_REMEDY}')
    tokens = set()
    for position, info in enumerate(infos):
        missing = [field for field in _REQUIRED_FIELDS if field not in info]
        cams = info.get("cams", {})
        if not isinstance(cams, dict) or not all(isinstance(r, dict) for r in cams.values()):
            raise ValueError(f"{path}: cams of frame {position} is not a dict of dicts: {_REMEDY}")
        missing += [camera for camera in CAMERAS if camera not in cams]
        if missing:
            raise ValueError(
                f"{path}: frame {position} has no {', '.join(missing)}: an info file of stock mmdet3d "
                "does not do; write it with tools/create_data.py"
            )
        for field in _TEXT_FIELDS:
            if not isinstance(info[field], str):
                raise ValueError(f"{path}: {field} of frame {position} is not a text: {_REMEDY}")
        if info["token"] in tokens:
            raise ValueError(f"{path}: sample {info['token']} occurs twice: {_REMEDY}")
        tokens.add(info["token"])


def _check_numbers(infos, path):
    """All poses and calibrations are there, whole and finite; all frames at once, for speed."""
    if not infos:
        return
    for field, shape in _POSE_SHAPES.items():
        _check_rows([info[field] for info in infos], shape, path, field)
    for camera in CAMERAS:
        records = [info["cams"][camera] for info in infos]
        for field in ("data_path", *_CAMERA_SHAPES):
            for position, record in enumerate(records):
                if field not in record:
                    raise ValueError(
                        f"{path}: cams.{camera} of frame {position} has no {field}: {_REMEDY}"
                    )
        for position, record in enumerate(records):
            if not isinstance(record["data_path"], str):
                raise ValueError(
                    f"{path}: cams.{camera}.data_path of frame {position} is not a text: {_REMEDY}"
                )
        for field, shape in _CAMERA_SHAPES.items():
            values = [record[field] for record in records]
            _check_rows(values, shape, path, f"cams.{camera}.{field}")


def _check_rows(values, shape, path, field):
    """Numbers of the shape, finite; quaternions not zero, matrices invertible."""
    try:
        rows = np.array(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):  # of another shape or kind, at least one
        rows = None
    if rows is not None and rows.shape == (len(values), *shape):
        good = _is_usable(rows, shape)
    else:
        good = np.array([_is_numbers(value, shape) for value in values], dtype=bool)
    if good.all():
        return
    position = int(np.argmin(good))
    what = {(4,): ", not all zero", (3, 3): ", an invertible matrix"}.get(shape, "")
    raise ValueError(
        f"{path}: {field} of frame {position} is not {' x '.join(map(str, shape)) or 'one'} finite "
        f"number{'s' if shape else ''}{what}: {_REMEDY}"
    )


def _is_usable(rows, shape):
    """(F,) bool of (F, *shape)."""
    good = np.isfinite(rows).reshape(len(rows), -1).all(axis=1)
    if shape == (4,):
        good &= np.abs(rows).max(axis=1, initial=0) > _TINY
    if shape == (3, 3):
        good[good] = np.abs(np.linalg.det(rows[good])) > _TINY
    return good


def _is_numbers(value, shape):
    try:
        row = np.array(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        return False
    return row.shape == shape and bool(_is_usable(row[None], shape)[0])


def _check_objects(infos, path):
    """The fields of annotated objects are arrays of a row for each; what is scored against is whole."""
    for position, info in enumerate(infos):
        if "gt_boxes" not in info:
            continue
        number = len(info["gt_boxes"]) if isinstance(info["gt_boxes"], np.ndarray) else "G"
        for field, width in _OBJECT_WIDTHS.items():
            if field not in info and field not in _REQUIRED_OBJECT_FIELDS:
                continue
            rows = info.get(field)
            found = rows.shape if isinstance(rows, np.ndarray) else type(rows).__name__
            shape = (number,) if width is None else (number, width)
            # An array without rows may have lost its width.
            if found != shape and not (number == 0 and found in [(0,), (0, width)]):
                raise ValueError(
                    f"{path}: {field} of frame {position} is {found}, not an array of "
                    f"{' x '.join(map(str, shape))}: {_REMEDY}"
                )
            if field in _FINITE_OBJECT_FIELDS and number:
                usable = rows.dtype.kind in "iuf" and _is_usable(rows, rows.shape[1:]).all()
                if not usable:
                    raise ValueError(
                        f"{path}: {field} of frame {position} are not rows of {width} finite numbers"
                        f"{', not all zero' if width == 4 else ''}: {_REMEDY}"
                    )
        unknown = [name for name in info.get("gt_attributes", ()) if name not in ("", *ATTRIBUTES)]
        if unknown:
            raise ValueError(
                f"{path}: gt_attributes of frame {position} name {unknown[0]!r}, which nuScenes does "
                f"not have: {_REMEDY}"
            )


def _box_convention(infos, metadata, path):
    """The stamp where there is one, else what the boxes of long vehicles say."""
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
        f"{path} does not say its box convention, and no car, truck or bus in it tells: set "
        f'metadata["box_convention"] to "{BOX_CONVENTION_NEW}" (mmdet3d >= 1.0: x, y, z, l, w, h, yaw) '
        f'or "{BOX_CONVENTION_OLD}" (mmdet3d <= 0.17: x, y, z, w, l, h, -yaw - pi/2), '
        "or write the file again with tools/create_data.py"
    )


def _in_scene_order(infos):
    """Scene after scene, each in time order: a temporal model must never see two scenes interleave."""
    scene_start = {}
    for info in infos:
        start = scene_start.get(info["scene_token"], info["timestamp"])
        scene_start[info["scene_token"]] = min(start, info["timestamp"])

    def scene_then_time(info):
        return scene_start[info["scene_token"]], info["scene_token"], info["timestamp"]

    return sorted(infos, key=scene_then_time)

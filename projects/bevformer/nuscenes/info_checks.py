"""What a record of an info file must hold."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple, Sequence

import numpy as np

from projects.bevformer.geometry.can_bus import CAN_SIZE
from projects.bevformer.nuscenes.spec import ATTRIBUTES, CAMERAS, SPLITS
from projects.bevformer.nuscenes.vectors import described, usable_rows

# Field -> str, dict (of dicts), or the shape of finite numbers.
_RECORD = {
    "token": str,
    "prev": str,
    "next": str,
    "scene_token": str,
    "timestamp": (),
    "lidar_path": str,
    "cams": dict,
    "can_bus": (CAN_SIZE,),
    "lidar2ego_translation": (3,),
    "lidar2ego_rotation": (4,),
    "ego2global_translation": (3,),
    "ego2global_rotation": (4,),
}
_CAMERA = {
    "data_path": str,
    "sensor2lidar_rotation": (3, 3),
    "sensor2lidar_translation": (3,),
    "cam_intrinsic": (3, 3),
}


class _Rows(NamedTuple):
    """An array with one row per annotated object."""

    columns: tuple[int, ...] = ()
    required: bool = False
    finite: bool = False


_OBJECTS = {
    "gt_boxes": _Rows((7,), required=True, finite=True),
    "gt_names": _Rows(required=True),
    "gt_velocity": _Rows((2,), required=True),  # NaN where unknown
    "num_lidar_pts": _Rows(required=True),
    "num_radar_pts": _Rows(),
    "valid_flag": _Rows(),
    "gt_centers_global": _Rows((3,), finite=True),
    "gt_rotations_global": _Rows((4,), finite=True),
    "gt_attributes": _Rows(),
}
_REMEDY = "write the file again with tools/create_data.py"


def check_split(metadata: dict[str, Any], path: str) -> None:
    """Refuse a split that the version does not have; unknown versions may have any."""
    splits = SPLITS.get(metadata["version"])
    split = metadata.get("split")
    if splits is not None and split is not None and split not in splits:
        raise ValueError(
            f"{path}: metadata says split {split!r} of version {metadata['version']!r}, which has "
            f"{' and '.join(splits)}: {_REMEDY}"
        )


def check_records(infos: Any, path: str) -> None:
    """Refuse records that lack a field or have one of a wrong type or shape, and repeated samples."""
    if not isinstance(infos, list) or not all(isinstance(info, dict) for info in infos):
        raise ValueError(f'{path}: "infos" is not a list of dicts: {_REMEDY}')
    _check_fields(infos, _RECORD, "", path)
    for token, number in Counter(info["token"] for info in infos).items():
        if number > 1:
            raise ValueError(f"{path}: sample {token} occurs twice: {_REMEDY}")


def cameras_of(infos: Sequence[dict], metadata: dict[str, Any], path: str) -> list[str]:
    """The cameras of an info file, in the order of every (B, N, ...) tensor.

    Files without `metadata["cameras"]` have those of their records: nuScenes' six in its own order, any
    others in the order in which they first occur.
    """
    cameras = metadata.get("cameras")
    if cameras is None:
        found = dict.fromkeys(name for info in infos for name in info["cams"])
        return list(CAMERAS if set(found) == set(CAMERAS) else found)
    names = isinstance(cameras, (list, tuple)) and all(isinstance(name, str) for name in cameras)
    if not names or not cameras or len(set(cameras)) < len(cameras):
        raise ValueError(
            f'{path}: metadata["cameras"] is {cameras!r}, not a list of different names: {_REMEDY}'
        )
    return list(cameras)


def check_cameras(infos: Sequence[dict], cameras: Sequence[str], path: str) -> None:
    """Refuse records that lack a camera, or a field of one."""
    for info in infos:
        missing = [name for name in cameras if name not in info["cams"]]
        if missing:
            raise ValueError(
                f"{path}: sample {info['token']} has no camera {', '.join(missing)}; the cameras of the "
                f"file are {', '.join(cameras)}: {_REMEDY}"
            )
    for name in cameras:
        _check_fields([info["cams"][name] for info in infos], _CAMERA, f"cams.{name}.", path)


def _check_fields(records, fields, prefix, path):
    """All records at once, for speed."""
    for position, record in enumerate(records):
        missing = [prefix + field for field in fields if field not in record]
        if missing:
            raise ValueError(
                f"{path}: frame {position} has no {', '.join(missing)}: an info file of stock mmdet3d "
                "does not do; write it with tools/create_data.py"
            )
    for field, kind in fields.items():
        values = [record[field] for record in records]
        if kind is str:
            good, what = np.array([isinstance(value, str) for value in values]), "a text"
        elif kind is dict:
            good, what = np.array([_is_dict_of_dicts(value) for value in values]), "a dict of dicts"
        else:
            good, what = usable_rows(values, kind), described(kind)
        if not good.all():
            position = int(np.argmin(good))
            raise ValueError(
                f"{path}: {prefix}{field} of frame {position} is not {what}: {_REMEDY}"
            )


def _is_dict_of_dicts(value):
    return isinstance(value, dict) and all(isinstance(item, dict) for item in value.values())


def check_objects(infos: Sequence[dict], path: str) -> None:
    """Refuse objects that are not arrays with one row each, and numbers that cannot be scored against."""
    annotated = [(position, info) for position, info in enumerate(infos) if "gt_boxes" in info]
    for field, expected in _OBJECTS.items():
        checked = [(n, info) for n, info in annotated if field in info or expected.required]
        for position, info in checked:
            boxes, rows = info["gt_boxes"], info.get(field)
            number = len(boxes) if isinstance(boxes, np.ndarray) and boxes.ndim else "G"
            found = rows.shape if isinstance(rows, np.ndarray) else type(rows).__name__
            shape = (number, *expected.columns)
            # An array without rows may have lost its width.
            if found != shape and not (number == 0 and found == (0,)):
                raise ValueError(
                    f"{path}: {field} of frame {position} is {found}, not an array of "
                    f"{' x '.join(map(str, shape))}: {_REMEDY}"
                )
        filled = [(n, info[field]) for n, info in checked if len(info[field])]
        if expected.finite and filled:
            good = usable_rows(np.concatenate([rows for _, rows in filled]), expected.columns)
            if not good.all():
                owners = np.repeat([n for n, _ in filled], [len(rows) for _, rows in filled])
                raise ValueError(
                    f"{path}: {field} of frame {owners[good.argmin()]} has a row that is not "
                    f"{described(expected.columns)}: {_REMEDY}"
                )


def check_attributes(infos: Sequence[dict], metadata: dict[str, Any], path: str) -> None:
    """Refuse attributes that nuScenes does not have; files of other versions may have any."""
    if metadata["version"] not in SPLITS:
        return
    for position, info in enumerate(infos):
        unknown = [name for name in info.get("gt_attributes", ()) if name not in ("", *ATTRIBUTES)]
        if unknown:
            raise ValueError(
                f"{path}: gt_attributes of frame {position} has {unknown[0]!r}, which is no attribute of "
                f"nuScenes: {_REMEDY}"
            )

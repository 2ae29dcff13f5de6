"""What a record of an info file must hold."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, NamedTuple, Sequence

import numpy as np

from projects.bevformer.geometry.can_bus import CAN_SIZE
from projects.bevformer.nuscenes.spec import ATTRIBUTES, CAMERAS, SPLITS
from projects.bevformer.nuscenes.vectors import described, stack_usable, usable_rows

# Field -> str, dict (of dicts), or the shape of finite numbers.
_RECORD = {
    "token": str,
    "scene_token": str,
    "timestamp": (),
    "cams": dict,
    "can_bus": (CAN_SIZE,),
    "lidar2ego_translation": (3,),
    "lidar2ego_rotation": (4,),
    "ego2global_translation": (3,),
    "ego2global_rotation": (4,),
}
_OPTIONAL_IN_RECORD = {"prev": str, "next": str, "lidar_path": str}
_OPTIONAL_IN_CAMERA = {"width": (), "height": ()}
_CAMERA = {
    "data_path": str,
    "sensor2lidar_rotation": (3, 3),
    "sensor2lidar_translation": (3,),
    "cam_intrinsic": (3, 3),
}


class _Rows(NamedTuple):
    """An array with one row per annotated object."""

    columns: tuple[int, ...] = ()
    kind: str = "numbers"  # a key of _KINDS
    required: bool = False


_KINDS = {"numbers": "iuf", "numbers or NaN": "iuf", "texts": "UO", "mask": "biufO"}  # of dtypes
_OBJECTS = {
    "gt_boxes": _Rows((7,), required=True),
    "gt_names": _Rows(kind="texts", required=True),
    "gt_velocity": _Rows((2,), "numbers or NaN"),  # NaN where unknown
    "num_lidar_pts": _Rows(),
    "num_radar_pts": _Rows(),
    "valid_flag": _Rows(kind="mask"),
    "gt_centers_global": _Rows((3,)),
    "gt_rotations_global": _Rows((4,)),
    "gt_attributes": _Rows(kind="texts"),
}
_LARGEST, _FURTHEST = 100, 1000  # metres: sizes of boxes, and centres from the lidar
_USUALLY_WITHIN = 100  # metres: median of the centres, which may have coordinates of the world
_MOST_TURNED = 10  # radians
_REMEDY = "write the file again with tools/create_data.py"
# They would change what a terminal shows of a message, or end a line of a log.
_CONTROL = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]")
_TEXT = "a text without control characters"


def check_split(metadata: dict[str, Any], path: str) -> None:
    """Refuse a split that the version does not have; unknown versions may have any.

    The version is the folder of the tables.
    """
    for field in ("version", "split"):
        value = metadata.get(field, "")
        if value is not None and (
            not _is_text(value) or value in (".", "..") or "/" in value or "\\" in value
        ):
            raise ValueError(
                f"{path}: metadata[{field!r}] is {value!r}, not the name of a {field}: {_REMEDY}"
            )
    splits = SPLITS.get(metadata["version"])
    split = metadata.get("split")
    if splits is not None and split is not None and split not in splits:
        raise ValueError(
            f"{path}: metadata says split {split!r} of version {metadata['version']!r}, which has "
            f"{' and '.join(splits)}: {_REMEDY}"
        )


def check_records(infos: Any, path: str) -> dict[str, np.ndarray]:
    """Refuse records that lack a field or have one of a wrong type or shape, and repeated samples.

    Returns:
        Field -> (F, ...) float64, for those that are numbers.
    """
    if not isinstance(infos, list) or not all(isinstance(info, dict) for info in infos):
        raise ValueError(f'{path}: "infos" is not a list of dicts: {_REMEDY}')
    numbers = _check_fields(infos, _RECORD, "", path)
    _check_fields(infos, _present(_OPTIONAL_IN_RECORD, infos), "", path)
    for info in infos:
        info.setdefault("lidar_path", "")
    for token, number in Counter(info["token"] for info in infos).items():
        if number > 1:
            raise ValueError(f"{path}: sample {token} occurs twice: {_REMEDY}")
    return numbers


def cameras_of(infos: Sequence[dict], metadata: dict[str, Any], path: str) -> list[str]:
    """The cameras of an info file, in the order of every (B, N, ...) tensor.

    Files without `metadata["cameras"]` have those of their records: nuScenes' six in its own order, any
    others in the order in which they first occur.
    """
    cameras = metadata.get("cameras")
    if cameras is None:
        found = dict.fromkeys(name for info in infos for name in info["cams"])
        cameras = list(CAMERAS if set(found) == set(CAMERAS) else found)
    names = isinstance(cameras, (list, tuple)) and all(map(_is_text, cameras))
    if not names or (infos and not cameras) or len(set(cameras)) < len(cameras):
        raise ValueError(
            f'{path}: metadata["cameras"] is {cameras!r}, not a list of different names: {_REMEDY}'
        )
    return list(cameras)


def check_cameras(
    infos: Sequence[dict], cameras: Sequence[str], path: str
) -> dict[str, dict[str, np.ndarray]]:
    """Refuse records that lack a camera, or a field of one.

    Returns:
        Camera -> field -> (F, ...) float64, for those that are numbers.
    """
    for info in infos:
        missing = [name for name in cameras if name not in info["cams"]]
        if missing:
            raise ValueError(
                f"{path}: sample {info['token']} has no camera {', '.join(missing)}; the cameras of the "
                f"file are {', '.join(cameras)}: {_REMEDY}"
            )
    numbers = {}
    for name in cameras:
        records = [info["cams"][name] for info in infos]
        fields = {**_CAMERA, **_present(_OPTIONAL_IN_CAMERA, records)}
        numbers[name] = _check_fields(records, fields, f"cams.{name}.", path)
    return numbers


def _present(optional, records):
    """The optional fields that some record has: then all must."""
    return {f: kind for f, kind in optional.items() if any(f in record for record in records)}


def _check_fields(records, fields, prefix, path):
    """All records at once, for speed; returns the fields that are numbers."""
    numbers = {}
    for position, record in enumerate(records):
        missing = [prefix + field for field in fields if field not in record]
        if missing:
            raise ValueError(
                f"{path}: frame {position} has no {', '.join(missing)}: write the file with "
                "tools/create_data.py (info files of stock mmdet3d lack fields), or data of your own as "
                "docs/own_data.md shows"
            )
    for field, kind in fields.items():
        values = [record[field] for record in records]
        if kind is str:
            good, what = np.array(list(map(_is_text, values))), _TEXT
        elif kind is dict:
            good, what = np.array([_is_dict_of_dicts(value) for value in values]), "a dict of dicts"
        else:
            good, numbers[field] = stack_usable(values, kind)
            what = described(kind)
        if not good.all():
            position = int(np.argmin(good))
            raise ValueError(
                f"{path}: {prefix}{field} of frame {position} is not {what}: {_REMEDY}"
            )
    return numbers


def _is_text(value):
    return isinstance(value, str) and not _CONTROL.search(value)


def _is_dict_of_dicts(value):
    return isinstance(value, dict) and all(isinstance(item, dict) for item in value.values())


def check_objects(infos: Sequence[dict], path: str) -> None:
    """Refuse objects that are not arrays with one row each, and values that cannot be trained or scored.

    Arrays without rows get their shape back, and `valid_flag` becomes a mask, in place.
    """
    annotated = [(position, info) for position, info in enumerate(infos) if "gt_boxes" in info]
    if 0 < len(annotated) < len(infos):
        without = next(n for n, info in enumerate(infos) if "gt_boxes" not in info)
        raise ValueError(
            f"{path}: frame {without} has no gt_boxes, others have: leave frames without annotations out, "
            "or give those without objects arrays without rows"
        )
    for field, expected in _OBJECTS.items():
        checked = [(n, info) for n, info in annotated if field in info or expected.required]
        for position, info in checked:
            boxes, rows = info["gt_boxes"], info.get(field)
            number = len(boxes) if isinstance(boxes, np.ndarray) and boxes.ndim else "G"
            found = rows.shape if isinstance(rows, np.ndarray) else type(rows).__name__
            shape = (number, *expected.columns)
            if found == shape and number:
                continue
            # An array without rows may have lost its width.
            if number != 0 or found not in (shape, (0,)):
                raise ValueError(
                    f"{path}: {field} of frame {position} is {found}, not an array of "
                    f"{' x '.join(map(str, shape))}: {_REMEDY}"
                )
            dtype = bool if expected.kind == "mask" else rows.dtype
            info[field] = rows.reshape(shape).astype(dtype)
        filled = [(n, info) for n, info in checked if len(info[field])]
        if filled:
            _check_rows(filled, field, expected, path)
        if filled and field == "gt_boxes":
            _check_box_units(filled, path)


def check_attributes(infos: Sequence[dict], metadata: dict[str, Any], path: str) -> None:
    """Refuse attributes that nuScenes does not have; files of other versions may have any."""
    if metadata["version"] not in SPLITS:
        return
    known = {"", *ATTRIBUTES}
    for position, info in enumerate(infos):
        unknown = set(info["gt_attributes"]) - known if "gt_attributes" in info else ()
        if unknown:
            raise ValueError(
                f"{path}: gt_attributes of frame {position} has {min(unknown)!r}, which is not an attribute of "
                f"nuScenes: {_REMEDY}"
            )


def _check_rows(filled, field, expected, path):
    """Check one field of all frames at once, for speed."""
    arrays = [info[field] for _, info in filled]
    rows, kinds = np.concatenate(arrays), _KINDS[expected.kind]
    # Joined with texts, numbers become texts.
    if rows.dtype.kind not in kinds or expected.kind == "texts":
        good = np.concatenate([np.full(len(r), r.dtype.kind in kinds) for r in arrays])
        what = f"has no {expected.kind}"
    else:
        good, what = np.ones(len(rows), dtype=bool), ""
    if good.all():
        what = f"has a row that is not {described(expected.columns)}"
        if expected.kind == "mask":
            good = (rows == 0) | (rows == 1)
            what = "is not a mask of True and False, or 1 and 0"
        elif expected.kind == "texts":
            good = np.array([isinstance(value, str) for value in rows])
            if good.all():
                texts = set(filter(_is_text, set(rows)))
                good = np.array([value in texts for value in rows])
            what = f"has {rows[good.argmin()]!r}, which is not {_TEXT}"
        elif expected.kind == "numbers":
            good = usable_rows(rows, expected.columns)
        elif expected.kind == "numbers or NaN":
            good, what = ~np.isinf(rows).any(axis=1), "is infinite (NaN is an unknown one)"
    _require(good, filled, field, what, path)
    if expected.kind == "mask" and rows.dtype.kind != "b":
        for _, info in filled:
            info[field] = info[field].astype(bool)


def _check_box_units(filled, path):
    """Refuse sizes and centres that are not metres, and yaws that are not radians."""
    boxes = np.concatenate([info["gt_boxes"] for _, info in filled])
    sizes, centres = boxes[:, 3:6], np.abs(boxes[:, :3]).max(axis=1)
    furthest = _FURTHEST if np.median(centres) < _USUALLY_WITHIN else _USUALLY_WITHIN
    far = f"has a centre further than {furthest} m away: it must be in the frame of the lidar, in metres"
    large = f"has a size above {_LARGEST} m: it must be in metres"
    for good, what in (
        ((sizes > 0).all(axis=1), "has a size of zero or less"),
        ((sizes <= _LARGEST).all(axis=1), large),
        (centres <= furthest, far),
        (np.abs(boxes[:, 6]) <= _MOST_TURNED, "has a yaw that is not in radians"),
    ):
        _require(good, filled, "gt_boxes", what, path)


def _require(good, filled, field, what, path):
    """Raise ValueError that names the frame of the first row that is not good."""
    if not good.all():
        lengths = [len(info[field]) for _, info in filled]
        position = filled[int(np.searchsorted(np.cumsum(lengths), good.argmin(), side="right"))][0]
        raise ValueError(f"{path}: {field} of frame {position} {what}: {_REMEDY}")


def fill_objects(infos: Sequence[dict]) -> list[str]:
    """Give objects the optional fields that they lack, in place.

    Returns:
        One line for each field that was missing.
    """
    annotated = [info for info in infos if "gt_boxes" in info]
    lines = []
    for field, (default, meaning) in _DEFAULTS.items():
        without = [info for info in annotated if field not in info]
        for info in without:
            info[field] = default(info, len(info["gt_boxes"]))
        if without:
            lines.append(f"{len(without)} of {len(annotated)} frames have no {field}: {meaning}")
    return lines


def _points_default(info, number):
    return info.get("valid_flag", np.ones(number, dtype=bool)).astype(int)


# In this order: valid_flag is made from the others.
_DEFAULTS = {
    "gt_velocity": (
        lambda info, number: np.full((number, 2), np.nan),
        "velocities are unknown, and trained as 0",
    ),
    "num_lidar_pts": (_points_default, "objects count as seen, or as valid_flag says"),
    "num_radar_pts": (lambda info, number: np.zeros(number, dtype=int), "no radar points"),
    "valid_flag": (
        lambda info, number: info["num_lidar_pts"] + info["num_radar_pts"] > 0,
        "objects with lidar or radar points are valid",
    ),
}

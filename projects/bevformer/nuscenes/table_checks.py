"""Damage of the nuScenes tables, found before anything is computed from them; with file and field."""

import json
import os
import os.path as osp
from collections import Counter
from itertools import chain

import numpy as np

from projects.bevformer.nuscenes.spec import CAMERAS

# Table -> fields that the converter and the devkit read, besides `token`.
_FIELDS = {
    "attribute": ("name",),
    "calibrated_sensor": ("sensor_token", "translation", "rotation", "camera_intrinsic"),
    "category": ("name",),
    "ego_pose": ("translation", "rotation", "timestamp"),
    "instance": ("category_token",),
    "log": ("location",),
    "map": ("filename", "log_tokens"),
    "sample": ("timestamp", "scene_token", "prev", "next"),
    "sample_annotation": (
        *("sample_token", "instance_token", "attribute_tokens", "translation", "size", "rotation"),
        *("num_lidar_pts", "num_radar_pts", "prev", "next"),
    ),
    "sample_data": (
        *("sample_token", "ego_pose_token", "calibrated_sensor_token", "timestamp"),
        *("is_key_frame", "filename", "prev", "next", "width", "height"),
    ),
    "scene": ("name", "log_token", "nbr_samples", "first_sample_token", "last_sample_token"),
    "sensor": ("channel", "modality"),
    "visibility": (),
}
# Table -> {field: table that it points into}; prev and next are empty at the ends of a chain.
_REFERENCES = {
    "calibrated_sensor": {"sensor_token": "sensor"},
    "instance": {"category_token": "category"},
    "sample": {"scene_token": "scene", "prev": "sample", "next": "sample"},
    "sample_annotation": {
        "sample_token": "sample",
        "instance_token": "instance",
        "prev": "sample_annotation",
        "next": "sample_annotation",
    },
    "sample_data": {
        "sample_token": "sample",
        "ego_pose_token": "ego_pose",
        "calibrated_sensor_token": "calibrated_sensor",
        "prev": "sample_data",
        "next": "sample_data",
    },
    "scene": {
        "log_token": "log",
        "first_sample_token": "sample",
        "last_sample_token": "sample",
    },
}
_VECTORS = {
    "calibrated_sensor": {"translation": 3, "rotation": 4},
    "ego_pose": {"translation": 3, "rotation": 4},
    "sample_annotation": {"translation": 3, "size": 3, "rotation": 4},
}
# Table -> {field: type of its values}, where others would only fail later, or not at all.
_TYPES = {
    "attribute": {"name": str},
    "category": {"name": str},
    "sample": {"timestamp": int},
    "sample_annotation": {"attribute_tokens": list, "num_lidar_pts": int, "num_radar_pts": int},
    "sample_data": {"filename": str, "timestamp": int, "width": int, "height": int},
    "scene": {"name": str, "nbr_samples": int},
    "sensor": {"channel": str},
}
_KINDS = {str: "a text", int: "a whole number", list: "a list"}
_WITHOUT_ANNOTATIONS = "v1.0-test"
_REMEDY = "unpack the metadata again"
TABLES = tuple(_FIELDS)


def read_tables(folder):
    """Read all tables of a folder such as `data/nuscenes/v1.0-mini`.

    Returns:
        dict of table name -> list of records.

    Raises:
        FileNotFoundError: no such folder, or a table is missing.
        ValueError: a table is empty, truncated, or not a list of records.
    """
    if not osp.isdir(folder):
        raise FileNotFoundError(
            f"no nuScenes tables at {folder}: {_REMEDY}, or check the path and the version"
        )
    return {name: _read_table(_table_path(folder, name)) for name in TABLES}


def check_tables(tables, folder):
    """Check what is read of the tables; less than half a minute for the full data set.

    Args:
        tables: dict of table name -> list of records, from `read_tables` or the devkit.
        folder: where they came from, for messages.

    Raises:
        FileNotFoundError: a map mask is missing, which the devkit opens.
        ValueError: a field is missing, a token points nowhere, a pose or a calibration cannot be
            used, samples are not chained in time order, a camera is missing, or a path leads out of
            the data set. The first that is found is named.
    """
    try:
        _check_tables(tables, folder)
    except (TypeError, AttributeError, LookupError) as error:
        raise ValueError(
            f"the tables in {folder} hold a value of a wrong type ({error}): {_REMEDY}"
        ) from error


def check_columns(tables, folder):
    """Check what `NuScenesTables` keeps, in seconds for the full data set.

    Args:
        tables: NuScenesTables; the rows that it names are all there.
        folder: where they came from, for messages.

    Raises:
        ValueError: a pose or a calibration cannot be used, samples are not chained in time order, a
            camera is missing, or a path leads out of the data set. `check_tables` says more exactly
            where.
    """
    _check_types(tables.scenes, "name", str, _table_path(folder, "scene"))
    _check_annotated(len(tables.annotations.category), folder)
    samples = list(tables.samples.values())
    check_chains(samples, _table_path(folder, "sample"))
    check_scenes(tables.scenes, samples, _table_path(folder, "scene"))
    data = [data for frame in tables.sample_data.values() for data in frame.values()]
    calibrations = list({id(d.calibration): d.calibration for d in data}.values())
    annotations = tables.annotations
    for name, rows, columns in (
        ("ego_pose", tables.ego_poses, list(tables.ego_poses.values())),
        ("calibrated_sensor", [c.channel for c in calibrations], calibrations),
    ):
        for field, size in _VECTORS[name].items():
            values = [getattr(row, field) for row in columns]
            check_vectors(list(rows), values, field, size, _table_path(folder, name))
    rows = range(len(annotations.category))
    for field, values in (
        ("translation", annotations.translation),
        ("size", annotations.size_wlh),
        ("rotation", annotations.rotation_wxyz),
    ):
        size = _VECTORS["sample_annotation"][field]
        check_vectors(rows, values, field, size, _table_path(folder, "sample_annotation"))
    for calibration in calibrations:
        if calibration.channel in CAMERAS:
            path = _table_path(folder, "calibrated_sensor")
            check_intrinsic(calibration.channel, calibration.camera_intrinsic, path)
    for row in data:
        check_filename(row.token, row.filename, _table_path(folder, "sample_data"))
    for token, frame in tables.sample_data.items():
        for channel in ("LIDAR_TOP", *CAMERAS):
            if channel not in frame:
                raise _absent_camera(token, channel, _table_path(folder, "sample_data"))


def _check_tables(tables, folder):
    tokens = {name: _tokens(tables[name], _table_path(folder, name)) for name in TABLES}
    for name, fields in _FIELDS.items():
        for field in fields:
            _column(tables[name], field, _table_path(folder, name))
    for name, types in _TYPES.items():
        for field, kind in types.items():
            _check_types(tables[name], field, kind, _table_path(folder, name))
    _check_annotated(len(tables["sample_annotation"]), folder)
    for name, references in _REFERENCES.items():
        for field, target in references.items():
            _check_reference(tables[name], field, tokens[target], target, _table_path(folder, name))
    _check_attributes(
        tables["sample_annotation"], tokens["attribute"], _table_path(folder, "sample_annotation")
    )
    for name, vectors in _VECTORS.items():
        for field, size in vectors.items():
            path = _table_path(folder, name)
            token_column = _column(tables[name], "token", path)
            check_vectors(token_column, _column(tables[name], field, path), field, size, path)
    _check_intrinsics(tables, _table_path(folder, "calibrated_sensor"))
    for row in tables["sample_data"]:
        check_filename(row["token"], row["filename"], _table_path(folder, "sample_data"))
    _check_sweeps(tables["sample_data"], _table_path(folder, "sample_data"))
    check_chains(tables["sample"], _table_path(folder, "sample"))
    check_scenes(tables["scene"], tables["sample"], _table_path(folder, "scene"))
    _check_cameras(tables, _table_path(folder, "sample_data"))
    for record in tables["map"]:
        mask = osp.join(osp.dirname(folder), record["filename"])
        if not osp.isfile(mask):
            raise FileNotFoundError(
                f"{mask} does not exist, which map.json names and the devkit opens: unpack the maps"
            )


def _table_path(folder, name):
    return osp.join(folder, f"{name}.json")


def _read_table(path):
    if not osp.isfile(path):
        raise FileNotFoundError(f"table {path} does not exist: {_REMEDY}")
    if os.path.getsize(path) == 0:
        raise ValueError(f"table {path} is empty: {_REMEDY}")
    try:
        with open(path, encoding="utf-8") as file:
            records = json.load(file)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"table {path} is damaged ({error}): {_REMEDY}") from error
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise ValueError(f"table {path} is not a list of records: {_REMEDY}")
    return records


def _column(records, field, path):
    try:
        return [record[field] for record in records]
    except KeyError:
        position = next(i for i, record in enumerate(records) if field not in record)
        token = records[position].get("token", "without token")
        raise ValueError(
            f"{path}: record {position} ({token}) has no {field!r}: {_REMEDY}"
        ) from None


def _tokens(records, path):
    tokens = set(_column(records, "token", path))
    if len(tokens) < len(records):
        raise ValueError(
            f"{path}: {len(records) - len(tokens)} records repeat the token of another: {_REMEDY}"
        )
    return tokens


def _check_types(records, field, kind, path):
    if {type(record[field]) for record in records} <= {kind}:
        return
    record = next(record for record in records if type(record[field]) is not kind)
    raise ValueError(
        f"{path}: {field} of {record['token']} is {record[field]!r}, not {_KINDS[kind]}: {_REMEDY}"
    )


def _check_annotated(rows, folder):
    if not rows and osp.basename(osp.abspath(folder)) != _WITHOUT_ANNOTATIONS:
        raise ValueError(
            f"{_table_path(folder, 'sample_annotation')} has no rows, which is right only in "
            f"{_WITHOUT_ANNOTATIONS}: {_REMEDY}"
        )


def _check_attributes(records, known, path):
    for record in records:
        tokens = record["attribute_tokens"]
        if len(tokens) > 1:
            raise ValueError(
                f"{path}: {record['token']} has {len(tokens)} attributes, not one or none: {_REMEDY}"
            )
        if not known.issuperset(tokens):
            raise ValueError(
                f"{path}: attribute_tokens of {record['token']} names {tokens[0]!r}, which is not in "
                f"attribute.json: {_REMEDY}"
            )


def _check_reference(records, field, targets, target, path):
    missing = set(_column(records, field, path)) - targets
    if field in ("prev", "next"):
        missing.discard("")
    if missing:
        record = next(record for record in records if record[field] in missing)
        raise ValueError(
            f"{path}: {field} of {record['token']} is {record[field]!r}, which is not in {target}.json "
            f"({len(missing)} such tokens): {_REMEDY}"
        )


def check_vectors(tokens, values, field, size, path):
    """Refuse a column of vectors that are not `size` finite numbers, or no quaternions.

    Args:
        tokens: of the rows.
        values: a list of numbers a row.
        field: name of the column; "rotation" holds quaternions.
        size: of each vector.
        path: of the table, for the message.
    """
    try:
        if not set(map(len, values)) <= {size}:
            raise ValueError
        # np.array of millions of short lists is slower.
        flat = np.fromiter(chain.from_iterable(values), np.float64, size * len(values))
        rows = flat.reshape(-1, size)
        good = np.isfinite(rows).all(axis=1)
        if field == "rotation":
            good &= np.linalg.norm(rows, axis=1) > 1e-6
    except (TypeError, ValueError, OverflowError):
        good = np.array([_is_vector(value, size) for value in values])
    if not good.all():
        row = int(np.argmin(good))
        kind = "a quaternion" if field == "rotation" else f"{size} finite numbers"
        raise ValueError(
            f"{path}: {field} of {tokens[row]} is {values[row]}, not {kind}: {_REMEDY}"
        )


def _is_vector(value, size):
    numbers = isinstance(value, list) and all(isinstance(x, (int, float)) for x in value)
    return numbers and len(value) == size


def _check_intrinsics(tables, path):
    cameras = {record["token"] for record in tables["sensor"] if record["modality"] == "camera"}
    for record in tables["calibrated_sensor"]:
        if record["sensor_token"] in cameras:
            check_intrinsic(record["token"], record["camera_intrinsic"], path)


def check_intrinsic(token, matrix, path):
    """Refuse a camera matrix that is not an invertible 3 x 3 matrix."""
    usable = np.shape(matrix) == (3, 3) and np.isfinite(matrix).all()
    if not usable or abs(np.linalg.det(matrix)) < 1e-6:
        raise ValueError(
            f"{path}: camera_intrinsic of {token} is {matrix}, not an invertible 3 x 3 matrix: {_REMEDY}"
        )


def check_filename(token, filename, path):
    """Refuse a path that leads out of the data set."""
    if filename[:1] in ("/", "\\") or (".." in filename and ".." in filename.split("/")):
        raise ValueError(
            f"{path}: filename of {token} is {filename!r}, which leads out of the data set: {_REMEDY}"
        )


def _check_sweeps(records, path):
    times = {record["token"]: record["timestamp"] for record in records}
    for record in records:
        if record["prev"] and times[record["prev"]] >= record["timestamp"]:
            raise ValueError(
                f"{path}: prev of {record['token']} is {record['prev']}, which is not earlier: {_REMEDY}"
            )


def check_chains(samples, path):
    """Refuse samples of a scene that, in time order, do not name each other as prev and next."""
    ordered = sorted(samples, key=lambda sample: (sample["scene_token"], sample["timestamp"]))
    nobody = {"scene_token": None, "token": ""}
    for before, sample, after in zip([nobody, *ordered], ordered, [*ordered[1:], nobody]):
        for field, neighbour in (("prev", before), ("next", after)):
            same_scene = neighbour["scene_token"] == sample["scene_token"]
            expected = neighbour["token"] if same_scene else ""
            if sample[field] != expected:
                raise ValueError(
                    f"{path}: {field} of {sample['token']} is {sample[field]!r}, in time order it is "
                    f"{expected!r}: {_REMEDY}"
                )


def check_scenes(scenes, samples, path):
    """Refuse scenes that do not name the number, the first and the last of their samples."""
    of_scene = {scene["token"]: [] for scene in scenes}
    for sample in samples:
        of_scene[sample["scene_token"]].append(sample)
    for scene in scenes:
        own = of_scene[scene["token"]]
        if not own or scene["nbr_samples"] != len(own):
            raise ValueError(
                f"{path}: nbr_samples of {scene['name']} is {scene['nbr_samples']}, sample.json has "
                f"{len(own)}: {_REMEDY}"
            )
        for field, choose in (("first_sample_token", min), ("last_sample_token", max)):
            expected = choose(own, key=lambda sample: sample["timestamp"])
            if scene[field] != expected["token"]:
                raise ValueError(
                    f"{path}: {field} of {scene['name']} is {scene[field]}, in time order it is "
                    f"{expected['token']}: {_REMEDY}"
                )


def _check_cameras(tables, path):
    channels = {record["token"]: record["channel"] for record in tables["sensor"]}
    channel_of = {
        record["token"]: channels[record["sensor_token"]] for record in tables["calibrated_sensor"]
    }
    found = Counter(
        (record["sample_token"], channel_of[record["calibrated_sensor_token"]])
        for record in tables["sample_data"]
        if record["is_key_frame"]
    )
    for (sample_token, channel), count in found.items():
        if count > 1 and channel in ("LIDAR_TOP", *CAMERAS):
            raise ValueError(
                f"{path}: sample {sample_token} has {count} key frames of {channel}: {_REMEDY}"
            )
    for sample in tables["sample"]:
        for channel in ("LIDAR_TOP", *CAMERAS):
            if (sample["token"], channel) not in found:
                raise _absent_camera(sample["token"], channel, path)


def _absent_camera(sample_token, channel, path):
    return ValueError(f"{path}: sample {sample_token} has no key frame of {channel}: {_REMEDY}")

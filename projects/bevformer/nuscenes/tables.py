"""The nuScenes tables, as much of them as info files need.

The devkit keeps every row of every table; here rows are sorted out while a table is parsed, and
annotations become columns of numbers.

Shape legend: A annotations of the whole table folder.
"""

import json
import os.path as osp
from array import array
from typing import NamedTuple

import numpy as np

from projects.bevformer.nuscenes.spec import CAMERAS

_CHANNELS = ("LIDAR_TOP", *CAMERAS)
# Velocities come from annotations no further apart than this, twice as much across both neighbours.
_MAX_TIME_DIFF_S = 1.5  # the devkit's default


class Calibration(NamedTuple):
    """A row of calibrated_sensor with its channel; the sensor in the ego frame."""

    channel: str
    translation: list
    rotation: list
    camera_intrinsic: list


class SensorData(NamedTuple):
    """A row of sample_data with its calibration."""

    token: str
    filename: str
    timestamp: int
    prev: str
    ego_pose_token: str
    image_size: tuple  # width, height in pixels; zeros where it is no image
    calibration: Calibration


class EgoPose(NamedTuple):
    """A row of ego_pose; the vehicle in the global frame."""

    translation: list
    rotation: list


class Annotations(NamedTuple):
    """Columns of sample_annotation, in the order of the table; global frame, metres."""

    translation: np.ndarray  # (A, 3)
    size_wlh: np.ndarray  # (A, 3)
    rotation_wxyz: np.ndarray  # (A, 4)
    velocity: np.ndarray  # (A, 2), NaN where unknown
    num_lidar_pts: np.ndarray  # (A,) int32
    num_radar_pts: np.ndarray  # (A,) int32
    category: list  # A names
    attribute: list  # A names, empty where there is none


class NuScenesTables:
    """Key frames and annotations of a table folder.

    Args:
        root_path: nuScenes root.
        folder: such as "v1.0-trainval".
        with_sweeps: keep the lidar's records between the key frames too.

    Attributes:
        scenes: rows of the scene table.
        samples: token -> row.
        sample_data: sample token -> {channel: SensorData} of the key frame, lidar and cameras.
        lidar_data: token -> SensorData of all LIDAR_TOP records; empty without `with_sweeps`.
        ego_poses: token -> EgoPose of the records above.
        annotations: Annotations.
        annotations_of: sample token -> rows of `annotations`.

    Raises:
        ValueError: a table is missing or damaged, repeats a token or a key frame, or names a row that
            another one does not have.
    """

    def __init__(self, root_path, folder, with_sweeps=False):
        self._folder = osp.join(root_path, folder)
        self.scenes = self._read("scene", lambda row: row)
        self.samples = self._index("sample", lambda row: row)
        sensors = self._index("sensor", lambda row: row["channel"])
        calibrations = self._index(
            "calibrated_sensor",
            lambda row: Calibration(
                sensors[row["sensor_token"]],
                row["translation"],
                row["rotation"],
                row["camera_intrinsic"],
            ),
        )
        self._read_sample_data(calibrations, with_sweeps)
        self._read_annotations()

    def _read(self, table, keep):
        """What `keep` makes of the rows of a table, which are let go as soon as they are parsed."""
        path = osp.join(self._folder, f"{table}.json")
        try:
            with open(path) as file:
                rows = json.load(file, object_hook=keep)
            if not isinstance(rows, list):
                raise TypeError(f"it holds one {type(rows).__name__}, not a list of rows")
        except _DanglingToken:
            raise
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            what = f"a row has no {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"cannot read the tables: {path}: {what}: {_UNPACK}") from error
        return rows

    def _index(self, table, keep):
        """Token -> what `keep` makes of the row."""
        rows = self._read(table, lambda row: (row["token"], keep(row)))
        indexed = _Rows(table, rows)
        if len(indexed) < len(rows):
            raise ValueError(f"{table}.json repeats tokens: {_UNPACK}")
        return indexed

    def _read_sample_data(self, calibrations, with_sweeps):
        self.sample_data = _Rows("sample", {token: {} for token in self.samples})
        self.lidar_data = _Rows("sample_data")
        pose_tokens = set()

        def keep(row):
            is_key_frame = row["is_key_frame"]
            if not (is_key_frame or with_sweeps):
                return
            calibration = calibrations[row["calibrated_sensor_token"]]
            is_sweep = with_sweeps and calibration.channel == "LIDAR_TOP"
            if not (is_sweep or (is_key_frame and calibration.channel in _CHANNELS)):
                return
            data = SensorData(
                row["token"],
                row["filename"],
                row["timestamp"],
                row["prev"],
                row["ego_pose_token"],
                (row["width"], row["height"]),
                calibration,
            )
            pose_tokens.add(data.ego_pose_token)
            if is_key_frame:
                frame = self.sample_data[row["sample_token"]]
                if calibration.channel in frame:
                    raise ValueError(f"two key frames of a sample are of {calibration.channel}")
                frame[calibration.channel] = data
            if is_sweep:
                self.lidar_data[data.token] = data

        self._read("sample_data", keep)
        self.ego_poses = _Rows("ego_pose")

        def keep_pose(row):
            if row["token"] in pose_tokens:
                self.ego_poses[row["token"]] = EgoPose(row["translation"], row["rotation"])

        self._read("ego_pose", keep_pose)
        missing = pose_tokens - self.ego_poses.keys()
        if missing:
            raise _DanglingToken("ego_pose", min(missing))

    def _read_annotations(self):
        categories = self._index("category", lambda row: row["name"])
        instances = self._index("instance", lambda row: categories[row["category_token"]])
        numbers = {name: array("d") for name in ("translation", "size", "rotation")}
        points = {name: array("i") for name in ("num_lidar_pts", "num_radar_pts")}
        attributes = self._index("attribute", lambda row: row["name"])
        times_us, neighbours = array("q"), {"prev": [], "next": []}
        category, attribute = [], []
        rows = {}
        self.annotations_of = _Rows("sample", {token: [] for token in self.samples})

        def keep(row):
            for name, width in (("translation", 3), ("size", 3), ("rotation", 4)):
                values = row[name]
                if len(values) != width:
                    raise ValueError(f"{name} of {row['token']} has {len(values)} numbers")
                numbers[name].extend(values)
            for name, column in points.items():
                column.append(row[name])
            for name, tokens in neighbours.items():
                tokens.append(row[name])
            category.append(instances[row["instance_token"]])
            tokens = row["attribute_tokens"]
            if len(tokens) > 1:
                raise ValueError(f"{row['token']} has {len(tokens)} attributes, not one or none")
            attribute.append(attributes[tokens[0]] if tokens else "")
            times_us.append(self.samples[row["sample_token"]]["timestamp"])
            place = rows[row["token"]] = len(rows)
            self.annotations_of[row["sample_token"]].append(place)

        self._read("sample_annotation", keep)
        if len(rows) < len(category):
            raise ValueError(f"sample_annotation.json repeats tokens: {_UNPACK}")
        translation = np.array(numbers["translation"]).reshape(-1, 3)
        self.annotations = Annotations(
            translation=translation,
            size_wlh=np.array(numbers["size"]).reshape(-1, 3),
            rotation_wxyz=np.array(numbers["rotation"]).reshape(-1, 4),
            velocity=_velocities(
                translation[:, :2],
                np.array(times_us),
                *(self._places(rows, neighbours[name]) for name in ("prev", "next")),
            ),
            num_lidar_pts=np.array(points["num_lidar_pts"]),
            num_radar_pts=np.array(points["num_radar_pts"]),
            category=category,
            attribute=attribute,
        )

    def _places(self, rows, tokens):
        """Row of each token, -1 where it is empty."""
        try:
            return np.array([rows[token] if token else -1 for token in tokens], dtype=np.int64)
        except KeyError as error:
            raise _DanglingToken("sample_annotation", error.args[0]) from None


_UNPACK = "the tables are damaged, unpack the metadata again"


class _DanglingToken(ValueError):
    def __init__(self, table, token):
        super().__init__(f"{table}.json has no row {token!r}, which another table names: {_UNPACK}")


class _Rows(dict):
    """Token -> row; a token that is not there is an error that names the table."""

    def __init__(self, table, rows=()):
        super().__init__(rows)
        self.table = table

    def __missing__(self, token):
        raise _DanglingToken(self.table, token)


def _velocities(positions, times_us, before, after):
    """Velocity of every annotation from its neighbours, (A, 2); the devkit's `box_velocity`.

    Args:
        positions: (A, 2) metres.
        times_us: (A,) microseconds.
        before, after: (A,) rows of the neighbours, -1 where there is none.
    """
    here = np.arange(len(positions))
    first, last = np.where(before < 0, here, before), np.where(after < 0, here, after)
    times_s = 1e-6 * times_us
    elapsed = times_s[last] - times_s[first]
    both = (before >= 0) & (after >= 0)
    known = (first != last) & (elapsed <= np.where(both, 2, 1) * _MAX_TIME_DIFF_S)
    velocities = np.full((len(positions), 2), np.nan)
    difference = positions[last[known]] - positions[first[known]]
    velocities[known] = difference / elapsed[known, None]
    return velocities

"""The nuScenes tables, as much of them as info files need.

The devkit keeps every row of every table; here rows are filtered while a table is parsed, and annotations
become columns of numbers. Rows are checked on the way.

Shape legend: A annotations of the whole table folder.
"""

from __future__ import annotations

import os.path as osp
from array import array
from typing import Any, Iterable, NamedTuple

import numpy as np

from projects.bevformer.nuscenes.spec import CAMERAS, WITHOUT_ANNOTATIONS
from projects.bevformer.nuscenes.table_rows import VECTORS, Row, Rows, Table
from projects.bevformer.nuscenes.vectors import described

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
    image_size: tuple  # width, height in pixels; zeros if it is not an image
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
    attribute: list  # A names, empty for annotations without attribute


class NuScenesTables:
    """Key frames and annotations of a table folder.

    Args:
        root_path: nuScenes root.
        folder: such as "v1.0-trainval".
        with_sweeps: keep the lidar's records between the key frames too.
        check_all: also check the rows that info files do not need, and the tables and map masks that only
            the devkit opens.

    Attributes:
        cameras: their channels: nuScenes' six in their own order, then any others by name.
        scenes: rows of the scene table.
        samples: token -> row.
        samples_of: scene token -> its rows of `samples`, in time order.
        sample_data: sample token -> {channel: SensorData} of the key frame, lidar and cameras.
        lidar_data: token -> SensorData of all LIDAR_TOP records; empty without `with_sweeps`.
        ego_poses: token -> EgoPose of the records above.
        annotations: Annotations.
        annotations_of: sample token -> rows of `annotations`.

    Raises:
        FileNotFoundError: a table or a map mask is missing.
        ValueError: a table is damaged, repeats a token or a key frame, names a row that does not exist,
            or holds a value that cannot be used; samples are not chained in time order; a camera is
            missing; a path leads out of the data set. The first problem is named with file, row and field.
    """

    def __init__(
        self, root_path: str, folder: str, with_sweeps: bool = False, check_all: bool = False
    ) -> None:
        self._root, self._folder = root_path, osp.join(root_path, folder)
        self._with_sweeps, self._check_all = with_sweeps, check_all
        self._read_scenes()
        sensors = self._table("sensor").index(lambda row: row)
        found = {row["channel"] for row in sensors.values() if row["modality"] == "camera"}
        own = [name for name in CAMERAS if name in found]
        self.cameras = (*own, *sorted(found.difference(own)))
        self._read_sample_data(self._read_calibrations(sensors))
        self._read_annotations()
        if check_all:
            self._check_devkit_tables()

    def _table(self, name: str) -> Table:
        return Table(self._folder, name)

    def _read_scenes(self) -> None:
        table = self._table("sample")
        scenes = self._table("scene").index(lambda row: row)
        own = self.samples_of = Rows("scene", {token: [] for token in scenes})
        self.scenes = list(scenes.values())
        self.samples = table.index(lambda row: own[row["scene_token"]].append(row) or row)
        for token, row in self.samples.items():
            for field in ("prev", "next"):
                if row[field] and row[field] not in self.samples:
                    raise table.dangling(field, token, row[field], "sample")
        for scene in self.scenes:
            own[scene["token"]].sort(key=lambda sample: sample["timestamp"])
            self._check_scene(scene, own[scene["token"]])

    def _check_scene(self, scene: Row, samples: list[Row]) -> None:
        """Refuse a scene that does not fit its samples in time order, and unlinked samples."""
        table = self._table("scene")
        if not samples or scene["nbr_samples"] != len(samples):
            raise table.error(
                f"nbr_samples of {scene['name']} is {scene['nbr_samples']}, sample.json has {len(samples)}"
            )
        tokens = ["", *(sample["token"] for sample in samples), ""]
        for before, sample, after in zip(tokens, samples, tokens[2:]):
            _check_order(self._table("sample"), sample, sample["token"], prev=before, next=after)
        ends = {"first_sample_token": tokens[1], "last_sample_token": tokens[-2]}
        _check_order(table, scene, scene["name"], **ends)

    def _read_calibrations(self, sensors: Rows) -> Rows:
        def keep(row: Row) -> Calibration:
            channel = sensors[row["sensor_token"]]["channel"]
            fields = ("translation", "rotation", "camera_intrinsic")
            return Calibration(channel, *(row[field] for field in fields))

        table = self._table("calibrated_sensor")
        calibrations = table.index(keep)
        used = {t: c for t, c in calibrations.items() if c.channel in ("LIDAR_TOP", *self.cameras)}
        _check_poses(table, calibrations if self._check_all else used)
        cameras = {token: c for token, c in used.items() if c.channel != "LIDAR_TOP"}
        matrices = [calibration.camera_intrinsic for calibration in cameras.values()]
        table.check_vectors(cameras, matrices, "camera_intrinsic", (3, 3))
        return calibrations

    def _read_sample_data(self, calibrations: Rows) -> None:
        table = self._table("sample_data")
        channels = ("LIDAR_TOP", *self.cameras)
        self.sample_data = Rows("sample", {token: {} for token in self.samples})
        self.lidar_data = Rows("sample_data")
        user_of_pose = {}  # pose token -> a record of that pose
        chain = {}  # with check_all: token -> (time, token of the record before, of the one after)

        def keep(row: Row) -> None:
            is_key_frame = row["is_key_frame"]
            if not (is_key_frame or self._with_sweeps or self._check_all):
                return
            calibration = calibrations[row["calibrated_sensor_token"]]
            is_sweep = self._with_sweeps and calibration.channel == "LIDAR_TOP"
            is_used = is_sweep or (is_key_frame and calibration.channel in channels)
            if not (is_used or self._check_all):
                return
            table.check_types(row)
            _check_filename(table, row)
            frame = self.sample_data[row["sample_token"]]
            user_of_pose[row["ego_pose_token"]] = row["token"]
            if self._check_all:
                chain[row["token"]] = (row["timestamp"], row["prev"], row["next"])
            if not is_used:
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
            if is_sweep:
                self.lidar_data[data.token] = data
            if is_key_frame and calibration.channel in frame:
                raise table.error(
                    f"sample {row['sample_token']} has 2 key frames of {calibration.channel}"
                )
            if is_key_frame:
                frame[calibration.channel] = data

        number = table.read(keep)
        for token, frame in self.sample_data.items():
            for channel in channels:
                if channel not in frame:
                    raise table.error(f"sample {token} has no key frame of {channel}")
        if self._check_all:
            table.check_repeats(number - len(chain))
            _check_chain(table, chain)
        self._read_ego_poses(table, user_of_pose)

    def _read_ego_poses(self, users: Table, user_of_pose: dict[str, str]) -> None:
        table = self._table("ego_pose")
        self.ego_poses = Rows("ego_pose")
        unused = set()

        def keep(row: Row) -> None:
            if row["token"] in user_of_pose:
                self.ego_poses[row["token"]] = EgoPose(row["translation"], row["rotation"])
            elif self._check_all:
                unused.add(row["token"])

        number = table.read(keep)
        for pose, user in user_of_pose.items():
            if pose not in self.ego_poses:
                raise users.dangling("ego_pose_token", user, pose, "ego_pose")
        if self._check_all:
            table.check_repeats(number - len(self.ego_poses) - len(unused))
        _check_poses(table, self.ego_poses)

    def _read_annotations(self) -> None:
        table = self._table("sample_annotation")
        categories = self._table("category").index(lambda row: row["name"])
        instances = self._table("instance").index(lambda row: categories[row["category_token"]])
        numbers = {name: array("d") for name in VECTORS[table.name]}
        points = {name: array("i") for name in ("num_lidar_pts", "num_radar_pts")}
        attributes = self._table("attribute").index(lambda row: row["name"])
        times_us, neighbours = array("q"), {"prev": [], "next": []}
        category, attribute = [], []
        rows = {}
        self.annotations_of = Rows("sample", {token: [] for token in self.samples})

        def keep(row: Row) -> None:
            table.check_types(row)
            for name, shape in VECTORS[table.name].items():
                if not _append(numbers[name], row[name], shape):
                    raise table.error(
                        f"{name} of {row['token']} is {row[name]}, not {described(shape)}"
                    )
            for name, column in points.items():
                column.append(row[name])
            for name, tokens in neighbours.items():
                tokens.append(row[name])
            category.append(instances[row["instance_token"]])
            tokens = row["attribute_tokens"]
            if len(tokens) > 1:
                raise table.error(f"{row['token']} has {len(tokens)} attributes, not one or none")
            attribute.append(attributes[tokens[0]] if tokens else "")
            times_us.append(self.samples[row["sample_token"]]["timestamp"])
            place = rows[row["token"]] = len(rows)
            self.annotations_of[row["sample_token"]].append(place)

        number = table.read(keep)
        table.check_repeats(number - len(rows))
        if not rows and osp.basename(self._folder) != WITHOUT_ANNOTATIONS:
            what = f"has no rows, which is right only in {WITHOUT_ANNOTATIONS}"
            raise ValueError(f"{table.path} {what}: unpack the metadata again")
        columns = {}
        for name, shape in VECTORS[table.name].items():
            columns[name] = np.array(numbers[name]).reshape(-1, *shape)
            table.check_vectors(rows, columns[name], name, shape)
        places = [_places(table, rows, field, tokens) for field, tokens in neighbours.items()]
        self.annotations = Annotations(
            translation=columns["translation"],
            size_wlh=columns["size"],
            rotation_wxyz=columns["rotation"],
            velocity=_velocities(columns["translation"][:, :2], np.array(times_us), *places),
            num_lidar_pts=np.array(points["num_lidar_pts"]),
            num_radar_pts=np.array(points["num_radar_pts"]),
            category=category,
            attribute=attribute,
        )

    def _check_devkit_tables(self) -> None:
        logs = self._table("log").index(lambda row: row["location"])
        for scene in self.scenes:
            if scene["log_token"] not in logs:
                name, token = scene["token"], scene["log_token"]
                raise self._table("scene").dangling("log_token", name, token, "log")
        self._table("visibility").index(lambda row: row)
        table = self._table("map")
        maps = table.index(
            lambda row: _check_filename(table, row) or (row["log_tokens"], row["filename"])
        )
        for _, filename in maps.values():
            mask = osp.join(self._root, filename)
            if not osp.isfile(mask):
                raise FileNotFoundError(
                    f"{mask} does not exist, which map.json names and the devkit opens: unpack the maps"
                )


def _check_order(table: Table, row: Row, name: str, **expected: str) -> None:
    for field, token in expected.items():
        if row[field] != token:
            raise table.error(f"{field} of {name} is {row[field]!r}, in time order it is {token!r}")


def _check_poses(table: Table, rows: dict[str, Any]) -> None:
    for field, shape in VECTORS[table.name].items():
        table.check_vectors(rows, [getattr(row, field) for row in rows.values()], field, shape)


def _check_filename(table: Table, row: Row) -> None:
    name = row["filename"]
    if name[:1] in ("/", "\\") or (".." in name and ".." in name.split("/")):
        raise table.error(
            f"filename of {row['token']} is {name!r}, which leads out of the data set"
        )


def _check_chain(table: Table, chain: dict[str, tuple[int, str, str]]) -> None:
    for token, (time_us, before, after) in chain.items():
        for field, neighbour in (("prev", before), ("next", after)):
            if neighbour and neighbour not in chain:
                raise table.dangling(field, token, neighbour, table.name)
        if before and chain[before][0] >= time_us:
            raise table.error(f"prev of {token} is {before}, which is not earlier")


def _places(table: Table, rows: dict[str, int], field: str, tokens: Iterable[str]) -> np.ndarray:
    """Row of each token, -1 where it is empty."""
    for user, token in zip(rows, tokens):
        if token and token not in rows:
            raise table.dangling(field, user, token, table.name)
    return np.array([rows[token] if token else -1 for token in tokens], dtype=np.int64)


def _append(column, values, shape):
    """Whether the values have the shape and could be appended."""
    try:
        column.extend(values)
    except (TypeError, OverflowError):
        return False
    return (len(values),) == shape


def _velocities(positions, times_us, before, after):
    """Velocity of every annotation from its neighbours, (A, 2); the devkit's `box_velocity`.

    Args:
        positions: (A, 2) metres.
        times_us: (A,) microseconds.
        before, after: (A,) rows of the neighbours, -1 at the ends of a chain.
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

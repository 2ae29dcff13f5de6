"""The vehicle's CAN bus at a key frame, read from the nuScenes CAN bus expansion."""

from __future__ import annotations

import os.path as osp
import reprlib
from bisect import bisect_right
from typing import Sequence

import numpy as np

from projects.bevformer.files.data_files import load_json
from projects.bevformer.geometry.can_bus import (
    CAN_ACCELERATION,
    CAN_MOTION,
    CAN_ORIENTATION,
    CAN_POSITION,
    CAN_ROTATION_RATE,
    CAN_SIZE,
    CAN_VELOCITY,
)
from projects.bevformer.messages import file_name
from projects.bevformer.nuscenes.vectors import described, finite_rows

# Scenes recorded without a CAN bus; the list is the devkit's `NuScenesCanBus.can_blacklist`.
SCENES_WITHOUT_CAN_BUS = frozenset(
    f"scene-{number:04d}" for number in (*range(161, 169), *range(170, 177), *range(309, 315))
)

# Pose message key -> where it goes in the vector.
_POSE_FIELDS = {
    "pos": CAN_POSITION,
    "orientation": CAN_ORIENTATION,
    "accel": CAN_ACCELERATION,
    "rotation_rate": CAN_ROTATION_RATE,
    "vel": CAN_VELOCITY,
}
_SHAPES = {"utime": (), **{key: (part.stop - part.start,) for key, part in _POSE_FIELDS.items()}}
_REMEDY = "unpack can_bus.zip again"


def find_can_bus_folder(path: str) -> str:
    """Find the folder that contains `scene-*_pose.json`.

    Args:
        path: the folder `can_bus` itself, or the folder it lies in.

    Returns:
        Path of the folder `can_bus`.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if osp.isdir(osp.join(path, "can_bus")):
        return osp.join(path, "can_bus")
    if osp.isdir(path) and osp.basename(osp.abspath(path)) == "can_bus":
        return path
    raise FileNotFoundError(
        f"no CAN bus folder at {osp.join(path, 'can_bus')}: unpack nuScenes' can_bus.zip there, "
        "or pass the folder that contains can_bus as --canbus"
    )


def load_can_bus(
    folder: str, scene_name: str, split: str | None, times_us: Sequence[int]
) -> SceneCanBus | None:
    """The CAN bus of a scene, or None if it has none.

    Scenes recorded without a CAN bus have none; others of the test split, or of no split, may lack the file.

    Args:
        folder, scene_name: as in SceneCanBus.
        split: of the info files that the scene is in, or None.
        times_us: of the scene's key frames, microseconds.

    Raises:
        FileNotFoundError, ValueError: see SceneCanBus and its `check_overlap`.
    """
    absent = not osp.isfile(_pose_file(folder, scene_name))
    if scene_name in SCENES_WITHOUT_CAN_BUS or (split in ("test", None) and absent):
        return None
    can_bus = SceneCanBus(folder, scene_name)
    can_bus.check_overlap(times_us[0], times_us[-1])
    return can_bus


def _pose_file(folder: str, scene_name: str) -> str:
    return osp.join(folder, file_name(scene_name, "_pose.json"))


class SceneCanBus:
    """The pose messages of one scene; the file is parsed once, here.

    Args:
        folder: the folder `can_bus`.
        scene_name: such as "scene-0103".

    Raises:
        FileNotFoundError: the scene has no pose file.
        ValueError: the file is not a non-empty list of complete, finite pose messages.
    """

    def __init__(self, folder: str, scene_name: str) -> None:
        self._path = _pose_file(folder, scene_name)
        if not osp.isfile(self._path):
            raise FileNotFoundError(
                f"{self._path} does not exist, and {scene_name} is not one of the scenes recorded without "
                "a CAN bus: unpack can_bus.zip again, or check --canbus"
            )
        messages = _read_messages(self._path)
        self._times_us = [message["utime"] for message in messages]
        self._vectors = np.zeros((len(messages), CAN_SIZE))
        for key, columns in _POSE_FIELDS.items():
            self._vectors[:, columns] = [message[key] for message in messages]

    def check_overlap(self, start_us: int, end_us: int) -> None:
        """Refuse messages that are all before or all after the scene: they belong to another one.

        The first or last message a little inside the scene is normal.

        Args:
            start_us, end_us: times of the scene's first and last key frame, microseconds.

        Raises:
            ValueError: all messages are before the first, or all are after the last key frame.
        """
        if self._times_us[-1] < start_us or self._times_us[0] > end_us:
            raise ValueError(
                f"{self._path}: all utime, {self._times_us[0]} to {self._times_us[-1]}, are outside of "
                f"the scene, {start_us} to {end_us}: unpack can_bus.zip again"
            )

    def at(self, timestamp_us: int) -> np.ndarray:
        """The last message at or before a time; the first message if there is none.

        Args:
            timestamp_us: microseconds.

        Returns:
            (18,) float64, columns as in `geometry.can_bus`; the two yaw columns are 0.
        """
        return self._vectors[max(bisect_right(self._times_us, timestamp_us) - 1, 0)].copy()

    def motion_after(self, timestamp_us: int) -> np.ndarray:
        """Acceleration, rotation rate and velocity of the first message after a time.

        The official info files pair these with the position of the message before; official weights
        were trained on that. Where no message follows, it is the last one.

        Args:
            timestamp_us: microseconds.

        Returns:
            (9,) float64: acceleration m/s^2, rotation rate rad/s, velocity m/s.
        """
        after = min(bisect_right(self._times_us, timestamp_us), len(self._times_us) - 1)
        return self._vectors[after, CAN_MOTION].copy()


def _read_messages(path: str) -> list[dict]:
    """Pose messages in time order; an incomplete one is an error that names message and field."""
    try:
        with open(path, encoding="utf-8") as file:
            messages = load_json(file)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): {_REMEDY}") from error
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{path} is not a list of pose messages, or an empty one: {_REMEDY}")
    rows = [message if isinstance(message, dict) else {} for message in messages]
    for key, shape in _SHAPES.items():
        values = [row.get(key) for row in rows]
        good = finite_rows(values, shape)
        if not good.all():
            position = int(good.argmin())
            raise ValueError(
                f"{path}: {key} of message {position} is {reprlib.repr(values[position])}, not "
                f"{described(shape) if shape else 'a number'}: {_REMEDY}"
            )
    return sorted(messages, key=lambda message: message["utime"])

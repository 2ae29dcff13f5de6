import json

import numpy as np
import pytest

from projects.bevformer.geometry.can_bus import CAN_MOTION, CAN_ORIENTATION, CAN_POSITION
from projects.bevformer.nuscenes.can_bus import (
    SCENES_WITHOUT_CAN_BUS,
    SceneCanBus,
    find_can_bus_folder,
)


def message(utime):
    return {
        "utime": utime,
        "pos": [utime, 1, 2],
        "orientation": [1, 0, 0, 0],
        "accel": [utime, 4, 5],
        "rotation_rate": [6, 7, 8],
        "vel": [9, 10, utime],
    }


@pytest.fixture
def can_bus(tmp_path):
    # Out of order on purpose: the files are not guaranteed to be sorted.
    messages = [message(time) for time in (300, 100, 200)]
    (tmp_path / "scene-0001_pose.json").write_text(json.dumps(messages))
    return SceneCanBus(str(tmp_path), "scene-0001")


@pytest.mark.parametrize(
    ("time", "used"), [(50, 100), (100, 100), (199, 100), (200, 200), (999, 300)]
)
def test_last_message_at_or_before(can_bus, time, used):
    vector = can_bus.at(time)
    assert vector[CAN_POSITION].tolist() == [used, 1, 2]
    assert vector[CAN_ORIENTATION].tolist() == [1, 0, 0, 0]
    assert vector[CAN_MOTION].tolist() == [used, 4, 5, 6, 7, 8, 9, 10, used]
    assert vector[16:].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("time", "used"), [(50, 100), (100, 200), (199, 200), (300, 300), (999, 300)]
)
def test_motion_of_the_message_after(can_bus, time, used):
    assert can_bus.motion_after(time).tolist() == [used, 4, 5, 6, 7, 8, 9, 10, used]


def test_vectors_are_copies(can_bus):
    can_bus.at(100)[:] = -1
    assert can_bus.at(100)[0] == 100


WITHOUT_POSITION = {key: value for key, value in message(1).items() if key != "pos"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is damaged"),
        (json.dumps([message(1)])[:-9], "is damaged"),
        ("[]", "is not a list of pose messages, or an empty one"),
        ("{}", "is not a list"),
        ("3", "is not a list"),
        ("[3]", "utime of message 0 is None, not a number"),
        (json.dumps([message(1), {**message(1), "utime": "a"}]), "utime of message 1"),
        (json.dumps([message(1), {**message(1), "vel": [1, 2]}]), r"vel of message 1 is \[1, 2\]"),
        (json.dumps([WITHOUT_POSITION]), "pos of message 0 is None, not 3 finite"),
        (json.dumps([{**message(1), "vel": [1, 2, np.nan]}]), "vel of message 0 is .*nan"),
    ],
)
def test_broken_file_is_named(tmp_path, content, says):
    (tmp_path / "scene-0001_pose.json").write_text(content)
    with pytest.raises(ValueError, match=f"scene-0001_pose.json:? {says}.*can_bus.zip again"):
        SceneCanBus(str(tmp_path), "scene-0001")


def test_messages_of_another_time_are_refused(tmp_path):
    (tmp_path / "scene-0001_pose.json").write_text(json.dumps([message(10), message(20)]))
    can_bus = SceneCanBus(str(tmp_path), "scene-0001")
    for start, end in ((5, 10), (20, 30), (12, 15)):
        can_bus.check_overlap(start, end)
    for start, end in ((1, 9), (21, 30)):
        with pytest.raises(ValueError, match="0001_pose.json: all utime, 10 to 20, are outside of"):
            can_bus.check_overlap(start, end)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="scene-0002_pose.json.*--canbus"):
        SceneCanBus(str(tmp_path), "scene-0002")


def test_folder_itself_or_its_parent(tmp_path):
    folder = tmp_path / "can_bus"
    folder.mkdir()
    assert find_can_bus_folder(str(tmp_path)) == str(folder)
    assert find_can_bus_folder(str(folder)) == str(folder)
    with pytest.raises(FileNotFoundError, match="can_bus.zip"):
        find_can_bus_folder(str(tmp_path / "elsewhere"))


def test_blacklist_is_the_devkits(tmp_path):
    from nuscenes.can_bus.can_bus_api import NuScenesCanBus

    (tmp_path / "can_bus").mkdir()
    devkit = NuScenesCanBus(dataroot=str(tmp_path)).can_blacklist
    assert {f"scene-{number:04d}" for number in devkit} == SCENES_WITHOUT_CAN_BUS

"""Bad tables, CAN bus files, images and info files: the tools end in one line that names the file.

Each case damages one thing in a copy of the synthetic data set and runs the main of the tool that
reads it. Some things are no error but a documented skip; they say what comes of them.
"""

import contextlib
import importlib.util
import json
import os
import pickle
import re
import shutil
import signal

import cv2
import numpy as np
import pytest
from tool_runs import DEMO, REPOSITORY

from projects.bevformer.geometry.boxes import new_to_old_boxes
from projects.bevformer.nuscenes.create_infos import create_nuscenes_infos

pytestmark = pytest.mark.integration
NAN = float("nan")
LIMIT_S = 300  # a busy machine is slow; what hangs, hangs longer


def load_tool(name):
    path = REPOSITORY / "tools" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"tool_{name}", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


@pytest.fixture(scope="module")
def tools():
    return {name: load_tool(name) for name in ("create_data", "browse_dataset", "visualize")}


@contextlib.contextmanager
def time_limit():
    def stop(*_):
        raise AssertionError(f"the tool hangs: it runs for {LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def run(tools, monkeypatch):
    """Runs a tool; returns its one line, or None where it ends well."""

    def run(name, *arguments):
        monkeypatch.setattr("sys.argv", [f"{name}.py", *map(str, arguments)])
        line = None
        try:
            with time_limit():
                tools[name].main()
        except SystemExit as stop:
            line = stop.code
        if line is not None:
            assert isinstance(line, str), line  # Python prints it and exits with 1
            assert "\n" not in line
            assert "Traceback" not in line
        return line

    return run


class DataSet:
    """A copy of the synthetic data set; files are hard links until they are written."""

    def __init__(self, whole, root):
        self.root = shutil.copytree(whole, root, copy_function=os.link)

    def write(self, path, content):
        path = self.root / path
        path.unlink()
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    def edit(self, path, change):
        """Change what a JSON file or an info file holds; a change returns the new content or None."""
        path = self.root / path
        codec = pickle if path.suffix == ".pkl" else json
        content = codec.loads(path.read_bytes())
        changed = change(content)
        self.write(path, codec.dumps(content if changed is None else changed))

    def table(self, name, change):
        self.edit(f"v1.0-mini/{name}.json", change)

    def remove(self, path):
        (self.root / path).unlink()

    @property
    def image(self):
        """Path of the front image of the first sample of val."""
        content = pickle.loads((self.root / VAL).read_bytes())
        return content["infos"][0]["cams"]["CAM_FRONT"]["data_path"]


VAL = "synthetic_infos_temporal_val.pkl"
CAN_BUS = "can_bus/scene-0103_pose.json"


@pytest.fixture(scope="module")
def whole_root(synthetic_root, tmp_path_factory):
    root = shutil.copytree(synthetic_root, tmp_path_factory.mktemp("whole") / "data")
    create_nuscenes_infos(str(root), str(root), "synthetic", "v1.0-mini", str(root))
    return root


@pytest.fixture
def data(whole_root, tmp_path):
    return DataSet(whole_root, tmp_path / "data")


@pytest.fixture
def create_data(run, data, tmp_path):
    """Runs tools/create_data.py on the copy; returns its line and the infos of val."""

    def create_data(canbus=""):
        line = run(
            "create_data", "nuscenes", "--root-path", data.root, "--out-dir", tmp_path / "out",
            "--extra-tag", "t", "--version", "v1.0-mini", "--canbus", data.root / canbus,
        )  # fmt: skip
        path = tmp_path / "out" / "t_infos_temporal_val.pkl"
        return line, pickle.loads(path.read_bytes())["infos"] if line is None else None

    return create_data


@pytest.fixture
def browse(run, data, tmp_path):
    """Runs the pipeline of data.val on its first sample; returns the tool's line."""

    def browse():
        return run(
            "browse_dataset", DEMO, "--split", "val", "--samples", 1, "--out", tmp_path / "out",
            "--cfg-options", f"data.val.ann_file={data.root / VAL}", f"data.val.data_root={data.root}/",
        )  # fmt: skip

    return browse


# A. Tables


def put(field, value, row=1):
    return lambda rows: rows[row].update({field: value})


def first_camera(field, value):
    def change(rows):
        next(row for row in rows if row["camera_intrinsic"])[field] = value

    return change


def cycle(samples):
    next(sample for sample in samples if not sample["next"])["next"] = samples[0]["token"]


def without_camera(rows):
    return [row for row in rows if "CAM_BACK_LEFT" not in row["filename"]]


TABLES = {
    "missing table": (lambda d: d.remove("v1.0-mini/sample.json"), "sample.json does not exist"),
    "empty file": (lambda d: d.write("v1.0-mini/ego_pose.json", ""), "ego_pose.json is empty"),
    "truncated JSON": (
        lambda d: d.write("v1.0-mini/scene.json", '[{"token": "a"'),
        "scene.json is damaged",
    ),
    "wrong top-level type": (lambda d: d.table("sensor", lambda _: {}), "sensor.json is not a list"),
    "missing key": (
        lambda d: d.table("sample_data", lambda rows: rows[2].pop("ego_pose_token") and None),
        r"sample_data.json: record 2 \(\w+\) has no 'ego_pose_token'",
    ),
    "dangling scene": (
        lambda d: d.table("sample", put("scene_token", "gone")),
        "sample.json: scene_token of .* 'gone'",
    ),
    "dangling calibrated_sensor": (
        lambda d: d.table("sample_data", put("calibrated_sensor_token", "gone")),
        "sample_data.json: calibrated_sensor_token of .* 'gone'",
    ),
    "name that is none": (
        lambda d: d.table("scene", put("name", None, row=0)),
        "scene.json: name of .* is None, not a text",
    ),
    "sample twice": (
        lambda d: d.table("sample", lambda rows: rows.append(rows[0])),
        "sample.json: 1 records repeat",
    ),
    "annotation twice": (
        lambda d: d.table("sample_annotation", lambda rows: rows.append(rows[0])),
        "sample_annotation.json: 1 records repeat",
    ),
    "two pictures of a camera": (
        lambda d: d.table("sample_data", lambda rows: rows.append({**rows[0], "token": "new"})),
        "sample_data.json: sample .* has 2 key frames of",
    ),
    "no annotations": (
        lambda d: d.table("sample_annotation", lambda _: []),
        "sample_annotation.json has no rows",
    ),
    "lists without end": (
        lambda d: d.write("v1.0-mini/scene.json", "[" * 100_000),
        "scene.json is damaged",
    ),
    "unknown attribute": (
        lambda d: d.table("sample_annotation", put("attribute_tokens", ["gone"])),
        "sample_annotation.json: attribute_tokens of",
    ),
    "version folder absent": (
        lambda d: shutil.rmtree(d.root / "v1.0-mini"),
        "no nuScenes tables at .*v1.0-mini",
    ),
    "no scene in any split": (
        lambda d: d.table(
            "scene", lambda rows: [row.update(name=f"scene-99{i:02d}") for i, row in enumerate(rows)] and None
        ),
        "no scene of v1.0-mini can be used: of 2 scenes, .* 2 belong to no split",
    ),
    "sample lacking a camera": (
        lambda d: d.table("sample_data", without_camera),
        "sample_data.json: sample .* CAM_BACK_LEFT",
    ),
    "cyclic next": (lambda d: d.table("sample", cycle), "sample.json: next of"),
    "broken prev": (lambda d: d.table("sample", put("prev", "")), "sample.json: prev of"),
    "NaN quaternion": (
        lambda d: d.table("ego_pose", put("rotation", [NAN, 0, 0, 1])),
        "ego_pose.json: rotation of",
    ),
    "zero-norm quaternion": (
        lambda d: d.table("calibrated_sensor", first_camera("rotation", [0, 0, 0, 0])),
        "calibrated_sensor.json: rotation of",
    ),
    "singular intrinsics": (
        lambda d: d.table(
            "calibrated_sensor", first_camera("camera_intrinsic", [[1, 0, 0], [1, 0, 0], [0, 0, 1]])
        ),
        "calibrated_sensor.json: camera_intrinsic of",
    ),
    "filename that leads out": (
        lambda d: d.table("sample_data", put("filename", "samples/../../x.jpg")),
        "sample_data.json: filename of .* leads out",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "says"), TABLES.values(), ids=TABLES)
def test_bad_tables(data, create_data, damage, says):
    damage(data)
    line, _ = create_data()
    assert re.search(says, line or "no error"), line


def test_a_scene_in_no_split_is_left_out(data, create_data, capsys):
    data.table("scene", put("name", "scene-9999", row=0))
    line, infos = create_data()
    assert line is None
    assert len(infos) in (0, 4)
    assert "1 scenes are in no split and are left out: scene-9999" in capsys.readouterr().out


# B. CAN bus


def shift_all(seconds):
    def change(messages):
        for message in messages:
            message["utime"] += int(seconds * 1e6)

    return change


CAN_BUS_FILES = {
    "folder missing": (
        lambda d: shutil.rmtree(d.root / "can_bus"),
        "no CAN bus folder at .*can_bus",
    ),
    "scene file missing": (lambda d: d.remove(CAN_BUS), "scene-0103_pose.json does not exist"),
    "empty list": (lambda d: d.write(CAN_BUS, "[]"), "scene-0103_pose.json .* an empty one"),
    "NaN": (
        lambda d: d.edit(CAN_BUS, lambda rows: rows[5].update(accel=[0, NAN, 0])),
        r"scene-0103_pose.json: accel of message 5 is \[0, nan, 0\]",
    ),
    "number too large for a float": (
        lambda d: d.edit(CAN_BUS, lambda rows: rows[5].update(vel=[0, 10**400, 0])),
        r"scene-0103_pose.json: vel of message 5 is \[0, 10{16}",
    ),
    "time that is no number": (
        lambda d: d.edit(CAN_BUS, lambda rows: rows[5].update(utime=True)),
        "scene-0103_pose.json: utime of message 5 is True, not a number",
    ),
    "lists without end": (
        lambda d: d.write(CAN_BUS, "[" * 100_000),
        "scene-0103_pose.json is damaged",
    ),
    "all after the scene": (
        lambda d: d.edit(CAN_BUS, shift_all(1000)),
        "scene-0103_pose.json: all utime, .* outside of the scene",
    ),
}


@pytest.mark.parametrize(("damage", "says"), CAN_BUS_FILES.values(), ids=CAN_BUS_FILES)
def test_bad_can_bus(data, create_data, damage, says):
    damage(data)
    line, _ = create_data()
    assert re.search(says, line or "no error"), line


def vectors(infos):
    return np.stack([info["can_bus"] for info in infos])


def test_canbus_may_point_into_can_bus(create_data):
    assert create_data("can_bus")[0] is None


def test_unsorted_messages_are_sorted(data, create_data):
    _, before = create_data()
    data.edit(CAN_BUS, lambda messages: messages[::-1])
    line, after = create_data()
    assert line is None
    np.testing.assert_array_equal(vectors(after), vectors(before))


def test_a_first_key_frame_before_all_messages_takes_the_first(data, create_data):
    data.edit(CAN_BUS, shift_all(1.0))
    line, infos = create_data()
    assert line is None
    first = json.loads((data.root / CAN_BUS).read_text())[0]
    np.testing.assert_array_equal(infos[0]["can_bus"][:3], first["pos"])


def test_a_scene_recorded_without_can_bus_has_zeros(data, create_data, monkeypatch):
    module = "projects.bevformer.nuscenes.can_bus.SCENES_WITHOUT_CAN_BUS"
    monkeypatch.setattr(module, {"scene-0103"})
    data.remove(CAN_BUS)
    line, infos = create_data()
    assert line is None
    assert not vectors(infos).any()


# C. Images


def rewrite(change):
    def damage(data):
        data.write(data.image, change((data.root / data.image).read_bytes()))

    return damage


def encoded(change):
    """The image decoded, changed and encoded again."""

    def again(content, extension):
        image = change(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR))
        return cv2.imencode(extension, image)[1].tobytes()

    return again


HALVE = encoded(lambda image: image[::2, ::2])
GREY = encoded(lambda image: image[..., 0])
RGBA = encoded(lambda image: np.dstack((image, image[..., :1])))
WIDE = encoded(lambda image: image.astype(np.uint16) * 256)


def halve_all(data):
    for info in pickle.loads((data.root / VAL).read_bytes())["infos"]:
        for camera in info["cams"].values():
            path = camera["data_path"]
            data.write(path, HALVE((data.root / path).read_bytes(), ".jpg"))


def lead_out(data):
    def change(content):
        content["infos"][0]["cams"]["CAM_BACK"]["data_path"] = "samples/../../secret.jpg"

    data.edit(VAL, change)


FRONT = r"samples/CAM_FRONT/\S+.jpg"
IMAGES = {
    "missing": (lambda d: d.remove(d.image), f"{FRONT} does not exist"),
    "0 bytes": (rewrite(lambda c: b""), f"{FRONT} is empty"),
    "random bytes": (rewrite(lambda c: bytes(range(1, 256)) * 20), f"{FRONT} cannot be decoded"),
    "truncated to 10 %": (rewrite(lambda c: c[: len(c) // 10]), f"{FRONT} is cut off"),
    "truncated to 50 %": (rewrite(lambda c: c[: len(c) // 2]), f"{FRONT} is cut off"),
    "zeroed block": (
        rewrite(lambda c: c[:2000] + bytes(512) + c[2512:]),
        f"{FRONT} has lost a part: a block of zeros",
    ),
    "one of another size": (
        rewrite(lambda c: HALVE(c, ".jpg")),
        f"{FRONT} is .*all cameras of a frame must have one size",
    ),
    "all of another size": (
        halve_all,
        r"samples/CAM_\w+/\S+.jpg is 200 x 113, but the info file says 400 x 225",
    ),
    "grey": (rewrite(lambda c: GREY(c, ".jpg")), rf"{FRONT} is \(225, 400\) uint8, not"),
    "RGBA": (rewrite(lambda c: RGBA(c, ".png")), rf"{FRONT} is \(225, 400, 4\) uint8, not"),
    "16 bits": (
        rewrite(lambda c: WIDE(c, ".png")),
        rf"{FRONT} is \(225, 400, 3\) uint16, not .* uint8: use the original images",
    ),
    "path that leads out": (lead_out, "secret.jpg, which is outside of data_root"),
}


@pytest.mark.parametrize(("damage", "says"), IMAGES.values(), ids=IMAGES)
def test_bad_images(data, browse, damage, says):
    damage(data)
    line = browse()
    assert re.search(says, line or "no error"), line


# D. Info files


class RunsCode:
    def __reduce__(self):
        return os.system, ("touch ran",)


INFO_FILES = {
    "missing": (lambda d: d.remove(VAL), f"{VAL} does not exist"),
    "truncated": (
        lambda d: d.write(VAL, (d.root / VAL).read_bytes()[:5000]),
        f"{VAL} is not an info file",
    ),
    "malicious": (
        lambda d: d.write(VAL, pickle.dumps({"infos": [RunsCode()], "metadata": {}})),
        f"{VAL} is not read: it names posix.system",
    ),
    "of stock mmdet3d": (
        lambda d: d.edit(VAL, lambda c: c["infos"][1].pop("can_bus") is None or None),
        f"{VAL}: frame 1 has no can_bus",
    ),
    "split that the version has not": (
        lambda d: d.edit(VAL, lambda c: c["metadata"].update(split="test")),
        f"{VAL}: metadata says split 'test' of version 'v1.0-mini'",
    ),
    "undecidable box convention": (
        lambda d: d.edit(VAL, lambda c: c["metadata"].update(box_convention="xyz")),
        f"""{VAL}: metadata."box_convention".""",
    ),
    "empty list": (lambda d: d.edit(VAL, lambda c: c["infos"].clear()), f"{VAL} holds no frames"),
    "duplicate tokens": (
        lambda d: d.edit(VAL, lambda c: c["infos"].append(c["infos"][0])),
        rf"{VAL}: sample \w+ occurs twice",
    ),
}


@pytest.mark.parametrize(("damage", "says"), INFO_FILES.values(), ids=INFO_FILES)
def test_bad_info_files(data, browse, tmp_path, monkeypatch, damage, says):
    monkeypatch.chdir(tmp_path)
    damage(data)
    line = browse()
    assert re.search(says, line or "no error"), line
    assert not (tmp_path / "ran").exists()


def test_old_boxes_and_unsorted_frames_are_fixed(data, browse, tmp_path):
    first = pickle.loads((data.root / VAL).read_bytes())["infos"][0]["token"]

    def change(content):
        content["infos"].reverse()
        content["metadata"].pop("box_convention")
        for info in content["infos"]:
            info["gt_boxes"] = new_to_old_boxes(info["gt_boxes"])

    assert browse() is None
    before = cv2.imread(str(tmp_path / "out" / f"{first}_cameras.png"))
    data.edit(VAL, change)
    assert browse() is None
    after = cv2.imread(str(tmp_path / "out" / f"{first}_cameras.png"))
    np.testing.assert_array_equal(after, before)


def test_pictures_are_found_with_an_info_file_of_another_machine(data, browse, run, tmp_path):
    def change(content):
        for info in content["infos"]:
            for record in info["cams"].values():
                record["data_path"] = f"/another/machine/{record['data_path']}"

    data.edit(VAL, change)
    assert browse() is None
    line = run(
        "visualize", DEMO, "--ground-truth-only", "--num-samples", 1, "--out-dir", tmp_path / "drawn",
        "--cfg-options", f"data.test.ann_file={data.root / VAL}", f"data.test.data_root={data.root}/",
    )  # fmt: skip
    assert line is None
    assert len(list((tmp_path / "drawn").iterdir())) == 2


def test_samples_of_each_info_file_are_drawn(data, run, tmp_path):
    files = ",".join(str(data.root / VAL.replace("val", split)) for split in ("train", "val"))
    line = run(
        "browse_dataset", DEMO, "--split", "train", "--samples", 1, "--out", tmp_path / "out",
        "--cfg-options", f"data.train.ann_file=[{files}]", f"data.train.data_root={data.root}/",
    )  # fmt: skip
    assert line is None
    assert len(list((tmp_path / "out").iterdir())) == 6

"""Each kind of damage of the tables is found, and the message names file and field."""

import json
import shutil

import pytest

from projects.bevformer.nuscenes.tables import NuScenesTables

NAN = float("nan")


@pytest.fixture
def folder(synthetic_root, tmp_path):
    """A table folder of two scenes that a test may edit, with its maps."""
    (tmp_path / "maps").symlink_to(synthetic_root / "maps")
    return shutil.copytree(synthetic_root / "v1.0-mini", tmp_path / "v1.0-mini")


@pytest.fixture
def tables(folder):
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


@pytest.fixture
def check(folder):
    """Writes the tables and reads them as the doctor does."""

    def check(tables=None):
        for name, rows in (tables or {}).items():
            (folder / f"{name}.json").write_text(json.dumps(rows))
        return NuScenesTables(str(folder.parent), folder.name, check_all=True)

    return check


def camera_calibration(tables):
    return next(row for row in tables["calibrated_sensor"] if row["camera_intrinsic"])


def close_the_loop(tables):
    last = next(sample for sample in tables["sample"] if not sample["next"])
    last["next"] = tables["sample"][0]["token"]


def remove(name, wanted):
    def damage(tables):
        tables[name] = [row for row in tables[name] if not wanted(row)]

    return damage


def put(name, field, value, row=1):
    return lambda tables: tables[name][row].update({field: value})


def turn_sweep_around(tables):
    first, second = tables["sample_data"][:2]
    (early, late) = sorted((first, second), key=lambda row: row["timestamp"])
    late["timestamp"] += 1  # they may have fired together
    early["prev"] = late["token"]


def test_good_tables_pass(tables, check):
    assert len(check().scenes) == len(tables["scene"])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda t: t["sample"][1].pop("scene_token"),
            r"sample.json: record 1 \(.* no 'scene_token'",
        ),
        (lambda t: t["ego_pose"][3].pop("token"), r"ego_pose.json: record 3 .* no 'token'"),
        (lambda t: t["ego_pose"].append(t["ego_pose"][0]), "ego_pose.json: 1 records repeat"),
        (
            put("sample", "scene_token", "gone"),
            "sample.json: scene_token of .* is 'gone', .* scene.json",
        ),
        (
            put("sample_data", "calibrated_sensor_token", "gone"),
            "calibrated_sensor_token of .*'gone'",
        ),
        (put("sample_data", "ego_pose_token", "gone"), "sample_data.json: ego_pose_token of"),
        (put("sample_annotation", "next", "gone"), "sample_annotation.json: next of"),
        (
            put("ego_pose", "rotation", [0, 0, 0, 0]),
            "ego_pose.json: rotation of .* not a quaternion",
        ),
        (put("ego_pose", "rotation", [1, 0, 0]), "ego_pose.json: rotation of .* not a quaternion"),
        (
            put("calibrated_sensor", "rotation", [NAN, 0, 0, 1]),
            "calibrated_sensor.json: rotation of",
        ),
        (
            put("ego_pose", "translation", [0, NAN, 0]),
            "ego_pose.json: translation of .* not 3 finite",
        ),
        (put("ego_pose", "translation", ["a", 1, 0]), "ego_pose.json: translation of"),
        (put("sample_annotation", "size", [1, 2]), "sample_annotation.json: size of"),
        (
            lambda t: camera_calibration(t).update(camera_intrinsic=[[1, 0, 0]] * 3),
            "calibrated_sensor.json: camera_intrinsic of .* not an invertible",
        ),
        (lambda t: camera_calibration(t).update(camera_intrinsic=[]), "camera_intrinsic of"),
        (close_the_loop, "sample.json: next of .* in time order it is ''"),
        (put("sample", "prev", ""), "sample.json: prev of .* is ''"),
        (turn_sweep_around, "sample_data.json: prev of .* not earlier"),
        (put("scene", "nbr_samples", 40), "scene.json: nbr_samples of scene-0103 is 40.* has 4"),
        (
            lambda t: t["scene"][0].update(first_sample_token=t["sample"][2]["token"]),
            "scene.json: first_sample_token of",
        ),
        (
            remove("sample_data", lambda row: "CAM_BACK_LEFT" in row["filename"]),
            "sample_data.json: sample .* has no key frame of CAM_BACK_LEFT",
        ),
        (put("sample_data", "filename", "samples/../../x.jpg"), "filename of .* leads out"),
        (put("sample_data", "filename", "/x.jpg"), "sample_data.json: filename of .* leads out"),
        (put("map", "filename", "../map.png"), "map.json: filename of .* leads out"),
        (put("map", "filename", "maps/gone.png"), "maps/gone.png does not exist, which map.json"),
        (
            put("sample", "timestamp", None),
            "sample.json: timestamp of .* is None, not a whole number",
        ),
        (put("scene", "name", None), "scene.json: name of .* is None, not a text"),
        (put("sample_data", "filename", 5), "sample_data.json: filename of .* is 5, not a text"),
        (
            lambda t: t["sample_data"][1].pop("width"),
            "sample_data.json: record 1 .* has no 'width'",
        ),
        (
            put("sample_annotation", "num_lidar_pts", None),
            "sample_annotation.json: num_lidar_pts of .* is None, not a whole number",
        ),
        (
            put("sample_annotation", "attribute_tokens", ["gone"]),
            r"sample_annotation.json: attribute_tokens of .* 'gone', .* attribute.json",
        ),
        (
            lambda t: t["sample_annotation"][1].update(
                attribute_tokens=[row["token"] for row in t["attribute"]]
            ),
            "sample_annotation.json: .* has 8 attributes",
        ),
        (lambda t: t["sample_annotation"].clear(), "sample_annotation.json has no rows"),
        (
            lambda t: t["sample_data"].append({**t["sample_data"][0], "token": "new"}),
            "sample_data.json: sample .* has 2 key frames of",
        ),
        (
            lambda t: t["scene"][0].update(last_sample_token=t["scene"][0]["first_sample_token"]),
            "scene.json: last_sample_token of",
        ),
        (
            put("sample", "token", []),
            r"sample.json: record 1 \(\[\]\) is damaged: its token is not a text",
        ),
    ],
)
def test_damage_is_named(tables, check, damage, message):
    damage(tables)
    with pytest.raises((ValueError, FileNotFoundError), match=f"{message}.*(again|maps)"):
        check(tables)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "sample.json does not exist"),
        ("", "sample.json is empty"),
        ('[{"token": "a"', "sample.json is damaged"),
        ("\x00\x01", "sample.json is damaged"),
        ("{}", "sample.json is not a list of records"),
        ("[1]", "sample.json is not a list of records"),
        ("[" * 100_000, "sample.json is damaged"),
    ],
)
def test_unreadable_tables_are_named(folder, check, content, message):
    (folder / "sample.json").unlink()
    if content is not None:
        (folder / "sample.json").write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=f"v1.0-mini/{message}.*again"):
        check()


@pytest.mark.parametrize("name", ["log", "map", "visibility"])
def test_tables_of_the_devkit_are_only_checked_on_request(folder, check, name):
    (folder / f"{name}.json").unlink()
    NuScenesTables(str(folder.parent), folder.name)
    with pytest.raises(FileNotFoundError, match=f"{name}.json does not exist"):
        check()


def test_scene_without_samples(tables, check):
    tables["scene"].append(
        {**tables["scene"][0], "token": "new", "name": "empty", "nbr_samples": 0}
    )
    with pytest.raises(ValueError, match="nbr_samples of empty"):
        check(tables)

"""The data set as a whole: the devkit reads and scores it, bytes repeat, bad arguments are refused."""

import hashlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from projects.bevformer.nuscenes.spec import ATTRIBUTES, CATEGORY_TO_CLASS, CLASSES
from projects.synthetic_nuscenes.cameras import camera_ring
from projects.synthetic_nuscenes.data_set import MINI_TRAIN, MINI_VAL, create_data_set, scene_names

TOOL = Path(__file__).resolve().parents[2] / "tools" / "create_synthetic.py"
TINY = {"image_hw": (45, 80), "frames_per_scene": 2, "show_progress": False}


@pytest.fixture(scope="module")
def nusc(synthetic_root):
    from nuscenes.nuscenes import NuScenes

    return NuScenes("v1.0-mini", str(synthetic_root), verbose=False)


def _digests(root):
    return {
        str(path.relative_to(root)): hashlib.md5(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_tables_have_rows_like_nuscenes(nusc):
    assert len(nusc.category) == 23
    assert sorted(row["name"] for row in nusc.attribute) == sorted(ATTRIBUTES)
    assert len(nusc.visibility) == 4
    assert len(nusc.sensor) == 12
    assert len(nusc.scene) == len(nusc.log) == len(nusc.map) == 2
    assert len(nusc.sample) == 8
    assert len(nusc.sample_data) == len(nusc.ego_pose) == 8 * 7
    assert len(nusc.calibrated_sensor) == 2 * 7
    assert all(len(row["token"]) == 32 for row in nusc.sample_annotation)
    detected = {row["category_name"] for row in nusc.sample_annotation}
    assert detected <= set(CATEGORY_TO_CLASS)


def test_chains_run_through_all_rows(nusc):
    for scene in nusc.scene:
        token, seen = scene["first_sample_token"], 0
        while token:
            sample, seen, last = nusc.get("sample", token), seen + 1, token
            token = sample["next"]
        assert (seen, last) == (scene["nbr_samples"], scene["last_sample_token"])
    for instance in nusc.instance:
        token, times = instance["first_annotation_token"], []
        while token:
            annotation, last = nusc.get("sample_annotation", token), token
            times.append(nusc.get("sample", annotation["sample_token"])["timestamp"])
            token = annotation["next"]
        assert last == instance["last_annotation_token"]
        assert len(times) == instance["nbr_annotations"]
        assert all(400_000 < gap < 600_000 for gap in np.diff(times))  # no frame is left out


def test_velocities_match_the_attributes(nusc):
    speeds = {"moving": [], "parked": []}
    for annotation in nusc.sample_annotation:
        names = [nusc.get("attribute", token)["name"] for token in annotation["attribute_tokens"]]
        velocity = nusc.box_velocity(annotation["token"])[:2]
        if np.isnan(velocity).any() or not names:
            continue
        state = names[0].split(".")[1]
        if state in speeds:
            speeds[state].append(np.linalg.norm(velocity))
    assert max(speeds["parked"]) < 1e-6
    assert len(speeds["moving"]) > 20
    assert 0.3 < np.median(speeds["moving"]) < 12.0
    assert max(speeds["moving"]) < 14.0


def test_can_bus_api_lists_the_messages(synthetic_root):
    from nuscenes.can_bus.can_bus_api import NuScenesCanBus

    can_bus = NuScenesCanBus(dataroot=str(synthetic_root))
    for message in ("pose", "ms_imu", "steeranglefeedback", "vehicle_monitor", "route", "meta"):
        assert can_bus.get_messages("scene-0103", message)
    assert can_bus.list_misaligned_routes() == []


@pytest.mark.parametrize("split", ["mini_train", "mini_val"])
def test_ground_truth_as_prediction_scores_one(nusc, synthetic_root, split, tmp_path):
    from nuscenes.eval.detection.config import config_factory
    from nuscenes.eval.detection.evaluate import DetectionEval

    names = MINI_TRAIN if split == "mini_train" else MINI_VAL
    results = {}
    for sample in nusc.sample:
        if nusc.get("scene", sample["scene_token"])["name"] in names:
            annotations = [nusc.get("sample_annotation", token) for token in sample["anns"]]
            results[sample["token"]] = [
                _as_prediction(nusc, annotation)
                for annotation in annotations
                if annotation["num_lidar_pts"] > 0
            ]
    path = tmp_path / "results.json"
    modality = dict.fromkeys(("use_lidar", "use_radar", "use_map", "use_external"), False)
    path.write_text(json.dumps({"meta": {"use_camera": True, **modality}, "results": results}))
    evaluation = DetectionEval(
        nusc, config_factory("detection_cvpr_2019"), str(path), split, str(tmp_path), verbose=False
    )
    metrics, _ = evaluation.evaluate()
    present = {box.detection_name for box in evaluation.gt_boxes.all}
    assert present == set(CLASSES)
    assert metrics.mean_ap == pytest.approx(1.0, abs=1e-9)
    assert metrics.nd_score == pytest.approx(1.0, abs=1e-6)


def _as_prediction(nusc, annotation):
    attributes = [nusc.get("attribute", token)["name"] for token in annotation["attribute_tokens"]]
    return {
        "sample_token": annotation["sample_token"],
        "translation": annotation["translation"],
        "size": annotation["size"],
        "rotation": annotation["rotation"],
        "velocity": np.nan_to_num(nusc.box_velocity(annotation["token"])[:2]).tolist(),
        "detection_name": CATEGORY_TO_CLASS[annotation["category_name"]],
        "detection_score": 1.0,
        "attribute_name": attributes[0] if attributes else "",
    }


def test_bytes_depend_on_the_seed_not_on_the_processes(tmp_path):
    scenes = ("scene-0061", "scene-0916")
    one = create_data_set(tmp_path / "one", seed=5, scenes=scenes, workers=1, **TINY)
    two = create_data_set(tmp_path / "two", seed=5, scenes=scenes, workers=2, **TINY)
    assert _digests(one) == _digests(two)


def test_a_scene_depends_only_on_its_name_and_the_seed(tmp_path):
    both = create_data_set(
        tmp_path / "a", seed=5, scenes=("scene-0061", "scene-0103"), workers=1, **TINY
    )
    alone = create_data_set(tmp_path / "b", seed=5, scenes=("scene-0103",), workers=1, **TINY)
    other = create_data_set(tmp_path / "c", seed=6, scenes=("scene-0103",), workers=1, **TINY)
    pictures = {name: digest for name, digest in _digests(alone).items() if "samples" in name}
    of_both = _digests(both)
    assert pictures
    assert all(of_both[name] == digest for name, digest in pictures.items())
    assert not set(pictures.values()) & set(_digests(other).values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"version": "v2.0"}, "version"),
        ({"seed": -1}, "seed"),
        ({"image_hw": (10, 800)}, "image size"),
        ({"frames_per_scene": 0}, "frames_per_scene"),
        ({"frames_per_scene": 1000}, "frames_per_scene"),
        ({"workers": 0}, "workers"),
        ({"scenes": ()}, "no scene"),
        ({"scenes": ("scene-0061", "scene-0061")}, "twice"),
        ({"scenes": ("scene-0001",)}, "scene-0001"),
        ({"cameras": ()}, "cameras must have different names"),
        ({"cameras": 2 * camera_ring(1)}, "cameras must have different names"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        create_data_set(tmp_path / "new", **{**TINY, **arguments})
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("count", [5, 7])
def test_another_rig_is_in_the_tables(count, tmp_path):
    rig = camera_ring(count)
    root = create_data_set(tmp_path, scenes=("scene-0103",), workers=1, cameras=rig, **TINY)
    names = [mount.channel for mount in rig]
    tables = {
        name: json.loads((root / "v1.0-mini" / f"{name}.json").read_text())
        for name in ("sensor", "calibrated_sensor", "sample_data")
    }
    cameras = [row["channel"] for row in tables["sensor"] if row["modality"] == "camera"]
    assert cameras == names
    assert len(tables["calibrated_sensor"]) == count + 1
    assert len(tables["sample_data"]) == 2 * (count + 1)
    assert sorted(folder.name for folder in (root / "samples").iterdir()) == [*names, "LIDAR_TOP"]


def test_a_folder_in_use_is_kept_unless_forced(tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "old.jpg").write_text("old")
    with pytest.raises(FileExistsError, match="--force"):
        create_data_set(tmp_path, scenes=("scene-0061",), workers=1, **TINY)
    assert (tmp_path / "samples" / "old.jpg").exists()
    create_data_set(tmp_path, scenes=("scene-0061",), workers=1, force=True, **TINY)
    assert (tmp_path / "mine.txt").read_text() == "keep me"
    assert not (tmp_path / "samples" / "old.jpg").exists()
    with pytest.raises(FileExistsError, match="is a file"):
        create_data_set(tmp_path / "mine.txt", scenes=("scene-0061",), workers=1, **TINY)


def test_scene_names_are_those_of_the_splits():
    from nuscenes.utils import splits

    assert tuple(splits.mini_train) == MINI_TRAIN
    assert tuple(splits.mini_val) == MINI_VAL
    assert scene_names("v1.0-mini") == MINI_TRAIN + MINI_VAL
    for count, train, val in ((1, 1, 0), (2, 1, 1), (4, 3, 1), (5, 4, 1), (9, 8, 1), (10, 8, 2)):
        assert scene_names("v1.0-mini", count) == MINI_TRAIN[:train] + MINI_VAL[:val]
    large = scene_names("v1.0-trainval", 20)
    assert len(set(large) & set(splits.train)) == 16
    assert len(set(large) & set(splits.val)) == 4
    with pytest.raises(ValueError, match="1 to 10"):
        scene_names("v1.0-mini", 11)


def _run_tool(monkeypatch, *arguments):
    spec = importlib.util.spec_from_file_location("create_synthetic", str(TOOL))
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr("sys.argv", ["create_synthetic.py", *map(str, arguments)])
    tool.main()


def test_tool_writes_a_data_set(monkeypatch, tmp_path, capsys):
    _run_tool(
        monkeypatch, "--out-dir", tmp_path / "new", "--image-size", "45x80", "--frames-per-scene", 1,
        "--scenes", "scene-0103", "--workers", 1, "--cameras", 2,
    )  # fmt: skip
    assert {path.name for path in (tmp_path / "new" / "samples").iterdir()} == {
        "CAM_0", "CAM_1", "LIDAR_TOP",
    }  # fmt: skip
    assert (tmp_path / "new" / "v1.0-mini" / "sample.json").is_file()
    said = capsys.readouterr().out
    assert str(tmp_path / "new") in said
    assert "0 scenes of train\nwarning: the info file of train will hold no frames" in said
    assert "1 scenes of val: scene-0103\n" in said


def test_tool_accepts_a_number_of_scenes(monkeypatch, tmp_path, capsys):
    _run_tool(
        monkeypatch, "--out-dir", tmp_path / "new", "--tables-only", "--frames-per-scene", 1,
        "--scenes", 2, "--workers", 1,
    )  # fmt: skip
    scenes = json.loads((tmp_path / "new" / "v1.0-trainval" / "scene.json").read_text())
    assert len(scenes) == 2
    assert not (tmp_path / "new" / "samples").exists()
    said = capsys.readouterr().out
    assert str(tmp_path / "new") in said
    assert "1 scenes of train: scene-0001\n1 scenes of val: scene-0003\n" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--image-size", "big"), "450x800"),
        (("--num-scenes", 99), "1 to 10"),
        (("--seed", -3), "seed"),
        (("--cameras", 0), "at least one camera, got 0"),
        (("--cameras", 5, "--tables-only"), "does not go with --tables-only"),
    ],
)
def test_tool_refuses_with_one_clear_line(arguments, message, monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        _run_tool(monkeypatch, "--out-dir", tmp_path / "new", *arguments)
    assert error.value.code != 0
    assert message in str(error.value.code) + capsys.readouterr().err
    assert not (tmp_path / "new").exists()

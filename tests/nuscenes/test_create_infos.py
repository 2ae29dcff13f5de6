"""Info files against the devkit's own transformations."""

import json
import os
import pickle
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from devkit_infos import devkit_info
from nuscenes.nuscenes import NuScenes
from nuscenes.utils.geometry_utils import BoxVisibility, view_points
from nuscenes.utils.splits import create_splits_scenes
from pyquaternion import Quaternion

from projects.bevformer.datasets import TemporalNuScenesDataset
from projects.bevformer.nuscenes.create_infos import create_nuscenes_infos
from projects.bevformer.nuscenes.infos import load_infos
from projects.bevformer.nuscenes.records import boxes_global, velocities_global
from projects.bevformer.nuscenes.spec import CAMERAS, CATEGORY_TO_CLASS, CLASSES

SCENE_OF_NO_MINI_SPLIT = "scene-0001"


@pytest.fixture(scope="module")
def infos(info_folder):
    return load_infos(str(info_folder / "test_infos_temporal_val.pkl"))[0]


@pytest.fixture
def root_copy(synthetic_root, tmp_path):
    """A synthetic root whose tables may be edited; returns (root, edit)."""
    root = tmp_path / "nuscenes"
    shutil.copytree(str(Path(synthetic_root) / "v1.0-mini"), str(root / "v1.0-mini"))
    for name in ("samples", "maps", "can_bus"):
        (root / name).symlink_to(Path(synthetic_root) / name)

    def edit(table, change, version="v1.0-mini"):
        path = root / version / f"{table}.json"
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return root, edit


def rename_scenes(names):
    """{old: new} as a change of the scene table."""
    return lambda scenes: [
        {**scene, "name": names.get(scene["name"], scene["name"])} for scene in scenes
    ]


def create(root, out_dir, version="v1.0-mini", canbus=None, **options):
    canbus = str(root if canbus is None else canbus)
    return create_nuscenes_infos(str(root), str(out_dir), "t", version, canbus, **options)


def test_infos_equal_the_devkits(info_folder, nusc, can_bus_parent):
    count = 0
    for split in ("train", "val"):
        for info in load_infos(str(info_folder / f"test_infos_temporal_{split}.pkl"))[0]:
            expected = devkit_info(
                nusc, nusc.get("sample", info["token"]), can_bus_parent / "can_bus"
            )
            del info["frame_idx"]
            assert_equal(info, expected)
            count += 1
    assert count == len(nusc.sample)


def assert_equal(value, expected, path="info"):
    """Same structure and types; numbers within 1e-9."""
    assert type(value) is type(expected), path
    if isinstance(expected, list):
        assert len(value) == len(expected), path
        for i, item in enumerate(expected):
            assert_equal(value[i], item, f"{path}[{i}]")
    elif isinstance(expected, dict):
        assert set(value) == set(expected), path
        for key in expected:
            assert_equal(value[key], expected[key], f"{path}.{key}")
    elif isinstance(expected, np.ndarray) and expected.dtype.kind == "f":
        assert value.dtype == expected.dtype
        np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-9, err_msg=path)
    else:
        np.testing.assert_array_equal(value, expected, err_msg=path)


def test_boxes_are_mmdet3ds(infos, nusc):
    for info in infos:
        lidar_token = nusc.get("sample", info["token"])["data"]["LIDAR_TOP"]
        boxes = nusc.get_sample_data(lidar_token)[1]
        expected = [
            (*box.center, *box.wlh[[1, 0, 2]], box.orientation.yaw_pitch_roll[0]) for box in boxes
        ]
        np.testing.assert_allclose(info["gt_boxes"], expected, atol=1e-9)
        names = [CATEGORY_TO_CLASS.get(box.name, box.name) for box in boxes]
        assert info["gt_names"].tolist() == names


def test_velocities_are_in_the_lidar_frame(infos, nusc):
    for info in infos:
        lidar2global = Quaternion(info["ego2global_rotation"]) * Quaternion(
            info["lidar2ego_rotation"]
        )
        for token, velocity in zip(nusc.get("sample", info["token"])["anns"], info["gt_velocity"]):
            expected = lidar2global.inverse.rotate([*nusc.box_velocity(token)[:2], 0.0])
            np.testing.assert_allclose(velocity, expected[:2], atol=1e-9)


def test_evaluation_fields_equal_the_tables(infos, nusc):
    for info in infos:
        tokens = nusc.get("sample", info["token"])["anns"]
        for i, token in enumerate(tokens):
            row = nusc.get("sample_annotation", token)
            expected = [*row["translation"], *row["size"], *row["rotation"]]
            assert boxes_global(info)[i].tolist() == expected
            np.testing.assert_allclose(
                velocities_global(info)[i], nusc.box_velocity(token)[:2], atol=1e-12
            )
            names = [nusc.get("attribute", a)["name"] for a in row["attribute_tokens"]]
            assert info["gt_attributes"][i] == "".join(names)
        assert len(info["gt_attributes"]) == len(tokens)


def test_annotation_with_several_attributes_is_refused(root_copy, tmp_path):
    root, edit = root_copy

    def change(rows):
        row = next(row for row in rows if row["attribute_tokens"])
        row["attribute_tokens"] *= 2
        return rows

    edit("sample_annotation", change)
    with pytest.raises(ValueError, match="has 2 attributes"):
        create(root, tmp_path)


def test_projection_is_the_devkits(info_folder, infos, nusc, nuscenes_root):
    dataset = TemporalNuScenesDataset(
        str(info_folder / "test_infos_temporal_val.pkl"),
        data_root=str(nuscenes_root),
        classes=CLASSES,
    )
    for index, info in enumerate(infos):
        frame = dataset.get_data_info(index)
        centers = np.concatenate(
            (info["gt_boxes"][:, :3], np.ones((len(info["gt_boxes"]), 1))), axis=1
        )
        for camera, lidar2img, filename in zip(CAMERAS, frame["lidar2img"], frame["img_filename"]):
            token = nusc.get("sample", info["token"])["data"][camera]
            path, _, intrinsic = nusc.get_sample_data(token)
            assert Path(filename) == Path(path)
            pixels = centers @ lidar2img.T
            for annotation, pixel in zip(nusc.get("sample", info["token"])["anns"], pixels):
                _, boxes, _ = nusc.get_sample_data(
                    token, box_vis_level=BoxVisibility.ALL, selected_anntokens=[annotation]
                )
                if boxes:  # wholly inside this image
                    expected = view_points(boxes[0].center[:, None], intrinsic, normalize=True)[
                        :, 0
                    ]
                    np.testing.assert_allclose(pixel[:2] / pixel[2], expected[:2], atol=1e-6)
                    assert pixel[2] > 0


def test_frame_fields(infos, nusc):
    assert [info["frame_idx"] for info in infos] == list(range(len(infos)))
    assert [info["prev"] for info in infos] == ["", *[info["token"] for info in infos[:-1]]]
    assert [info["next"] for info in infos] == [*[info["token"] for info in infos[1:]], ""]
    for info in infos:
        assert list(info["cams"]) == list(CAMERAS)
        annotations = [
            nusc.get("sample_annotation", t) for t in nusc.get("sample", info["token"])["anns"]
        ]
        points = [a["num_lidar_pts"] + a["num_radar_pts"] for a in annotations]
        assert info["valid_flag"].tolist() == [n > 0 for n in points]
        assert info["valid_flag"].dtype == bool
        # Paths do not depend on where the data lie.
        assert info["lidar_path"].startswith("samples/LIDAR_TOP/")
        assert info["cams"]["CAM_BACK"]["data_path"].startswith("samples/CAM_BACK/")


def test_metadata(info_folder):
    _, metadata = load_infos(str(info_folder / "test_infos_temporal_val.pkl"))
    assert metadata == {
        "version": "v1.0-mini",
        "split": "val",
        "box_convention": "lwh_yaw",
        "cameras": list(CAMERAS),
        "samples_in_split": 4,
    }


def test_real_can_bus(real_root, tmp_path):
    create(real_root, tmp_path, canbus=real_root.parent)
    info = load_infos(str(tmp_path / "t_infos_temporal_val.pkl"))[0][1]
    messages = json.loads((real_root.parent / "can_bus" / "scene-0103_pose.json").read_text())
    after = next(i for i, message in enumerate(messages) if message["utime"] > info["timestamp"])
    at = messages[after - 1]
    fields = ("pos", "orientation", "accel", "rotation_rate", "vel")
    expected = np.concatenate([at[field] for field in fields])
    np.testing.assert_array_equal(info["can_bus"][:16], expected)
    expected = np.concatenate([messages[after][field] for field in fields[2:]])
    np.testing.assert_array_equal(info["can_bus_motion_after"], expected)


def test_empty_split_is_written_and_counted(real_root, tmp_path):
    summary = create(real_root, tmp_path, canbus=real_root.parent / "can_bus")
    assert list(summary.frames.values()) == [0, 4]  # scene-0103 is of the val split
    assert load_infos(str(tmp_path / "t_infos_temporal_train.pkl"))[0] == []


def test_both_splits(synthetic_root, tmp_path):
    summary = create(synthetic_root, tmp_path)
    assert {Path(path).name: frames for path, frames in summary.frames.items()} == {
        "t_infos_temporal_train.pkl": 4,
        "t_infos_temporal_val.pkl": 4,
    }
    assert not summary.scenes_without_can_bus
    assert not summary.scenes_in_no_split


def test_same_input_same_bytes(synthetic_root, tmp_path):
    for folder in ("a", "b"):
        create(synthetic_root, tmp_path / folder)
    for name in ("t_infos_temporal_train.pkl", "t_infos_temporal_val.pkl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_content_is_independent_of_workers(synthetic_root, tmp_path):
    for workers in (1, 2):
        create(synthetic_root, tmp_path / str(workers), workers=workers)
    for name in ("t_infos_temporal_train.pkl", "t_infos_temporal_val.pkl"):
        one, two = (load_infos(str(tmp_path / folder / name)) for folder in "12")
        assert one[1] == two[1]
        assert len(one[0]) == len(two[0])
        for a, b in zip(one[0], two[0]):
            assert_equal(a, b)


def test_errors_of_a_worker_are_passed_on(root_copy, tmp_path):
    root, edit = root_copy
    edit("scene", rename_scenes({"scene-0103": "scene-0916"}))
    with pytest.raises(FileNotFoundError, match="scene-0916_pose.json.*--canbus"):
        create(root, tmp_path, workers=2)


def test_killed_worker_is_reported(synthetic_root, tmp_path, monkeypatch):
    parent = os.getpid()

    def killed(*arguments):
        assert os.getpid() != parent
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr("projects.bevformer.nuscenes.create_infos.scene_infos", killed)
    with pytest.raises(ValueError, match="fewer --workers"):
        create(synthetic_root, tmp_path, workers=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("interruption", [OSError("disk full"), KeyboardInterrupt()])
def test_interrupted_run_keeps_the_old_file(synthetic_root, tmp_path, monkeypatch, interruption):
    create(synthetic_root, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def break_off(content, file, protocol):
        file.write(b"half")
        raise interruption

    monkeypatch.setattr("projects.bevformer.nuscenes.create_infos.pickle.dump", break_off)
    with pytest.raises(type(interruption)):
        create(synthetic_root, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_scene_of_no_split_is_left_out_and_counted(root_copy, tmp_path):
    root, edit = root_copy
    edit("scene", rename_scenes({"scene-0061": SCENE_OF_NO_MINI_SPLIT}))
    summary = create(root, tmp_path)
    assert summary.scenes_in_no_split == [SCENE_OF_NO_MINI_SPLIT]
    assert list(summary.frames.values()) == [0, 4]


def test_blacklisted_scene_gets_zeros_and_is_counted(root_copy, tmp_path):
    root, edit = root_copy
    (root / "v1.0-mini").rename(root / "v1.0-trainval")
    edit("scene", rename_scenes({"scene-0061": "scene-0161"}), version="v1.0-trainval")
    summary = create(root, tmp_path, version="v1.0-trainval")
    assert summary.scenes_without_can_bus == ["scene-0161"]
    train, metadata = load_infos(str(tmp_path / "t_infos_temporal_train.pkl"))
    assert metadata["version"] == "v1.0-trainval"
    assert not any(info["can_bus"].any() for info in train)
    val, _ = load_infos(str(tmp_path / "t_infos_temporal_val.pkl"))
    assert all(info["can_bus"].any() for info in val)


def test_v1_0_is_trainval_and_test(root_copy, tmp_path):
    root, edit = root_copy
    (root / "v1.0-mini").rename(root / "v1.0-trainval")
    shutil.copytree(str(root / "v1.0-trainval"), str(root / "v1.0-test"))
    names = create_splits_scenes()["test"][:2]
    edit(
        "scene", rename_scenes(dict(zip(("scene-0061", "scene-0103"), names))), version="v1.0-test"
    )
    for table in ("sample_annotation", "instance"):
        edit(table, lambda rows: [], version="v1.0-test")
    summary = create(root, tmp_path, version="v1.0")
    assert [Path(path).stem.rsplit("_", 1)[1] for path in summary.frames] == [
        "train",
        "val",
        "test",
    ]
    assert summary.scenes_without_can_bus == names  # and the test split needs none
    test, metadata = load_infos(str(tmp_path / "t_infos_temporal_test.pkl"))
    assert metadata["split"] == "test"
    assert len(test) == 8
    assert "gt_boxes" not in test[0]


def test_missing_can_bus_of_a_scene_is_an_error(root_copy, tmp_path):
    root, edit = root_copy
    edit("scene", rename_scenes({"scene-0103": "scene-0916"}))
    with pytest.raises(FileNotFoundError, match="scene-0916_pose.json.*--canbus"):
        create(root, tmp_path)


def test_wrong_can_bus_path_is_an_error(root_copy, tmp_path):
    root, _ = root_copy
    with pytest.raises(FileNotFoundError, match="no CAN bus folder"):
        create(root, tmp_path, canbus=tmp_path)


def test_lidar_files_are_not_needed(root_copy, tmp_path):
    root, _ = root_copy
    (root / "samples").unlink()
    for camera in CAMERAS:
        (root / "samples" / camera).mkdir(parents=True)
    table = json.loads((root / "v1.0-mini" / "sample_data.json").read_text())
    for row in table:
        if "/CAM_" in row["filename"]:
            (root / row["filename"]).touch()
    assert sum(create(root, tmp_path).frames.values()) == 8


def test_scene_without_images_is_left_out_and_counted(root_copy, tmp_path):
    root, _ = root_copy
    (root / "samples").unlink()
    table = json.loads((root / "v1.0-mini" / "sample_data.json").read_text())
    scene = json.loads((root / "v1.0-mini" / "scene.json").read_text())[0]
    (root / "samples" / "CAM_FRONT").mkdir(parents=True)
    for row in table:
        if row["sample_token"] == scene["first_sample_token"] and "/CAM_FRONT/" in row["filename"]:
            (root / row["filename"]).touch()
    summary = create(root, tmp_path)
    assert len(summary.scenes_without_images) == 1
    assert scene["name"] not in summary.scenes_without_images
    shutil.rmtree(str(root / "samples"))
    with pytest.raises(ValueError, match="2 have no camera images"):
        create(root, tmp_path)
    assert sum(create(root, tmp_path, need_images=False).frames.values()) == 8


def test_sweeps(root_copy, tmp_path):
    """The key frames of a scene stand in for the sweeps between them."""
    root, edit = root_copy

    def chain_lidar(rows):
        lidar = sorted(
            (row for row in rows if "LIDAR_TOP" in row["filename"]),
            key=lambda row: row["timestamp"],
        )
        for before, row in zip(lidar, lidar[1:]):
            row["prev"] = before["token"]
        lidar[0]["prev"] = ""
        return rows

    edit("sample_data", chain_lidar)
    create(root, tmp_path, max_sweeps=2)
    nusc = NuScenes("v1.0-mini", str(root), verbose=False)
    infos = [
        info
        for split in ("train", "val")
        for info in load_infos(str(tmp_path / f"t_infos_temporal_{split}.pkl"))[0]
    ]
    infos.sort(key=lambda info: info["timestamp"])
    assert [len(info["sweeps"]) for info in infos] == [0, 1, 2, 2, 2, 2, 2, 2]
    for info in infos:
        expected = devkit_info(nusc, nusc.get("sample", info["token"]), root / "can_bus", 2)
        assert_equal(info["sweeps"], expected["sweeps"])


@pytest.mark.parametrize(
    ("version", "error", "message"),
    [
        ("v1.0-tiny", ValueError, "v1.0-mini"),
        ("v1.0-test", FileNotFoundError, "--root-path and --version"),
    ],
)
def test_wrong_version(root_copy, tmp_path, version, error, message):
    with pytest.raises(error, match=message):
        create(root_copy[0], tmp_path, version=version)


def _without(key):
    """A change that takes a key from the last row."""
    return lambda rows: [
        *rows[:-1],
        {name: value for name, value in rows[-1].items() if name != key},
    ]


def _with(**values):
    """A change of the last row."""
    return lambda rows: [*rows[:-1], {**rows[-1], **values}]


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        ("ego_pose", None, r"ego_pose\.json is damaged \(Expecting"),
        ("ego_pose", lambda rows: 3, r"ego_pose\.json is not a list of records"),
        (
            "sample_data",
            _without("filename"),
            r"sample_data\.json: record \d+ \(\w+\) has no 'filename'",
        ),
        (
            "sample",
            _with(token="x"),
            r"sample\.json: next of \w+ is '\w{32}', which is not in sample",
        ),
        (
            "sample_data",
            _with(ego_pose_token="gone"),
            r"sample_data\.json: ego_pose_token of \w+ is 'gone', which is not in ego_pose",
        ),
        (
            "calibrated_sensor",
            _with(sensor_token="gone"),
            r"calibrated_sensor\.json: sensor_token of \w+ is 'gone', which is not in sensor",
        ),
        (
            "instance",
            _with(category_token="gone"),
            r"instance\.json: category_token of \w+ is 'gone', which is not in category",
        ),
        (
            "sample_annotation",
            _with(next="gone"),
            r"sample_annotation\.json: next of \w+ is 'gone'",
        ),
        ("sample_annotation", _with(size=[1.0]), r"size of \w+ is \[1\.0\], not 3 finite numbers"),
        ("sample_annotation", _with(num_lidar_pts=2**40), r"sample_annotation\.json: .* maximum"),
    ],
)
def test_damaged_tables_are_named(root_copy, tmp_path, table, change, message):
    root, edit = root_copy
    if change is None:
        (root / "v1.0-mini" / f"{table}.json").write_text("[{")
    else:
        edit(table, change)
    with pytest.raises(ValueError, match=message):
        create(root, tmp_path)


def test_missing_table_is_named(root_copy, tmp_path):
    (root_copy[0] / "v1.0-mini" / "category.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"category\.json does not exist"):
        create(root_copy[0], tmp_path)


def test_cyclic_sample_chain_is_refused(root_copy, tmp_path):
    root, edit = root_copy

    def close_the_loop(samples):
        last = next(sample for sample in samples if not sample["next"])
        last["next"] = last["token"]
        return samples

    edit("sample", close_the_loop)
    with pytest.raises(
        ValueError, match=r"sample\.json: next of \w+ is .*, in time order it is ''"
    ):
        create(root, tmp_path)


def test_samples_without_annotations(root_copy, tmp_path):
    root, edit = root_copy
    tables = {
        name: json.loads((root / "v1.0-mini" / f"{name}.json").read_text())
        for name in ("scene", "sample", "sample_annotation")
    }
    (scene,) = [row["token"] for row in tables["scene"] if row["name"] == "scene-0103"]
    samples = {row["token"] for row in tables["sample"] if row["scene_token"] == scene}
    bare = [row for row in tables["sample_annotation"] if row["sample_token"] in samples]
    tokens, instances = ({row[key] for row in bare} for key in ("token", "instance_token"))
    edit("sample_annotation", lambda rows: [row for row in rows if row["token"] not in tokens])
    edit("instance", lambda rows: [row for row in rows if row["token"] not in instances])

    create(root, tmp_path)
    for info in load_infos(str(tmp_path / "t_infos_temporal_val.pkl"))[0]:
        assert info["gt_boxes"].shape == (0, 7)
        assert info["gt_velocity"].shape == velocities_global(info).shape == (0, 2)
        assert boxes_global(info).shape == (0, 10)
        assert info["gt_names"].shape == info["num_lidar_pts"].shape == (0,)
        assert info["gt_attributes"].shape == (0,)
        assert info["valid_flag"].dtype == bool


def test_sample_without_a_camera(root_copy, tmp_path):
    root, edit = root_copy
    edit(
        "sample_data", lambda rows: [row for row in rows if "CAM_BACK_LEFT" not in row["filename"]]
    )
    with pytest.raises(ValueError, match="has no key frame of CAM_BACK_LEFT"):
        create(root, tmp_path)


def far_off(camera):
    camera["sensor2lidar_translation"] = camera["sensor2lidar_translation"] * 10


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: c.update(sensor2lidar_rotation=c["sensor2lidar_rotation"].T),
        lambda c: c.update(sensor2ego_rotation=np.roll(c["sensor2ego_rotation"], -1)),
        lambda c: c.update(sensor2ego_translation=[10.0, 0.0, 0.0]),
        far_off,
    ],
)
def test_cameras_that_contradict_their_poses_are_refused(info_folder, tmp_path, damage):
    content = pickle.loads((info_folder / "test_infos_temporal_val.pkl").read_bytes())
    for info in content["infos"]:
        for name, camera in info["cams"].items():
            if name == "CAM_FRONT_LEFT":
                damage(camera)
    path = tmp_path / "infos.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(
        ValueError, match=r"CAM_FRONT_LEFT of frame 0: sensor2lidar differs by \d+ deg"
    ):
        load_infos(str(path))


ORIGINAL = {
    "lidar_path", "token", "prev", "next", "can_bus", "frame_idx", "sweeps", "cams", "scene_token",
    "lidar2ego_translation", "lidar2ego_rotation", "ego2global_translation", "ego2global_rotation",
    "timestamp", "gt_boxes", "gt_names", "gt_velocity", "num_lidar_pts", "num_radar_pts", "valid_flag",
}  # fmt: skip


def test_official_format(synthetic_root, tmp_path):
    create(synthetic_root, tmp_path / "plain", max_sweeps=1)
    create(synthetic_root, tmp_path / "official", max_sweeps=1, official=True)
    name = "t_infos_temporal_val.pkl"
    plain, official = (
        pickle.loads((tmp_path / folder / name).read_bytes()) for folder in ("plain", "official")
    )
    for info, theirs in zip(plain["infos"], official["infos"]):
        assert set(theirs) >= ORIGINAL
        boxes = info["gt_boxes"]
        np.testing.assert_array_equal(theirs["gt_boxes"][:, :6], boxes[:, [0, 1, 2, 4, 3, 5]])
        np.testing.assert_array_equal(theirs["gt_boxes"][:, 6], -boxes[:, 6] - np.pi / 2)
        np.testing.assert_array_equal(theirs["can_bus"][7:16], info["can_bus_motion_after"])
        np.testing.assert_array_equal(theirs["can_bus"][:7], info["can_bus"][:7])
        assert theirs["gt_names"].dtype.kind == "U"
        records = [*theirs["cams"].values(), *theirs["sweeps"]]
        assert (
            records[0]["data_path"] == f"{synthetic_root}/{info['cams']['CAM_FRONT']['data_path']}"
        )
        assert all(Path(record["data_path"]).is_file() for record in records[:6])

    # Read here they are the same, but for the paths.
    (ours, metadata), (read, theirs) = (
        load_infos(str(tmp_path / folder / name)) for folder in ("plain", "official")
    )
    assert metadata == theirs
    for info, other in zip(ours, read):
        for record in (*other["cams"].values(), *other["sweeps"]):
            record["data_path"] = os.path.relpath(record["data_path"], synthetic_root)
        other["lidar_path"] = os.path.relpath(other["lidar_path"], synthetic_root)
        other["gt_names"] = other["gt_names"].astype(object)
        assert_equal(other, info)

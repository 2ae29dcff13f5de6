"""Where the files of records lie, and what an info file does not say."""

import logging

import cv2
import numpy as np
import pytest

from projects.bevformer.datasets.paths import DataPaths, gaps
from projects.bevformer.nuscenes.spec import CAMERAS


@pytest.mark.parametrize(
    ("old_root", "new_root"),
    [
        ("/mnt/samples/nuscenes/", "new"),
        ("/mnt/samples/", "new"),
        ("/mnt/sweeps/samples/nuscenes/", "samples/new"),
        ("data/samples/nuscenes/", "samples/new"),
        ("/mnt/nuscenes/", "samples/new"),
        ("/mnt/nuscenes/", "samples"),
        ("", "samples/new"),
        ("", "samples"),  # the record's own path begins with the name of the root
    ],
)
@pytest.mark.parametrize("is_absolute", [True, False])
def test_roots_below_a_folder_named_samples(
    make_info, tmp_path, monkeypatch, old_root, new_root, is_absolute
):
    monkeypatch.chdir(tmp_path)
    picture = tmp_path / new_root / "samples" / "CAM_FRONT" / "0.jpg"
    picture.parent.mkdir(parents=True)
    picture.touch()
    info = make_info()
    for name, camera in info["cams"].items():
        camera["data_path"] = f"{old_root}samples/{name}/0.jpg"
    info["lidar_path"] = f"{old_root}sweeps/LIDAR_TOP/0.bin"
    root = str(tmp_path / new_root) if is_absolute else new_root
    found = DataPaths(root, info, "infos.pkl").resolve(info)
    assert (tmp_path / found["cams"]["CAM_FRONT"]["data_path"]).samefile(picture)
    expected = tmp_path / new_root / "sweeps" / "LIDAR_TOP" / "0.bin"
    if old_root or new_root != "samples":
        assert tmp_path / found["lidar_path"] == expected


def test_paths_of_another_machine_do_not_lead_out(make_info, tmp_path):
    info = make_info()
    for name, camera in info["cams"].items():
        camera["data_path"] = f"/old/samples/{name}/0.jpg"
    picture = tmp_path / "samples" / "CAM_FRONT" / "0.jpg"
    picture.parent.mkdir(parents=True)
    picture.touch()
    paths = DataPaths(str(tmp_path), info, "infos.pkl")
    with pytest.raises(ValueError, match="outside of data_root"):
        paths.join("/old/samples/../../secret.jpg")


@pytest.mark.parametrize(
    ("scale", "is_known", "warns"),
    [(1.0, False, False), (0.8, False, True), (0.9, False, True), (0.5, False, True),
     (1.25, False, True), (1.0, True, False), (0.8, True, True)],
)  # fmt: skip
def test_images_far_off_their_principal_point_are_warned_of(
    make_info, tmp_path, scale, is_known, warns
):
    info = make_info()
    for name, camera in info["cams"].items():
        camera["data_path"] = f"{name}.jpg"
        camera["cam_intrinsic"] = np.array([[100.0, 0, 81.6], [0, 100, 49.1], [0, 0, 1]])
        if is_known and name == "CAM_BACK":
            camera.update(width=round(160 * scale), height=round(90 * scale))
    image = np.zeros((round(90 * scale), round(160 * scale), 3), np.uint8)
    cv2.imwrite(str(tmp_path / "CAM_BACK.jpg"), image)
    (tmp_path / "CAM_FRONT.jpg").touch()  # damaged: loading says so
    paths = DataPaths(str(tmp_path), info, "a.pkl")
    lines = gaps({}, info, paths)
    assert len(lines) == warns
    if warns:
        size = f"{image.shape[1]} x {image.shape[0]}"
        says = f"CAM_BACK.jpg is {size}, but cam_intrinsic of a.pkl has its centre at (82, 49)"
        assert says in lines[0]


def test_cameras_upside_down_are_warned_of(make_info):
    info = make_info()
    camera = info["cams"]["CAM_FRONT"]
    camera["sensor2lidar_rotation"] = camera["sensor2lidar_rotation"].T
    (line,) = gaps({}, info, DataPaths("root", info, "a.pkl"))
    assert line.startswith("a.pkl: camera CAM_FRONT is upside down by sensor2lidar_rotation")


def test_a_data_set_compares_images_with_the_recorded_size(make_dataset, two_scenes):
    for info in two_scenes:
        info["cams"][CAMERAS[1]].update(width=160, height=90)
    sizes = make_dataset(two_scenes).get_data_info(0)["image_size"]
    assert sizes == [None, (160, 90), None, None, None, None]


def test_a_data_set_warns_of_missing_fields(make_dataset, two_scenes, caplog):
    for info in two_scenes:
        del info["valid_flag"]
    with caplog.at_level(logging.WARNING):
        dataset = make_dataset(two_scenes, use_valid_flag=True)
    assert any(
        "infos.pkl: 6 of 6 frames have no valid_flag" in r.getMessage() for r in caplog.records
    )
    assert dataset.get_ann_info(0)["gt_names"].shape == (3,)

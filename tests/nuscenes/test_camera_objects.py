"""Objects in single images, compared with the devkit's own."""

import numpy as np
import pytest
import torch
from nuscenes.utils.geometry_utils import view_points
from scipy.spatial.transform import Rotation

from projects.bevformer.geometry.camera_boxes import box_corners
from projects.bevformer.nuscenes.camera_objects import camera_objects, upright_rotations
from projects.bevformer.nuscenes.infos import load_infos
from projects.bevformer.nuscenes.spec import CAMERAS, CATEGORY_TO_CLASS, CLASSES

CLASS_INDEX = {name: i for i, name in enumerate(CLASSES)}


def seen(objects, hw, scale=1.0, crop=(0, 0), image_hw=None):
    matrix = np.diag([scale, scale, 1.0])
    matrix[:2, 2] = -scale * np.array(crop)
    return objects.in_image(matrix @ objects.intrinsics, hw, image_hw or hw)


def all_cameras(folder, nusc, min_points=0, min_visibility=0.0):
    """(devkit's boxes of at least so many points, our objects, image size) of every picture."""
    files = [folder / f"test_infos_temporal_{split}.pkl" for split in ("train", "val")]
    for info in (info for file in files for info in load_infos(str(file))[0]):
        sample = nusc.get("sample", info["token"])
        cameras = camera_objects(info, CLASS_INDEX, min_points, min_visibility)
        for name, objects in zip(CAMERAS, cameras):
            token = sample["data"][name]
            record = nusc.get("sample_data", token)
            _, boxes, _ = nusc.get_sample_data(token)
            annotations = [nusc.get("sample_annotation", box.token) for box in boxes]
            points = [a["num_lidar_pts"] + a["num_radar_pts"] for a in annotations]
            boxes = [
                box
                for box, annotation, count in zip(boxes, annotations, points)
                if annotation["category_name"] in CATEGORY_TO_CLASS and count >= min_points
            ]
            yield boxes, objects, (record["height"], record["width"])


def test_objects_equal_the_devkits(info_folder, nusc):
    total = 0
    for boxes, objects, hw in all_cameras(info_folder, nusc):
        ours = seen(objects, hw)
        assert len(ours["label"]) == len(boxes)
        total += len(boxes)
        for box in boxes:
            distance = np.linalg.norm(ours["center"] - box.center, axis=1)
            i = distance.argmin()
            assert distance[i] < 1e-3
            assert CLASSES[ours["label"][i]] == CATEGORY_TO_CLASS[box.name]
            np.testing.assert_allclose(ours["size_wlh"][i], box.wlh, rtol=1e-5)
            np.testing.assert_allclose(ours["rotation"][i], box.rotation_matrix, atol=2e-3)
            corners = view_points(box.corners(), objects.intrinsics, normalize=True)[:2].T
            expected = np.concatenate((corners.min(axis=0), corners.max(axis=0)))
            expected = np.clip(expected, 0, np.tile(hw[::-1], 2))
            assert np.abs(ours["bbox"][i] - expected).max() < 2e-3 * hw[1]
    assert total > 10


def test_objects_with_few_points_or_low_visibility_are_dropped(info_folder, nusc):
    counts = {}
    for options in ((0, 0.0), (5, 0.0), (0, 0.9)):
        found = all_cameras(info_folder, nusc, *options)
        counts[options] = [
            (len(boxes), len(seen(objects, hw)["label"])) for boxes, objects, hw in found
        ]
    assert all(devkit == ours for devkit, ours in counts[5, 0.0])
    everything = sum(ours for _, ours in counts[0, 0.0])
    assert 0 < sum(ours for _, ours in counts[5, 0.0]) < everything
    assert 0 < sum(ours for _, ours in counts[0, 0.9]) < everything


def test_boxes_are_upright_when_the_lidar_is_tilted():
    lean = Rotation.from_euler("xyz", (4.0, -3.0, 50.0), degrees=True).as_matrix()
    yaws = np.array([0.3, -2.0, 1.4])
    rotations = upright_rotations(yaws, lean)
    in_world = lean @ rotations
    np.testing.assert_allclose(in_world[:, :, 2], np.tile([0, 0, 1], (3, 1)), atol=1e-12)
    np.testing.assert_allclose(in_world.transpose(0, 2, 1) @ in_world, [np.eye(3)] * 3, atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(rotations), 1.0)
    np.testing.assert_allclose(np.arctan2(rotations[:, 1, 0], rotations[:, 0, 0]), yaws)


@pytest.fixture
def info(make_info):
    """A record with one car, ten metres ahead of the camera CAM_FRONT at (0, 0.5, -0.3)."""
    info = make_info()
    keep = np.array([True, False, False])
    for key in ("gt_boxes", "gt_names", "gt_velocity", "num_lidar_pts", "num_radar_pts"):
        info[key] = info[key][keep]
    info["gt_boxes"] = np.array([[0.0, 10.5, -0.3, 4.0, 2.0, 1.0, np.pi / 2]])
    info["gt_velocity"] = np.array([[3.0, 4.0]])
    return info


HW = (225, 400)


def test_by_hand(info):
    objects = camera_objects(info, {"car": 2}, 0, 0.2)[0]
    ours = seen(objects, HW)
    np.testing.assert_allclose(ours["center"], [[0, 0, 10]], atol=1e-6)
    assert ours["label"].tolist() == [2]
    assert ours["speed"].tolist() == [5.0]
    assert ours["attribute"].tolist() == [-1]
    np.testing.assert_allclose(ours["size_wlh"], [[2, 4, 1]])
    np.testing.assert_allclose(ours["rotation"][0][:, 0], [0, 0, 1], atol=1e-6)  # heads away
    np.testing.assert_allclose(ours["rotation"][0][:, 2], [0, -1, 0], atol=1e-6)  # stands upright
    # Its near face, 2 m wide and 1 m high, is 8 m away; the focal length is 100.
    expected = [200 - 12.5, 112 - 6.25, 200 + 12.5, 112 + 6.25]
    np.testing.assert_allclose(ours["bbox"], [expected], rtol=1e-5)
    corners = box_corners(*(torch.from_numpy(ours[k]) for k in ("rotation", "center", "size_wlh")))
    np.testing.assert_allclose(corners[0].min(dim=0).values, [-1, -0.5, 8], atol=1e-5)


def test_boxes_follow_crop_and_scale(info):
    objects = camera_objects(info, {"car": 2}, 0, 0.2)[0]
    ours = seen(objects, HW, scale=2.0, crop=(0, 110), image_hw=(230, 800))
    expected = [2 * 187.5, 0, 2 * 212.5, 2 * (118.25 - 110)]
    np.testing.assert_allclose(ours["bbox"], [expected], rtol=1e-5)
    np.testing.assert_allclose(ours["intrinsics"][0], [200, 0, 400])
    below = seen(objects, HW, crop=(0, 130), image_hw=(95, 400))
    assert len(below["label"]) == 0  # cropped away


@pytest.mark.parametrize(
    ("name", "index"), [("vehicle.parked", 1), ("cycle.with_rider", 0), ("", -1)]
)
def test_attributes_are_optional(info, name, index):
    info["gt_attributes"] = np.array([name])
    ours = seen(camera_objects(info, {"car": 0}, 0, 0.2)[0], HW)
    assert ours["attribute"].tolist() == [index]


def test_objects_behind_the_camera_are_not_seen(info):
    for distance in (-10.5, 1.5):
        info["gt_boxes"][0, 1] = distance
        assert len(seen(camera_objects(info, {"car": 0}, 0, 0.0)[0], HW)["label"]) == 0


def test_without_objects(info):
    for objects in camera_objects(info, {"bus": 0}, 0, 0.2):
        ours = seen(objects, HW)
        assert ours["bbox"].shape == (0, 4)
        assert ours["rotation"].shape == (0, 3, 3)

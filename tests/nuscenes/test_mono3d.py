"""`--mono3d` against the devkit, image by image and box by box."""

import json

import numpy as np
import pytest
from nuscenes.utils.geometry_utils import BoxVisibility, view_points
from pyquaternion import Quaternion
from shapely.geometry import MultiPoint
from shapely.geometry import box as rectangle

from projects.bevformer.nuscenes.create_infos import create_nuscenes_infos
from projects.bevformer.nuscenes.spec import CAMERAS, CATEGORY_TO_CLASS
from tools._mono3d import _ATTRIBUTES, _CATEGORIES, _bounds, write_mono3d


@pytest.fixture(scope="module")
def files(nuscenes_root, can_bus_parent, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mono3d")
    create_nuscenes_infos(str(nuscenes_root), str(folder), "t", "v1.0-mini", str(can_bus_parent))
    files = [
        write_mono3d(str(folder / f"t_infos_temporal_{split}.pkl"), str(nuscenes_root), workers=2)
        for split in ("train", "val")
    ]
    assert [file.name for file in files] == [
        f"t_infos_temporal_{split}_mono3d.coco.json" for split in ("train", "val")
    ]
    return [json.loads(file.read_text()) for file in files]


def expected_annotations(nusc, token):
    """Boxes of an image, by the devkit's transformations one after the other."""
    data = nusc.get("sample_data", token)
    _, boxes, intrinsic = nusc.get_sample_data(token, box_vis_level=BoxVisibility.NONE)
    camera = nusc.get("calibrated_sensor", data["calibrated_sensor_token"])
    ego = nusc.get("ego_pose", data["ego_pose_token"])
    found = []
    for box in boxes:
        category = CATEGORY_TO_CLASS.get(box.name)
        if category is None or box.center[2] <= 0:
            continue
        corners = box.corners()
        points = view_points(corners[:, corners[2] > 0], intrinsic, normalize=True)[:2].T
        seen = MultiPoint(points.tolist()).convex_hull.intersection(
            rectangle(0, 0, data["width"], data["height"])
        )
        if seen.is_empty:
            continue
        x1, y1, x2, y2 = seen.bounds
        velocity = np.array([*nusc.box_velocity(box.token)[:2], 0.0])
        velocity = Quaternion(ego["rotation"]).inverse.rotate(velocity)
        velocity = Quaternion(camera["rotation"]).inverse.rotate(velocity)
        center2d = view_points(box.center[:, None], intrinsic, normalize=True)[:2, 0]
        tokens = nusc.get("sample_annotation", box.token)["attribute_tokens"]
        attribute = nusc.get("attribute", tokens[0])["name"] if tokens else "None"
        width, length, height = box.wlh
        found.append(
            {
                "file_name": data["filename"],
                "image_id": token,
                "area": (x2 - x1) * (y2 - y1),
                "category_name": category,
                "category_id": _CATEGORIES.index(category),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "iscrowd": 0,
                "bbox_cam3d": [
                    *box.center, length, height, width, -box.orientation.yaw_pitch_roll[0]
                ],
                "velo_cam3d": velocity[[0, 2]],
                "center2d": [*center2d, box.center[2]],
                "attribute_name": attribute,
                "attribute_id": _ATTRIBUTES.index(attribute),
                "segmentation": [],
            }
        )  # fmt: skip
    return found


def test_annotations_equal_the_devkits(files, nusc):
    count = 0
    for content in files:
        of_image = {image["id"]: [] for image in content["images"]}
        for annotation in content["annotations"]:
            of_image[annotation["image_id"]].append(annotation)
        for token, annotations in of_image.items():
            expected = expected_annotations(nusc, token)
            assert len(annotations) == len(expected)
            for annotation, other in zip(annotations, expected):
                assert set(annotation) == {*other, "id"}
                for key, value in other.items():
                    if isinstance(value, str):
                        assert annotation[key] == value
                    else:
                        np.testing.assert_allclose(
                            annotation[key], value, rtol=1e-7, atol=1e-7, err_msg=key
                        )
            count += len(annotations)
    assert count > 20


def test_images_equal_the_tables(files, nusc):
    images = [image for content in files for image in content["images"]]
    assert len(images) == len(CAMERAS) * len(nusc.sample)
    for image in images:
        data = nusc.get("sample_data", image["id"])
        camera = nusc.get("calibrated_sensor", data["calibrated_sensor_token"])
        assert image["file_name"] == data["filename"]
        assert image["token"] == data["sample_token"]
        assert (image["width"], image["height"]) == (data["width"], data["height"])
        assert image["cam_intrinsic"] == camera["camera_intrinsic"]
        assert image["cam2ego_translation"] == camera["translation"]


def test_numbers_and_categories(files):
    for content in files:
        ids = [annotation["id"] for annotation in content["annotations"]]
        assert ids == list(range(len(ids)))
        assert [row["id"] for row in content["categories"]] == list(range(10))
        assert content["categories"][1]["name"] == "truck"


def test_bounds_are_cut_at_the_image():
    intrinsic = np.array([[100.0, 0, 50], [0, 100, 50], [0, 0, 1]])
    square = np.array([[x, y, 1.0] for x in (-1, 0) for y in (0.1, 0.2)])
    np.testing.assert_allclose(_bounds(square, intrinsic, 100, 100), [0, 60, 50, 70])
    assert _bounds(square + [3, 0, 0], intrinsic, 100, 100) is None
    assert _bounds(square * [1, 1, -1], intrinsic, 100, 100) is None


def test_test_split_has_none(make_info, write_infos, tmp_path):
    info = make_info()
    del info["gt_boxes"]
    assert write_mono3d(write_infos([info]), str(tmp_path)) is None
    assert [path.name for path in tmp_path.iterdir()] == ["infos.pkl"]


def test_workers_do_not_change_the_file(info_folder, nuscenes_root, files, tmp_path):
    copy = tmp_path / "copy.pkl"
    copy.write_bytes((info_folder / "test_infos_temporal_val.pkl").read_bytes())
    assert json.loads(write_mono3d(str(copy), str(nuscenes_root)).read_text()) == files[1]

"""On real nuScenes frames, boxes are drawn where the devkit draws them."""

from pathlib import Path

import numpy as np
import pytest
from nuscenes.nuscenes import NuScenes

from projects.bevformer.nuscenes.create_infos import create_nuscenes_infos
from projects.bevformer.nuscenes.infos import load_infos
from projects.bevformer.nuscenes.records import lidar2img_of_camera
from projects.bevformer.nuscenes.spec import CAMERAS, CATEGORY_TO_CLASS
from projects.bevformer.visualization.boxes import FRONT_FACE, REAR_FACE, drawable_boxes

FIXTURE = Path(__file__).parents[3] / "shared" / "data" / "nuscenes_real4"
pytestmark = pytest.mark.skipif(not FIXTURE.is_dir(), reason=f"{FIXTURE} is not there")

# The devkit's corners: 0 1 2 3 are the front, 4 5 6 7 the rear, each top left, top right, bottom
# right, bottom left as seen from ahead. The same corners in mmdet3d's numbering:
DEVKIT_FRONT = (6, 5, 4, 7)
DEVKIT_REAR = (2, 1, 0, 3)


@pytest.fixture(scope="module")
def nusc():
    return NuScenes("v1.0-mini", str(FIXTURE / "nuscenes"), verbose=False)


@pytest.fixture(scope="module")
def infos(tmp_path_factory):
    out_dir = tmp_path_factory.mktemp("infos")
    create_nuscenes_infos(
        str(FIXTURE / "nuscenes"), str(out_dir), "real", "v1.0-mini", str(FIXTURE)
    )
    return load_infos(str(out_dir / "real_infos_temporal_val.pkl"))[0]


def project(lidar2img, corners_lidar):
    homogeneous = np.append(corners_lidar, np.ones(corners_lidar.shape[:-1] + (1,)), axis=-1)
    points = homogeneous @ lidar2img.T
    return points[..., :2] / points[..., 2:3], points[..., 2]


def test_projection_equals_the_devkit(nusc, infos):
    compared = 0
    for info in infos:
        key_frame = nusc.get("sample", info["token"])
        in_lidar = {
            box.token: box for box in nusc.get_sample_data(key_frame["data"]["LIDAR_TOP"])[1]
        }
        for name in CAMERAS:
            camera = info["cams"][name]
            _, seen, intrinsic = nusc.get_sample_data(camera["sample_data_token"])
            for box in seen:
                center = intrinsic @ box.center
                point, depth = project(lidar2img_of_camera(camera), in_lidar[box.token].center)
                np.testing.assert_allclose(point, center[:2] / center[2], atol=1e-3)
                np.testing.assert_allclose(depth, center[2], atol=1e-4)
                compared += 1
    assert compared > 80


def test_drawn_corners_equal_the_devkit(nusc, infos, make_boxes):
    assert set(DEVKIT_FRONT) == set(FRONT_FACE)
    assert set(DEVKIT_REAR) == set(REAR_FACE)
    for info in infos:
        rows = np.concatenate((info["gt_boxes"], info["gt_velocity"]), axis=1)
        (boxes,) = drawable_boxes(None, make_boxes(*rows.tolist()), 0.0)
        for name in CAMERAS:
            camera = info["cams"][name]
            ours, depth = project(lidar2img_of_camera(camera), boxes.corners_lidar)
            in_front = (depth > 0).all(axis=1)
            _, seen, intrinsic = nusc.get_sample_data(camera["sample_data_token"])
            for box in (box for box in seen if box.name in CATEGORY_TO_CLASS):
                theirs = intrinsic @ box.corners()
                theirs = (theirs[:2] / theirs[2]).T
                error = np.abs(ours[:, DEVKIT_FRONT + DEVKIT_REAR] - theirs).max(axis=(1, 2))
                # Info boxes turn about the lidar's z axis, which leans by up to 4.5 degrees here.
                tolerance = 0.1 * np.ptp(theirs, axis=0).max()
                assert error[in_front].min() < tolerance, (info["token"], name, box.name)

"""Augmentation of the views and of the ground plane: what was in a pixel stays in it."""

import copy

import numpy as np
import pytest
import torch
from mmdet3d.core.bbox import LiDARInstance3DBoxes
from mmdet3d.datasets.builder import PIPELINES

CONF = {"reisze": [48], "crop": (10, 20, 90, 52), "H": 60, "W": 100, "rand_flip": True}
BOXES = [
    [5.0, 10.0, -1.0, 4.5, 1.9, 1.6, 0.3, 3.0, 4.0],
    [-8.0, 12.0, 0.0, 1.0, 2.0, 1.7, -2.0, 0, -1],
]


def crop(**options):
    conf = {**CONF, **options.pop("conf", {})}
    return PIPELINES.build(dict(type="CropResizeFlipImage", data_aug_conf=conf, **options))


def turn(**options):
    return PIPELINES.build(dict(type="GlobalRotScaleTransImage", **options))


def frame(height=60, width=100):
    """Two cameras at the lidar, looking ahead and back; each image has one bright square."""
    intrinsics = np.array([[50.0, 0, 50, 0], [0, 50, 30, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    ahead = np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    back = np.array([[-1.0, 0, 0, 0], [0, 0, -1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    images = [np.zeros((height, width, 3), np.float32) for _ in range(2)]
    for image in images:
        image[29:32, 59:62] = 255
    boxes = LiDARInstance3DBoxes(torch.tensor(BOXES), box_dim=9, origin=(0.5, 0.5, 0.5))
    return {
        "img": images,
        "cam2img": [intrinsics, intrinsics.copy()],
        "lidar2cam": [ahead, back],
        "lidar2img": [intrinsics @ ahead, intrinsics @ back],
        "gt_bboxes_3d": boxes,
        "aug_param": {},
    }


def pixels(matrix, points):
    """(X, 3) lidar points -> (X, 2)."""
    uvd = np.concatenate((points, np.ones((len(points), 1))), axis=1) @ matrix.T
    return uvd[:, :2] / uvd[:, 2:3]


def corners(boxes):
    return boxes.corners.reshape(-1, 3).numpy()


# CropResizeFlipImage


def test_bright_square_is_at_the_projected_pixel():
    results = crop()(frame())
    point = np.array([[2.0, 10.0, 0.0]])  # pixel (60, 30) of the camera ahead, in the square
    u, v = pixels(results["lidar2img"][0], point)[0]
    np.testing.assert_allclose([u, v], [(60 - 10) * 1.5, (30 - 20) * 1.5])
    image = results["img"][0]
    assert image.shape == (48, 120, 3)
    assert results["img_shape"] == results["ori_shape"] == [(48, 120, 3)] * 2
    rows, columns = np.nonzero(image[..., 0] > 128)
    np.testing.assert_allclose([columns.mean() + 0.5, rows.mean() + 0.5], [75.75, 15.75], atol=0.3)


def test_boxes_keep_their_place_in_the_scene():
    before = frame()
    points = corners(before["gt_bboxes_3d"])
    after = crop()(copy.deepcopy(before))
    expected = (pixels(before["lidar2img"][0], points) - (10, 20)) * 1.5
    np.testing.assert_allclose(pixels(after["lidar2img"][0], points), expected)
    for camera in range(2):
        np.testing.assert_allclose(
            after["lidar2img"][camera], after["cam2img"][camera] @ after["lidar2cam"][camera]
        )
    np.testing.assert_array_equal(after["gt_bboxes_3d"].tensor, before["gt_bboxes_3d"].tensor)


def test_height_of_the_crop_keeps_every_pixel():
    before = frame()
    after = crop(conf={"reisze": [32]})(copy.deepcopy(before))
    np.testing.assert_array_equal(after["img"][0], before["img"][0][20:52, 10:90])


def test_rounded_size_uses_its_own_ratios():
    results = crop(conf={"reisze": [47]})(frame())
    height, width, _ = results["img"][0].shape
    assert (height, width) == (47, 117)
    np.testing.assert_allclose(results["cam2img"][0][0, 0], 50 * 117 / 80)


def test_frames_of_an_item_share_their_draws():
    np.random.seed(0)
    step = crop(conf={"reisze": list(range(32, 64))})
    shared, sizes, flips = {}, set(), set()
    for _ in range(5):
        results = step(dict(frame(), aug_param=shared))
        sizes.add(results["img"][0].shape)
        flips.add(shared["CropResizeFlipImage"]["flip"])
    assert len(sizes) == len(flips) == 1
    free = [step(frame()) for _ in range(20)]
    assert len({results["img"][0].shape for results in free}) > 5
    assert {r["aug_param"]["CropResizeFlipImage"]["flip"] for r in free} == {True, False}


def test_inference_never_flips():
    flips = [crop(training=False)(frame())["aug_param"] for _ in range(20)]
    assert not any(draw["CropResizeFlipImage"]["flip"] for draw in flips)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conf": {"crop": (0, 0, 101, 60)}}, "not within"),
        ({"conf": {"reisze": [32, 48]}, "training": False}, "one height"),
        ({"debug": True}, "debug"),
    ],
)
def test_crops_outside_the_image_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        crop(**options)


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match="data_aug_conf"):
        crop()(frame(height=61))


# GlobalRotScaleTransImage

FLIPS = [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)]


def same_points(actual, expected):
    """The same corners, in any order: a mirrored box counts its corners in another one."""
    distance = np.linalg.norm(actual[:, None] - expected[None], axis=-1)
    assert distance.min(axis=0).max() < 1e-4
    assert distance.min(axis=1).max() < 1e-4


@pytest.mark.parametrize(("flip_x", "flip_y"), FLIPS)
def test_boxes_project_to_the_same_pixels_after_the_scene_has_moved(flip_x, flip_y):
    before = frame()
    step = turn(flip_dx_ratio=flip_x, flip_dy_ratio=flip_y)
    after = step(copy.deepcopy(before))
    assert not np.allclose(after["gt_bboxes_3d"].tensor, before["gt_bboxes_3d"].tensor)
    expected = pixels(before["lidar2img"][0], corners(before["gt_bboxes_3d"]))
    actual = pixels(after["lidar2img"][0], corners(after["gt_bboxes_3d"]))
    scale = np.abs(expected).max()
    same_points(actual / scale, expected / scale)
    for camera in range(2):
        np.testing.assert_allclose(
            after["lidar2img"][camera], after["cam2img"][camera] @ after["lidar2cam"][camera]
        )


@pytest.mark.parametrize(("flip_x", "flip_y"), FLIPS)
def test_only_gt_moves_boxes_by_the_matrix_and_not_cameras(flip_x, flip_y):
    before = frame()
    step = turn(flip_dx_ratio=flip_x, flip_dy_ratio=flip_y, only_gt=True)
    after = step(copy.deepcopy(before))
    draw = after["aug_param"]["GlobalRotScaleTransImage"]
    matrix = draw["matrix"]
    assert draw["only_gt"]
    same_points(corners(after["gt_bboxes_3d"]), corners(before["gt_bboxes_3d"]) @ matrix.T)
    velocity = before["gt_bboxes_3d"].tensor[:, 7:].numpy() @ matrix[:2, :2].T
    np.testing.assert_allclose(after["gt_bboxes_3d"].tensor[:, 7:], velocity, atol=1e-5)
    heading = np.stack([f(before["gt_bboxes_3d"].yaw.numpy()) for f in (np.cos, np.sin)], axis=1)
    moved = heading @ matrix[:2, :2].T / draw["scale"]
    yaw = after["gt_bboxes_3d"].yaw.numpy()
    np.testing.assert_allclose(np.stack((np.cos(yaw), np.sin(yaw)), axis=1), moved, atol=1e-5)
    for key in ("lidar2img", "lidar2cam"):
        np.testing.assert_array_equal(after[key], before[key])


def test_the_matrix_by_hand():
    step = turn(rot_range=(90, 90), scale_ratio_range=(2, 2), flip_dx_ratio=1, flip_dy_ratio=0)
    matrix = step(frame())["aug_param"]["GlobalRotScaleTransImage"]["matrix"]
    np.testing.assert_allclose(matrix @ [1, 0, 0.5], [0, 2, 1], atol=1e-12)  # x turns to y
    np.testing.assert_allclose(matrix @ [0, 1, 0], [2, 0, 0], atol=1e-12)  # y to -x, mirrored


def test_inputs_are_not_edited_by_the_turn():
    results = frame()
    boxes, cameras = results["gt_bboxes_3d"], results["lidar2img"]
    before = copy.deepcopy((boxes.tensor, cameras))
    turn()(results)
    np.testing.assert_array_equal(boxes.tensor, before[0])
    np.testing.assert_array_equal(cameras, before[1])


@pytest.mark.parametrize(
    "options", [{"translation_std": (0, 0, 1)}, {"reverse_angle": False}, {"training": False}]
)
def test_unsupported_options(options):
    with pytest.raises(ValueError, match="GlobalRotScaleTransImage"):
        turn(**options)

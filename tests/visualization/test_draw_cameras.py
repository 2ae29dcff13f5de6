"""Boxes land on hand-computed pixels of the right camera, and are cut at the near plane."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from projects.bevformer.visualization import draw_cameras
from projects.bevformer.visualization.boxes import GROUND_TRUTH_RGB, PREDICTION_RGB
from projects.bevformer.visualization.cameras import clip_to_near_plane

GREEN, BLUE = GROUND_TRUTH_RGB[::-1], PREDICTION_RGB[::-1]
HEADER, GAP = 12, 6
# Left column and top row of each view in the picture.
ORIGIN = {
    "CAM_FRONT_LEFT": (0, HEADER),
    "CAM_FRONT": (200 + GAP, HEADER),
    "CAM_FRONT_RIGHT": (2 * (200 + GAP), HEADER),
    "CAM_BACK_LEFT": (0, HEADER + 100 + GAP),
    "CAM_BACK": (200 + GAP, HEADER + 100 + GAP),
    "CAM_BACK_RIGHT": (2 * (200 + GAP), HEADER + 100 + GAP),
}
HALF_PI = np.pi / 2
# 20 m ahead, driving away: length along y. Nearest face at 18 m, front at 22 m.
CAR_AHEAD = (0.0, 20.0, 0.0, 4.0, 3.6, 1.8, HALF_PI, 0.0, 0.0)


def view(picture, name):
    left, top = ORIGIN[name]
    return picture[top : top + 100, left : left + 200]


def drawn(picture, name):
    """Coloured pixels of a view: image, captions and background are grey."""
    pixels = view(picture, name)
    return (pixels != pixels[..., :1]).any(axis=2)


def has_color(pixel, color):
    """Equal but for the line's smoothing."""
    return np.abs(pixel.astype(int) - color).max() < 25


def is_green(pixel):
    return pixel[1] > max(pixel[0], pixel[2])


def is_grey(pixel):
    return pixel[0] == pixel[1] == pixel[2]


def test_nuscenes_cameras_are_arranged_in_two_rows(sample):
    info, data_root = sample
    for i, name in enumerate(ORIGIN):
        image = np.full((100, 200, 3), 100 + 10 * i, dtype=np.uint8)
        cv2.imwrite(str(Path(data_root) / info["cams"][name]["data_path"]), image)
    picture = draw_cameras(info, None, None, data_root)
    assert picture.shape == (HEADER + 2 * 100 + GAP, 3 * 200 + 2 * GAP, 3)
    for i, name in enumerate(ORIGIN):
        assert (view(picture, name)[95, 195] == 100 + 10 * i).all(), name
        assert not drawn(picture, name).any(), name


@pytest.mark.parametrize(
    ("headings_deg", "rows"),
    [
        ([0, 72, 144, -144, -72], ["104", "23"]),
        ([0, 51, 103, 154, -154, -103, -51], ["106", "2345"]),
        ([170, -170], ["01"]),
        ([0], ["0"]),
    ],
)
def test_any_rig_is_arranged_by_heading(make_sample, make_boxes, headings_deg, rows):
    info, data_root = make_sample({f"CAM_{i}": heading for i, heading in enumerate(headings_deg)})
    for i, camera in enumerate(info["cams"].values()):
        image = np.full((100, 200, 3), 100 + 10 * i, dtype=np.uint8)
        cv2.imwrite(str(Path(data_root) / camera["data_path"]), image)
    picture = draw_cameras(info, None, make_boxes(CAR_AHEAD), data_root)
    columns = max(map(len, rows))
    header = picture.shape[0] - len(rows) * (100 + GAP) + GAP
    assert picture.shape[1] == columns * (200 + GAP) - GAP
    for i, row in enumerate(rows):
        for j, name in enumerate(row):
            top, left = header + i * (100 + GAP), j * (200 + GAP)
            assert (picture[top + 95, left + 195] == 100 + 10 * int(name)).all()
        rest = picture[header + i * (100 + GAP) :, len(row) * (200 + GAP) :][:100]
        assert (rest == 32).all()  # no view: background
    if headings_deg[0] == 0:
        left = rows[0].index("0") * (200 + GAP)
        assert is_green(picture[header + 50, left + 90].astype(int))  # the car's rear face


@pytest.mark.parametrize(("kind", "color"), [("ground_truth", GREEN), ("predictions", BLUE)])
def test_box_ahead_is_drawn_at_hand_computed_pixels(sample, make_boxes, kind, color):
    info, data_root = sample
    given = {"ground_truth": None, "predictions": None}
    given[kind] = make_boxes(CAR_AHEAD, scores=[0.9] if kind == "predictions" else None)
    picture = draw_cameras(info, data_root=data_root, **given)
    front = view(picture, "CAM_FRONT")
    # Rear face, 18 m: u = 100 +- 100 * 1.8 / 18 = 90 and 110, v = 50 +- 100 * 0.9 / 18 = 45 and 55.
    for u, v in [(90, 50), (110, 50), (100, 45), (100, 55)]:
        assert has_color(front[v, u], color), (u, v)
    rows, columns = np.nonzero(drawn(picture, "CAM_FRONT"))
    extent = (columns.min(), columns.max(), rows.min(), rows.max())
    np.testing.assert_allclose(extent, (90, 110, 45, 55), atol=1)  # the line's smoothing
    for name in set(ORIGIN) - {"CAM_FRONT"}:
        assert not drawn(picture, name).any(), name


def test_front_face_is_tinted(sample, make_boxes):
    info, data_root = sample

    def pixel_between_faces(yaw):
        # The car's ends are at u = 90 (18 m) and u = 91.8 (22 m); shifted aside, they come apart:
        # ends at 18 m cover u = 140 to 160, at 22 m 132.7 to 149.1.
        box = (9.0, 20.0, 0.0, 4.0, 3.6, 1.8, yaw, 0.0, 0.0)
        front = view(draw_cameras(info, None, make_boxes(box), data_root), "CAM_FRONT")
        return front[50, 155], front[50, 136]

    near_end, far_end = pixel_between_faces(HALF_PI)  # driving away: the far end is the front
    assert is_grey(near_end)
    assert is_green(far_end)
    near_end, far_end = pixel_between_faces(-HALF_PI)  # coming: the near end is the front
    assert is_green(near_end)
    assert is_grey(far_end)


def test_box_behind_is_seen_by_the_rear_camera_only(sample, make_boxes):
    info, data_root = sample
    behind_left = (-3.0, -20.0, 0.0, 4.0, 2.0, 1.5, HALF_PI, 0.0, 0.0)
    picture = draw_cameras(info, None, make_boxes(behind_left), data_root)
    columns = np.nonzero(drawn(picture, "CAM_BACK"))[1]
    assert len(columns)
    assert columns.min() > 100  # the car's left is on the right of the rear image
    for name in set(ORIGIN) - {"CAM_BACK"}:
        assert not drawn(picture, name).any(), name


def test_straddling_box_is_drawn(sample, make_boxes):
    info, data_root = sample
    beside = (3.0, 0.0, 0.0, 20.0, 2.0, 2.0, HALF_PI, 0.0, 0.0)  # from 10 m behind to 10 m ahead
    picture = draw_cameras(info, None, make_boxes(beside), data_root)
    front = view(picture, "CAM_FRONT")
    # Its far end at depth 10 m, x = 2 and 4 m: u = 120 and 140.
    assert has_color(front[50, 120], GREEN)
    assert has_color(front[50, 140], GREEN)
    # Its lower inner edge, x = 2 m, z = -1 m, comes past the camera: at depth 4 m u = 150, v = 75.
    assert has_color(front[75, 150], GREEN)
    assert has_color(front[98, 196], GREEN)
    assert drawn(picture, "CAM_BACK").any()


def test_near_plane_cut_lies_on_the_segment():
    start, end = np.array([2.0, 4.0, -1.0]), np.array([6.0, 0.0, 1.0])
    np.testing.assert_allclose(clip_to_near_plane(start, end, near=0.5), [[5.0, 1.0, 0.5], end])
    np.testing.assert_allclose(clip_to_near_plane(end, start, near=0.5), [end, [5.0, 1.0, 0.5]])
    np.testing.assert_allclose(clip_to_near_plane(start, end, near=-2.0), [start, end])
    assert clip_to_near_plane(start, end, near=1.5).shape == (0, 3)


def test_large_images_are_scaled_with_their_boxes(sample, make_boxes):
    info, data_root = sample
    for camera in info["cams"].values():
        image = np.full((800, 1600, 3), 128, dtype=np.uint8)
        cv2.imwrite(str(Path(data_root) / camera["data_path"]), image)
        camera["cam_intrinsic"] = np.array([[800.0, 0, 800.0], [0, 800.0, 400.0], [0, 0, 1.0]])
    picture = draw_cameras(info, None, make_boxes(CAR_AHEAD), data_root)
    assert picture.shape[1] == 3 * 800 + 2 * GAP
    header = picture.shape[0] - 2 * 400 - GAP
    # u = (800 - 800 * 1.8 / 18) / 2, v = 400 / 2 within the middle view
    assert has_color(picture[header + 200, 800 + GAP + 360], GREEN)


def test_predictions_below_the_threshold_are_left_out(sample, make_boxes):
    info, data_root = sample
    predictions = make_boxes(CAR_AHEAD, scores=[0.29])
    assert not drawn(draw_cameras(info, predictions, None, data_root, 0.3), "CAM_FRONT").any()
    assert drawn(draw_cameras(info, predictions, None, data_root, 0.29), "CAM_FRONT").any()


def test_missing_and_broken_images_are_named(sample):
    info, data_root = sample
    path = Path(data_root) / info["cams"]["CAM_BACK"]["data_path"]
    path.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"image .*CAM_BACK\.png cannot be decoded"):
        draw_cameras(info, None, None, data_root)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"image .*CAM_BACK\.png does not exist"):
        draw_cameras(info, None, None, data_root)

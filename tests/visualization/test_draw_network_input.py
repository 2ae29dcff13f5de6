"""Pictures of the network's input: boxes, tracks and cells are where they belong."""

import numpy as np
import pytest

from projects.bevformer.nuscenes.spec import CAMERAS
from projects.bevformer.visualization.cameras import lidar_to_image
from projects.bevformer.visualization.network_input import (
    QUEUE_VIEW_WIDTH,
    draw_input_bev,
    draw_input_cameras,
    draw_queue,
)

PC_RANGE = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)


@pytest.fixture
def car(make_boxes):
    """A car straight ahead of the front camera."""
    return make_boxes((0.0, 20.0, 0.0, 4.0, 2.0, 1.5, np.pi / 2, 0.0, 0.0))


def green(picture):
    """(row, column) of green pixels below the head."""
    rows, columns = np.nonzero((picture[..., 1] > 120) & (picture[..., 0] < 100))
    keep = rows > 20
    return rows[keep], columns[keep]


@pytest.mark.parametrize("error", [0.0, 40.0])
def test_boxes_are_drawn_with_the_networks_matrices(sample, car, error):
    info, _ = sample
    images = np.zeros((6, 100, 200, 3), np.uint8)
    lidar2img = np.stack([lidar_to_image(info["cams"][name]) for name in CAMERAS])
    lidar2img[0] = (
        np.array([[1, 0, error, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ lidar2img[0]
    )
    picture = draw_input_cameras(info, images, lidar2img, car)
    rows, columns = green(picture)
    head = picture.shape[0] - 2 * 100 - 6
    # The front camera is the middle one of the upper row; the car is in the middle of its image.
    assert columns.mean() == pytest.approx(200 + 6 + 100 + error, abs=3)
    assert rows.mean() == pytest.approx(head + 50, abs=4)
    assert not draw_input_cameras(info, images, lidar2img, None)[head:, 206:406, 1].max() > 245


def test_the_queue_has_a_row_a_frame_and_a_column_a_camera():
    def frame(value):
        return np.stack([np.full((50, 100, 3), value + i, np.uint8) for i in range(6)])

    picture = draw_queue([("-1.00 s", frame(10)), ("+0.00 s", frame(100))])
    height, width = QUEUE_VIEW_WIDTH // 2, QUEUE_VIEW_WIDTH
    assert picture.shape == (2 * height + 6, 6 * width + 5 * 6, 3)
    order = [CAMERAS.index(name) for name in (
        "CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT",
    )]  # fmt: skip
    for row, value in ((0, 10), (1, 100)):
        y = row * (height + 6) + height - 5
        found = [picture[y, column * (width + 6) + width // 2, 0] for column in range(6)]
        assert found == [value + i for i in order]


def test_the_bev_shows_boxes_track_and_cells(sample, car):
    info, _ = sample
    seen = np.zeros((6, 4, 2), bool)
    seen[CAMERAS.index("CAM_FRONT"), 3] = True
    seen[CAMERAS.index("CAM_BACK"), 0] = True
    seen[:2, 2, 1] = True
    track = np.array([[-1.0, -8.0], [0.0, 0.0]])
    figure = draw_input_bev(info, car, seen, PC_RANGE, track, np.zeros(2))
    bev, *cameras = figure.axes
    (count,) = bev.get_images()
    assert count.get_array().tolist() == [[1, 1], [0, 0], [0, 2], [1, 1]]
    assert list(count.get_extent()) == [-51.2, 51.2, -51.2, 51.2]
    assert count.origin == "lower"
    assert any(
        np.allclose(line.get_xydata(), track)
        for line in bev.get_lines()
        if len(line.get_xydata()) == 2
    )
    assert [axes.get_title().split(":")[0] for axes in cameras] == [
        "CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT",
    ]  # fmt: skip
    front = cameras[1].get_images()[0]
    assert front.get_array().tolist() == [[0, 0], [0, 0], [0, 1], [1, 1]]

    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)
    x, y = bev.transData.transform((24.0, -14.0))  # a cell that no camera sees
    assert pixels[int(pixels.shape[0] - y), int(x)].tolist() == [77, 77, 77]
    x, y = bev.transData.transform((24.0, 14.0))  # seen by two
    assert pixels[int(pixels.shape[0] - y), int(x)].tolist() == [253, 212, 158]

"""Pictures of the network's input: boxes, tracks and cells are in the right places."""

import numpy as np
import pytest

from projects.bevformer.nuscenes.records import lidar2img_of_camera
from projects.bevformer.nuscenes.spec import CAMERAS
from projects.bevformer.visualization.boxes import drawable_boxes
from projects.bevformer.visualization.cameras import draw_views
from projects.bevformer.visualization.network_input import (
    QUEUE_VIEW_WIDTH,
    draw_input_bev,
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
def test_boxes_are_drawn_with_the_given_matrices(sample, car, error):
    info, _ = sample
    image = np.zeros((100, 200, 3), np.uint8)
    views = {name: (image, lidar2img_of_camera(camera)) for name, camera in info["cams"].items()}
    shift = np.array([[1, 0, error, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    views["CAM_FRONT"] = image, shift @ views["CAM_FRONT"][1]
    picture = draw_views(info, views, drawable_boxes(None, car, 0.0))
    rows, columns = green(picture)
    head = picture.shape[0] - 2 * 100 - 6
    # The front camera is the middle one of the upper row; the car is in the middle of its image.
    assert columns.mean() == pytest.approx(200 + 6 + 100 + error, abs=3)
    assert rows.mean() == pytest.approx(head + 50, abs=4)
    assert not draw_views(info, views, [])[head:, 206:406, 1].max() > 245


def test_the_queue_has_a_row_per_frame_and_a_column_per_camera(sample):
    def frame(value):
        return {name: np.full((50, 100, 3), value + i, np.uint8) for i, name in enumerate(CAMERAS)}

    picture = draw_queue(sample[0], [("-1.00 s", frame(10)), ("+0.00 s", frame(100))])
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
    seen = {name: np.zeros((4, 2), bool) for name in CAMERAS}
    seen["CAM_FRONT"][3] = True
    seen["CAM_BACK"][0] = True
    seen["CAM_FRONT"][2, 1] = seen["CAM_FRONT_RIGHT"][2, 1] = True
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


@pytest.mark.parametrize(
    ("headings_deg", "order"),
    [
        ([0, 72, 144, -144, -72], "10423"),
        ([0, 51, 103, 154, -154, -103, -51], "1062345"),
        ([10, -10], "01"),
    ],
)
def test_pictures_of_other_rigs(make_sample, car, headings_deg, order):
    """The first camera is straight ahead, the others follow counter-clockwise."""
    info, _ = make_sample({f"CAM_{i}": heading for i, heading in enumerate(headings_deg)})
    names = list(info["cams"])
    views = {name: np.full((50, 100, 3), 10 + i, np.uint8) for i, name in enumerate(names)}
    picture = draw_queue(info, [("+0.00 s", views)])
    columns = [QUEUE_VIEW_WIDTH // 2 + i * (QUEUE_VIEW_WIDTH + 6) for i in range(len(names))]
    assert picture.shape[1] == columns[-1] + QUEUE_VIEW_WIDTH // 2
    assert [picture[-5, column, 0] - 10 for column in columns] == [int(i) for i in order]

    seen = {name: np.ones((4, 2), bool) for name in names}
    figure = draw_input_bev(info, car, seen, PC_RANGE, np.zeros((1, 2)), np.zeros(1))
    bev, *cameras = figure.axes
    assert [axes.get_title().split(":")[0] for axes in cameras] == [f"CAM_{i}" for i in order]
    boxes = [bev.get_position(), *(axes.get_position() for axes in cameras)]
    assert max(box.x1 for box in boxes) <= 1
    assert min(box.y0 for box in boxes) >= 0
    overlaps = [a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i]]
    assert not any(overlaps)

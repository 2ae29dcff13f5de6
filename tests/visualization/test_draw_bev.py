"""The bird's-eye view has its boxes, arrows and ego vehicle at the right metres, without pyplot."""

import matplotlib
import numpy as np
import pytest
from matplotlib.quiver import Quiver

from projects.bevformer.visualization import draw_bev
from projects.bevformer.visualization.boxes import GROUND_TRUTH_RGB, PREDICTION_RGB

HALF_PI = np.pi / 2
WHITE = (255, 255, 255)
CAR = (10.0, 20.0, 0.0, 8.0, 4.0, 2.0, 0.0, 0.0, 0.0)  # standing, facing right


def pixels_at(figure, x, y, radius=2):
    """The colours within `radius` pixels of (x, y) metres, (2 * radius + 1, same, 3)."""
    figure.canvas.draw()
    image = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)
    column, row_from_below = figure.axes[0].transData.transform((x, y))
    row, column = int(image.shape[0] - row_from_below), int(column)
    return image[row - radius : row + radius + 1, column - radius : column + radius + 1]


def pixel_at(figure, x, y):
    return tuple(pixels_at(figure, x, y, radius=0)[0, 0].tolist())


def has_line(figure, x, y, color):
    """Whether a line of `color` passes (x, y), but for its smoothing."""
    return np.abs(pixels_at(figure, x, y) - color).max(axis=2).min() < 40


@pytest.mark.parametrize(
    ("kind", "color"), [("ground_truth", GROUND_TRUTH_RGB), ("predictions", PREDICTION_RGB)]
)
def test_box_outline_and_heading_tick(sample, make_boxes, kind, color):
    given = {"ground_truth": None, "predictions": None}
    given[kind] = make_boxes(CAR, scores=[0.9] if kind == "predictions" else None)
    figure = draw_bev(sample[0], **given)
    # x from 6 to 14, y from 18 to 22: a point on each side, off the heading tick.
    for x, y in [(8, 18), (8, 22), (6, 21), (14, 21)]:
        assert has_line(figure, x, y, color), (x, y)
    assert has_line(figure, 14.6, 20, color)  # the tick leaves through the front
    assert pixel_at(figure, 5.0, 24) == WHITE
    # x and y must not be swapped, nor mirrored
    assert pixel_at(figure, 20, 12) == WHITE
    assert pixel_at(figure, -8, 22) == WHITE
    assert pixel_at(figure, 8, -22) == WHITE


def test_arrow_is_the_motion_of_one_second(sample, make_boxes):
    moving = (-20.0, -20.0, 0.0, 4.0, 2.0, 2.0, HALF_PI, 3.0, 9.0)
    slow = (20.0, -20.0, 0.0, 4.0, 2.0, 2.0, HALF_PI, 0.0, 0.15)
    unknown = (20.0, 0.0, 0.0, 4.0, 2.0, 2.0, HALF_PI, np.nan, np.nan)
    figure = draw_bev(sample[0], None, make_boxes(moving, slow, unknown))
    (arrows,) = (child for child in figure.axes[0].get_children() if isinstance(child, Quiver))
    np.testing.assert_allclose(arrows.get_offsets(), [[-20.0, -20.0]])
    np.testing.assert_allclose([arrows.U, arrows.V], [[3.0], [9.0]])
    assert has_line(figure, -17.2, -11.6, GROUND_TRUTH_RGB)  # just short of the head
    assert pixel_at(figure, -16.5, -9.5) == WHITE


def test_ego_is_in_the_middle_heading_up(sample):
    figure = draw_bev(sample[0], None, None)
    # The lidar is 0.94 m before the rear axle: outline y from -1.6 to 2.49, x from -0.87 to 0.87.
    inside = pixel_at(figure, -0.5, 0.0)
    assert inside != WHITE
    assert pixel_at(figure, 0.5, 2.2) == inside
    assert pixel_at(figure, 0.5, -1.3) == inside
    assert pixel_at(figure, 0.5, 2.8) == WHITE
    assert pixel_at(figure, 0.5, -1.9) == WHITE
    assert pixel_at(figure, 0.0, 3.2) != WHITE  # heading
    assert pixel_at(figure, 0.0, -3.2) == pixel_at(figure, 0.0, -5.0)  # grid line only


def test_axes_are_metres_and_title_names_the_sample(sample):
    (axes,) = draw_bev(sample[0], None, None).axes
    assert axes.get_xlim() == (-51.2, 51.2)
    assert axes.get_ylim() == (-51.2, 51.2)
    assert "(m)" in axes.get_xlabel()
    assert "(m)" in axes.get_ylabel()
    assert axes.get_title() == "0123456789abcdef\n2018-08-01 19:26:45.047769 UTC"


def test_legend_counts_what_is_drawn(sample, make_boxes):
    predictions = make_boxes(CAR, CAR, CAR, scores=[0.9, 0.5, 0.1])
    ground_truth = make_boxes(CAR, CAR, labels=[0, -1])
    (axes,) = draw_bev(sample[0], predictions, ground_truth, 0.5).axes
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts == ["ground truth: 1", "prediction, score >= 0.5: 2"]


def test_boxes_carry_their_class(sample, make_boxes):
    box_sets = make_boxes(CAR, scores=[0.9], labels=[8]), make_boxes(CAR, labels=[1])
    (axes,) = draw_bev(sample[0], *box_sets).axes
    assert [text.get_text() for text in axes.texts] == ["truck", "ped"]
    (axes,) = draw_bev(sample[0], None, box_sets[1], class_names=("a", "tram")).axes
    assert [text.get_text() for text in axes.texts] == ["tram"]


def test_no_boxes(sample, make_boxes):
    figure = draw_bev(sample[0], make_boxes(scores=[]), make_boxes())
    assert pixel_at(figure, 15.0, 15.0) == WHITE


def test_lidar_points_are_a_grey_backdrop(sample):
    points = np.full((50, 5), 15.0, dtype=np.float32)
    figure = draw_bev(sample[0], None, None, points_lidar=points)
    assert has_line(figure, 15.0, 15.0, (184, 184, 184))
    assert not has_line(figure, 15.0, 25.0, (184, 184, 184))


@pytest.mark.parametrize(("length_m", "score"), [(np.inf, 0.9), (8.0, np.nan)])
def test_a_box_that_is_not_finite_is_refused(sample, make_boxes, length_m, score):
    box = CAR[:3] + (length_m,) + CAR[4:]
    with pytest.raises(ValueError, match="prediction.*NaN or infinite"):
        draw_bev(sample[0], make_boxes(box, scores=[score]), None)


def test_pyplot_and_its_backend_stay_unchanged(sample, make_boxes):
    backend = matplotlib.get_backend()
    draw_bev(sample[0], None, make_boxes(CAR)).canvas.draw()
    assert matplotlib.get_backend() == backend
    import matplotlib.pyplot as plt

    assert plt.get_fignums() == []

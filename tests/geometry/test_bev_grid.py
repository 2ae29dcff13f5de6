import numpy as np
import pytest
import torch

from projects.bevformer.geometry.bev_grid import cell_centres, check_range, pillar_points


def test_cell_centres_are_row_major_and_half_a_cell_from_the_border():
    expected = [
        [1 / 6, 1 / 4],
        [3 / 6, 1 / 4],
        [5 / 6, 1 / 4],
        [1 / 6, 3 / 4],
        [3 / 6, 3 / 4],
        [5 / 6, 3 / 4],
    ]
    torch.testing.assert_close(cell_centres(2, 3), torch.tensor(expected))


def test_pillar_points_by_hand():
    points = pillar_points(2, 3, num_heights=2, pc_range=(-3.0, -8.0, -1.0, 3.0, 8.0, 2.0))
    assert points.shape == (6, 2, 3)
    # Columns are 2 m wide along x, rows 8 m long along y; heights 0.5 m inside z_min and z_max.
    assert points[0].tolist() == [[-2.0, -4.0, -0.5], [-2.0, -4.0, 1.5]]
    assert points[2].tolist() == [[2.0, -4.0, -0.5], [2.0, -4.0, 1.5]]
    assert points[3].tolist() == [[-2.0, 4.0, -0.5], [-2.0, 4.0, 1.5]]


def test_pillar_heights_of_the_official_range():
    points = pillar_points(1, 1, 4, (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0))
    np.testing.assert_allclose(points[0, :, 2], [-4.5, -13 / 6, 1 / 6, 2.5], rtol=1e-5)


@pytest.mark.parametrize(
    "limits", [(-1, -1, 1, 1), (-1, -1, -1, 1, 1), (-1, 1, -1, 1, -1, 1), (0, 0, 0, 1, 1, 0)]
)
def test_range_needs_six_ordered_numbers(limits):
    check_range("pc_range", (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0))
    with pytest.raises(ValueError, match=r"^pc_range must be \(x_min, .*got \("):
        check_range("pc_range", limits)

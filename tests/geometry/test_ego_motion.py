import math

import naive_equations
import numpy as np
import pytest
import torch

from projects.bevformer.geometry.ego_motion import bev_shift, rotate_bev

PC_RANGE = (-10.0, -20.0, -5.0, 10.0, 20.0, 3.0)  # 20 m wide, 40 m long


def shift(delta_xy, yaw_rad):
    return bev_shift(
        torch.tensor([delta_xy], dtype=torch.float64), torch.tensor([yaw_rad]), PC_RANGE
    )[0].tolist()


def test_driving_ahead_shifts_along_the_rows():
    assert shift((2.0, 0.0), 0.0) == pytest.approx([0.0, 2 / 40], abs=1e-7)
    assert shift((0.0, 2.0), math.pi / 2) == pytest.approx([0.0, 2 / 40], abs=1e-7)


def test_sliding_to_the_right_shifts_along_the_columns():
    assert shift((0.0, -2.0), 0.0) == pytest.approx([2 / 20, 0.0], abs=1e-7)
    assert shift((2.0, 0.0), math.pi / 2) == pytest.approx([2 / 20, 0.0], abs=1e-7)


def test_standing_still_shifts_nothing():
    assert shift((0.0, 0.0), 1.2) == [0.0, 0.0]


def test_shift_is_the_displacement_in_lidar_axes_for_each_sample():
    rng = np.random.RandomState(0)
    delta, yaw = rng.uniform(-5, 5, (4, 2)), rng.uniform(-7, 7, 4)
    shifts = bev_shift(torch.from_numpy(delta), torch.from_numpy(yaw), PC_RANGE)
    assert shifts.dtype == torch.float32
    for delta_xy, angle, result in zip(delta, yaw, shifts):
        can_bus = np.zeros(18)
        can_bus[:2], can_bus[16] = delta_xy, angle
        np.testing.assert_allclose(result, naive_equations.ego_shift(can_bus, PC_RANGE), atol=1e-6)


def one_hot(height, width, row, column):
    bev = torch.zeros(1, height * width, 1)
    bev[0, row * width + column] = 1.0
    return bev


def test_after_a_left_turn_what_was_ahead_is_to_the_right():
    # 4 x 4 cells of 1 m; row 3, column 1 is the cell at x = -0.5, y = 1.5. The ego turns left by 90
    # degrees, so the cell comes to lie at x = 1.5, y = 0.5: row 2, column 3.
    turned = rotate_bev(one_hot(4, 4, 3, 1), [90.0], (4, 4))
    assert torch.equal(turned, one_hot(4, 4, 2, 3))


def naive_rotation(bev, angle_deg, bev_hw, center):
    """(Q, C): the nearest source cell of every cell; zeros from outside."""
    sources = naive_equations.source_cells(angle_deg, bev_hw, center)
    nothing = np.zeros_like(bev[0])
    return np.stack([nothing if source is None else bev[source] for source in sources])


@pytest.mark.parametrize("center", [None, (3.5, 3.0), (1.0, 6.0), (20, 20)])
@pytest.mark.parametrize("angle_deg", [-3.7, 27.3, 200.0, 352.1])
def test_rotation_equals_a_loop(angle_deg, center):
    bev = torch.rand(1, 6 * 7, 3) + 0.1
    turned = rotate_bev(bev, [angle_deg], (6, 7), center)
    expected = naive_rotation(bev[0].numpy(), angle_deg, (6, 7), center or (3.5, 3.0))
    np.testing.assert_array_equal(turned[0].numpy(), expected)


# Angles at which every source is at least 1e-4 cells off the border of its cell: float32 rounding
# differs between BLAS versions and would otherwise decide.
@pytest.mark.parametrize("angle_deg", [-2.6, 3.4, 8.8])
@pytest.mark.parametrize("cells", [50, 150, 200])
def test_the_official_centre_on_the_official_grids(angle_deg, cells):
    """On all but the largest the centre (100, 100) lies off the middle, on the smallest outside."""
    bev = torch.rand(1, cells**2, 1) + 0.1
    turned = rotate_bev(bev, [angle_deg], (cells, cells), [100, 100])
    expected = naive_rotation(bev[0].numpy(), angle_deg, (cells, cells), (100, 100))
    np.testing.assert_array_equal(turned[0].numpy(), expected)
    about_the_middle = rotate_bev(bev, [angle_deg], (cells, cells))
    assert torch.equal(turned, about_the_middle) == (cells == 200)


def test_each_sample_turns_by_its_own_angle_and_the_input_is_not_edited():
    bev = torch.rand(2, 30, 4)
    before = bev.clone()
    turned = rotate_bev(bev, np.array([10.0, -75.0]), (5, 6))
    assert torch.equal(turned[:1], rotate_bev(bev[:1], [10.0], (5, 6)))
    assert torch.equal(turned[1:], rotate_bev(bev[1:], [-75.0], (5, 6)))
    assert not torch.equal(turned[0], turned[1])
    assert torch.equal(bev, before)


def test_rotation_is_the_same_under_autocast():
    bev = torch.rand(1, 50 * 50, 1)
    expected = rotate_bev(bev, [5.3], (50, 50))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(rotate_bev(bev, [5.3], (50, 50)), expected)


def test_half_precision_features_rotate_like_float32():
    bev = torch.rand(1, 50 * 50, 1).bfloat16()
    turned = rotate_bev(bev, [5.3], (50, 50))
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned.float(), rotate_bev(bev.float(), [5.3], (50, 50)))


@pytest.mark.parametrize(("queries", "angles"), [(29, [1.0, 2.0]), (30, [1.0])])
def test_mismatched_rotation_arguments_are_refused(queries, angles):
    with pytest.raises(ValueError, match="does not fit"):
        rotate_bev(torch.zeros(2, queries, 4), angles, (5, 6))

import math

import naive_equations
import numpy as np
import pytest
import torch

from projects.bevformer.geometry.ego_motion import (
    EgoMotion,
    bev_shift,
    planar_lidar2ego,
    relative_can_bus,
    rotate_bev,
)
from projects.bevformer.geometry.poses import pose_matrix

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


# range (x_min, y_min, x_max, y_max), grid: cells are square, but in the last two.
RANGES = {
    "around": ((-51.2, -51.2, 51.2, 51.2), (200, 200)),
    "ahead": ((-51.2, 0.0, 51.2, 102.4), (200, 200)),
    "to one side": ((-15.0, -30.0, 45.0, 70.0), (200, 120)),
    "without the vehicle": ((-20.0, 15.0, 30.0, 65.0), (100, 100)),
    "long cells": ((-51.2, -51.2, 51.2, 51.2), (100, 200)),
    "wide cells ahead": ((-30.0, -10.0, 30.0, 70.0), (200, 100)),
}
# Where the lidar is on the vehicle, (x ahead, y left) metres, and the heading of its x axis, degrees.
LIDARS = {"official": None, "looks ahead": (0.0, 0.0, 0.0), "nuScenes": (0.94, 0.0, -89.88),
          "at the back": (-2.5, 0.6, 140.0)}  # fmt: skip


def turn_of(angle_rad):
    cos, sin = np.cos(angle_rad), np.sin(angle_rad)
    return np.array([[cos, -sin], [sin, cos]])


def motion_of(way, yaw_rad, turn_deg, lidar):
    """EgoMotion; the lidar is None for the official axes, or (x, y, degrees)."""
    can_bus = np.zeros((1, 18))
    can_bus[0, :2], can_bus[0, 16:] = way, (yaw_rad, turn_deg)
    matrix = None
    if lidar is not None:
        half = np.deg2rad(lidar[2]) / 2
        matrix = pose_matrix([np.cos(half), 0, 0, np.sin(half)], (*lidar[:2], 1.8))
    return EgoMotion.from_can_bus(torch.from_numpy(can_bus), planar_lidar2ego([matrix]))


@pytest.mark.parametrize("lidar", LIDARS)
@pytest.mark.parametrize("where", RANGES)
@pytest.mark.parametrize("turn_deg", [5.0, -12.0])
def test_a_landmark_stays_in_its_place(where, lidar, turn_deg):
    """What stands still is found where the previous BEV shows it, for any range, grid and lidar."""
    (x_min, y_min, x_max, y_max), (rows, columns) = RANGES[where]
    pc_range = (x_min, y_min, -5.0, x_max, y_max, 3.0)
    landmark, yaw, turned = np.array([8.0, 30.0]), 0.3, np.deg2rad(turn_deg)
    x, y, heading = LIDARS[lidar] or (0.0, 0.0, -90.0)
    axes, way = turn_of(np.deg2rad(heading)), turn_of(yaw + turned) @ [5.0, 0.4]
    still = turn_of(yaw) @ (axes @ landmark + (x, y))  # global; the ego vehicle was at (0, 0)
    truth = axes.T @ (turn_of(yaw + turned).T @ (still - way) - (x, y))

    centres_x = x_min + (np.arange(columns) + 0.5) / columns * (x_max - x_min)
    centres_y = y_min + (np.arange(rows) + 0.5) / rows * (y_max - y_min)
    # A patch: nearest-neighbour sampling may lose single cells.
    patch = np.hypot(centres_x[None] - landmark[0], centres_y[:, None] - landmark[1]) < 2.5
    bev = torch.from_numpy(patch.reshape(1, -1, 1).astype(np.float32))
    motion = motion_of(way, yaw + turned, turn_deg, LIDARS[lidar])
    aligned = rotate_bev(bev, motion.turn_deg, (rows, columns), pc_range)
    shift = motion.bev_shift(pc_range)[0].numpy()
    row, column = np.nonzero(aligned.reshape(rows, columns).numpy())
    found = np.array([(column.mean() + 0.5) / columns, (row.mean() + 0.5) / rows]) - shift
    off = (x_min, y_min) + found * (x_max - x_min, y_max - y_min) - truth
    assert np.abs(off / ((x_max - x_min) / columns, (y_max - y_min) / rows)).max() < 0.5  # cells


def test_the_official_lidar_is_a_quarter_turn_above_the_ego_origin():
    way, yaw = (3.1, -1.7), 0.7
    official, same = (motion_of(way, yaw, 4.0, lidar) for lidar in (None, (0.0, 0.0, -90.0)))
    torch.testing.assert_close(official.bev_shift(PC_RANGE), same.bev_shift(PC_RANGE))
    dx, dy = torch.tensor(way, dtype=torch.float64)
    length, angle = torch.sqrt(dx**2 + dy**2), yaw - torch.atan2(dy, dx)
    original = torch.stack((length * torch.sin(angle), length * torch.cos(angle)))
    assert torch.equal(official.delta_xy_lidar()[0], original)  # bit by bit
    assert not motion_of((0.0, 0.0), yaw, 0.0, (2.0, 1.0, 30.0)).delta_xy_lidar().any()


@pytest.mark.parametrize(
    ("before", "now", "wrapped"),
    [(359.9, 0.1, 0.2), (0.1, 359.9, -0.2), (10.0, 30.0, 20.0), (350.0, 170.0, -180.0),
     (90.0, 271.0, -179.0)],
)  # fmt: skip
def test_turns_are_within_180_degrees_unless_official(before, now, wrapped):
    poses = np.zeros((2, 18))
    poses[:, 17] = before, now
    assert relative_can_bus(poses[1], poses[0])[17] == pytest.approx(wrapped, abs=1e-9)
    assert relative_can_bus(poses[1], poses[0], "official")[17] == now - before
    assert relative_can_bus(poses[1], None)[17] == 0


def around(rows, columns):
    """A range around the vehicle with cells of 1 m."""
    return (-columns / 2, -rows / 2, -5.0, columns / 2, rows / 2, 3.0)


def one_hot(height, width, row, column):
    bev = torch.zeros(1, height * width, 1)
    bev[0, row * width + column] = 1.0
    return bev


def test_after_a_left_turn_what_was_ahead_is_to_the_right():
    # 4 x 4 cells of 1 m; row 3, column 1 is the cell at x = -0.5, y = 1.5. The ego turns left by 90
    # degrees, so the cell comes to lie at x = 1.5, y = 0.5: row 2, column 3.
    turned = rotate_bev(one_hot(4, 4, 3, 1), [90.0], (4, 4), around(4, 4))
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
    turned = rotate_bev(bev, [angle_deg], (6, 7), around(6, 7), center)
    expected = naive_rotation(bev[0].numpy(), angle_deg, (6, 7), center or (3.5, 3.0))
    np.testing.assert_array_equal(turned[0].numpy(), expected)


# Angles at which every source is at least 1e-4 cells off the border of its cell: float32 rounding
# differs between BLAS versions and would otherwise decide.
@pytest.mark.parametrize("angle_deg", [-2.6, 3.4, 8.8])
@pytest.mark.parametrize("cells", [50, 150, 200])
def test_the_official_centre_on_the_official_grids(angle_deg, cells):
    """On all but the largest the centre (100, 100) lies off the middle, on the smallest outside."""
    bev = torch.rand(1, cells**2, 1) + 0.1
    turned = rotate_bev(bev, [angle_deg], (cells, cells), around(cells, cells), [100, 100])
    expected = naive_rotation(bev[0].numpy(), angle_deg, (cells, cells), (100, 100))
    np.testing.assert_array_equal(turned[0].numpy(), expected)
    about_the_middle = rotate_bev(bev, [angle_deg], (cells, cells), around(cells, cells))
    assert torch.equal(turned, about_the_middle) == (cells == 200)


def test_each_sample_turns_by_its_own_angle_and_the_input_is_not_edited():
    bev = torch.rand(2, 30, 4)
    before = bev.clone()
    turned = rotate_bev(bev, np.array([10.0, -75.0]), (5, 6), around(5, 6))
    assert torch.equal(turned[:1], rotate_bev(bev[:1], [10.0], (5, 6), around(5, 6)))
    assert torch.equal(turned[1:], rotate_bev(bev[1:], [-75.0], (5, 6), around(5, 6)))
    assert not torch.equal(turned[0], turned[1])
    assert torch.equal(bev, before)


def test_rotation_is_the_same_under_autocast():
    bev = torch.rand(1, 50 * 50, 1)
    expected = rotate_bev(bev, [5.3], (50, 50), around(50, 50))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(rotate_bev(bev, [5.3], (50, 50), around(50, 50)), expected)


def test_half_precision_features_rotate_like_float32():
    bev = torch.rand(1, 50 * 50, 1).bfloat16()
    turned = rotate_bev(bev, [5.3], (50, 50), around(50, 50))
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned.float(), rotate_bev(bev.float(), [5.3], (50, 50), around(50, 50)))


@pytest.mark.parametrize(("queries", "angles"), [(29, [1.0, 2.0]), (30, [1.0])])
def test_mismatched_rotation_arguments_are_refused(queries, angles):
    with pytest.raises(ValueError, match="does not fit"):
        rotate_bev(torch.zeros(2, queries, 4), angles, (5, 6), around(5, 6))

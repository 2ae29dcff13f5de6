import math

import numpy as np
import pytest
import torch

from projects.bevformer.geometry.bev_warp import warp_bev

PC_RANGE = [-2.0, -3.0, -1.0, 2.0, 3.0, 1.0]
BEV_HW = (6, 4)  # cells of one metre


def cell_values(values):
    """A BEV of one channel from {(row, column): value}."""
    bev = torch.zeros(1, 24, 1)
    for (row, column), value in values.items():
        bev[0, 4 * row + column] = value
    return bev


def turn(degrees):
    angle = math.radians(degrees)
    return torch.tensor([[[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]])


def test_rotation_by_180_degrees_by_hand():
    # The cell at (x, y) = (1.5, 2.5) goes to (-1.5, -2.5), the first.
    bev = cell_values({(5, 3): 7.0, (0, 1): 2.0})
    warped = warp_bev(bev, turn(180), BEV_HW, PC_RANGE)
    torch.testing.assert_close(warped, cell_values({(0, 0): 7.0, (5, 2): 2.0}), atol=1e-5, rtol=0)


def test_positive_angles_are_counter_clockwise_from_above():
    # (1.5, 0.5) goes to (-0.5, 1.5).
    warped = warp_bev(cell_values({(3, 3): 1.0}), turn(90), BEV_HW, PC_RANGE)
    torch.testing.assert_close(warped, cell_values({(4, 1): 1.0}), atol=1e-5, rtol=0)


def test_mirror_by_hand():
    mirror = torch.tensor([[[-1.0, 0.0], [0.0, 1.0]]])
    warped = warp_bev(cell_values({(3, 3): 1.0}), mirror, BEV_HW, PC_RANGE)
    torch.testing.assert_close(warped, cell_values({(3, 0): 1.0}))


def naive_warp(bev, matrix, pc_range):
    """One sample, with loops over cells and their neighbours."""
    height, width = BEV_HW
    x_min, y_min, _, x_max, y_max, _ = pc_range
    cell_x, cell_y = (x_max - x_min) / width, (y_max - y_min) / height
    inverse = np.linalg.inv(matrix)
    out = np.zeros_like(bev)
    for row in range(height):
        for column in range(width):
            x, y = inverse @ [x_min + (column + 0.5) * cell_x, y_min + (row + 0.5) * cell_y]
            at_column, at_row = (x - x_min) / cell_x - 0.5, (y - y_min) / cell_y - 0.5
            for i in (math.floor(at_row), math.floor(at_row) + 1):
                for j in (math.floor(at_column), math.floor(at_column) + 1):
                    if 0 <= i < height and 0 <= j < width:
                        share = (1 - abs(at_row - i)) * (1 - abs(at_column - j))
                        out[row * width + column] += share * bev[i * width + j]
    return out


@pytest.mark.parametrize("pc_range", [PC_RANGE, [-1.0, 0.0, -1.0, 4.0, 4.5, 1.0]])
def test_each_sample_of_a_batch_equals_a_loop(pc_range):
    rng = np.random.RandomState(0)
    bev = rng.normal(size=(2, 24, 3)).astype(np.float32)
    matrices = np.stack([turn(25)[0].numpy() * 1.05, turn(-70)[0].numpy() @ np.diag([-0.95, 0.95])])
    warped = warp_bev(torch.from_numpy(bev), torch.from_numpy(matrices), BEV_HW, pc_range)
    for sample in range(2):
        expected = naive_warp(bev[sample], matrices[sample], pc_range)
        np.testing.assert_allclose(warped[sample].numpy(), expected, atol=1e-5)


def test_identity_keeps_every_cell_and_the_gradient():
    bev = torch.randn(1, 24, 2, requires_grad=True)
    warped = warp_bev(bev, torch.eye(2)[None], BEV_HW, PC_RANGE)
    torch.testing.assert_close(warped, bev, atol=1e-5, rtol=0)
    warped.sum().backward()
    torch.testing.assert_close(bev.grad, torch.ones_like(bev), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("hw", "maps"), [((5, 4), 1), (BEV_HW, 2)])
def test_mismatched_shapes_are_refused(hw, maps):
    with pytest.raises(ValueError, match="does not fit"):
        warp_bev(torch.zeros(1, 24, 1), torch.eye(2).repeat(maps, 1, 1), hw, PC_RANGE)

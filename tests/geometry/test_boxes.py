import math

import numpy as np
import pytest
import torch

from projects.bevformer import compat  # noqa: F401
from projects.bevformer.geometry.boxes import (
    CODE_SIZE,
    COS,
    CX,
    CY,
    CZ,
    LOG_H,
    LOG_L,
    LOG_W,
    SIN,
    VX,
    VY,
    decode_boxes,
    encode_boxes,
    new_to_old_boxes,
    old_to_new_boxes,
)

from mmdet3d.core.bbox import LiDARInstance3DBoxes  # isort: skip


def random_boxes(number, columns=9):
    rng = np.random.RandomState(0)
    boxes = rng.uniform(-20, 20, (number, columns))
    boxes[:, 3:6] = rng.uniform(0.3, 9.0, (number, 3))
    boxes[:, 6] = rng.uniform(-math.pi, math.pi, number)
    return torch.from_numpy(boxes).float()


def test_old_to_new_by_hand():
    # 4 m long, 2 m wide. Old yaw -pi/2 is heading +x, which the new convention calls 0.
    old = torch.tensor([[1.0, 2.0, 3.0, 2.0, 4.0, 1.5, -math.pi / 2, 7.0, 8.0]])
    new = torch.tensor([[1.0, 2.0, 3.0, 4.0, 2.0, 1.5, 0.0, 7.0, 8.0]])
    torch.testing.assert_close(old_to_new_boxes(old), new)
    torch.testing.assert_close(new_to_old_boxes(new), old)


@pytest.mark.parametrize("columns", [7, 9])
def test_conversions_are_inverse_and_not_in_place(columns):
    boxes = random_boxes(20, columns)
    before = boxes.clone()
    torch.testing.assert_close(new_to_old_boxes(old_to_new_boxes(boxes)), boxes)
    torch.testing.assert_close(old_to_new_boxes(new_to_old_boxes(boxes)), boxes)
    assert torch.equal(boxes, before)


def test_arrays_are_converted_as_tensors_are():
    boxes = random_boxes(5)
    before = boxes.numpy().copy()
    converted = old_to_new_boxes(boxes.numpy())
    assert isinstance(converted, np.ndarray)
    np.testing.assert_array_equal(converted, old_to_new_boxes(boxes).numpy())
    np.testing.assert_array_equal(boxes.numpy(), before)


@pytest.mark.parametrize("convert", [old_to_new_boxes, new_to_old_boxes])
def test_too_few_columns_are_refused(convert):
    with pytest.raises(ValueError, match="at least 7 columns"):
        convert(torch.zeros(3, 6))


def old_corners(box):
    """The 8 corners of an old-convention box with its z at the bottom, from the definition.

    At yaw_old = 0 the width lies along x and the length along y; yaw_old rotates clockwise.
    """
    x, y, z, width, length, height, yaw = box[:7]
    corners = []
    for across in (-width / 2, width / 2):
        for along in (-length / 2, length / 2):
            turned_x = math.cos(yaw) * across + math.sin(yaw) * along
            turned_y = -math.sin(yaw) * across + math.cos(yaw) * along
            corners += [(x + turned_x, y + turned_y, z), (x + turned_x, y + turned_y, z + height)]
    return corners


def in_order(corners):
    """Sort corners, so that two sets of them can be compared."""
    rounded = np.round(np.asarray(corners, dtype=np.float64), 3) + 0.0
    return rounded[np.lexsort(rounded.T)]


def test_corners_are_the_same_in_both_conventions():
    old = random_boxes(10, 7)
    corners = LiDARInstance3DBoxes(old_to_new_boxes(old)).corners
    for box, box_corners in zip(old.tolist(), corners):
        np.testing.assert_allclose(in_order(box_corners), in_order(old_corners(box)), atol=2e-3)


def test_box_heading_along_x_by_hand():
    box = LiDARInstance3DBoxes(torch.tensor([[10.0, 0.0, 0.0, 4.0, 2.0, 1.0, 0.0]]))
    (old,) = new_to_old_boxes(box.tensor).tolist()
    for corners in (box.corners[0], old_corners(old)):
        corners = np.asarray(corners)
        np.testing.assert_allclose(corners.min(axis=0), [8.0, -1.0, 0.0], atol=1e-5)
        np.testing.assert_allclose(corners.max(axis=0), [12.0, 1.0, 1.0], atol=1e-5)


def test_code_columns_by_hand():
    code = encode_boxes(torch.tensor([1.0, 2.0, 3.0, 2.0, 4.0, 1.5, math.pi / 6, -7.0, 8.0]))
    expected = torch.zeros(CODE_SIZE)
    expected[[CX, CY, CZ]] = torch.tensor([1.0, 2.0, 3.0])
    expected[[LOG_W, LOG_L, LOG_H]] = torch.tensor([2.0, 4.0, 1.5]).log()
    expected[[SIN, COS]] = torch.tensor([0.5, math.sqrt(3) / 2])
    expected[[VX, VY]] = torch.tensor([-7.0, 8.0])
    torch.testing.assert_close(code, expected)
    # The column order of the official weights.
    columns = [CX, CY, LOG_W, LOG_L, CZ, LOG_H, SIN, COS, VX, VY]
    assert columns == list(range(10))


def test_decode_inverts_encode():
    boxes = random_boxes(30)
    torch.testing.assert_close(decode_boxes(encode_boxes(boxes)), boxes, rtol=1e-4, atol=1e-4)


def test_decoded_yaw_ignores_the_norm_of_sine_and_cosine():
    code = torch.zeros(2, CODE_SIZE)
    code[:, SIN], code[:, COS] = torch.tensor([0.1, 3.0]), torch.tensor([0.1, 3.0])
    torch.testing.assert_close(decode_boxes(code)[:, 6], torch.full((2,), math.pi / 4))


def test_unknown_velocity_is_nan_and_zero_size_is_minus_inf_in_the_code():
    boxes = random_boxes(2)
    boxes[0, 7:] = float("nan")
    boxes[1, 3] = 0.0
    code = encode_boxes(boxes)
    assert code[0, [VX, VY]].isnan().all()
    assert torch.isfinite(code[0, :VX]).all()
    assert code[1, LOG_W] == -math.inf


def test_no_boxes():
    empty = torch.zeros(0, 9)
    assert encode_boxes(empty).shape == (0, CODE_SIZE)
    assert decode_boxes(torch.zeros(0, CODE_SIZE)).shape == (0, 9)
    assert old_to_new_boxes(empty).shape == (0, 9)


def test_gradients_of_the_code():
    boxes = random_boxes(3).double().requires_grad_()
    assert torch.autograd.gradcheck(encode_boxes, (boxes,))
    code = encode_boxes(boxes.detach()).requires_grad_()
    assert torch.autograd.gradcheck(decode_boxes, (code,))

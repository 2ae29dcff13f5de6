import copy

import numpy as np
import pytest
import torch
from tiny_bevformer import IMAGE_HW, make_meta

from projects.bevformer.geometry.can_bus import CAN_POSITION, CAN_YAW_DEG, CAN_YAW_RAD
from projects.bevformer.model import Frame


def test_cameras_and_image_size_come_from_the_metas():
    metas = [make_meta(0), make_meta(1)]
    frame = Frame.from_metas(metas)
    assert frame.image_hw == IMAGE_HW
    assert frame.lidar2img.dtype == torch.float32
    for matrices, meta in zip(frame.lidar2img, metas):
        expected = np.stack(meta["lidar2img"]).astype(np.float32)
        np.testing.assert_array_equal(matrices, expected)


def test_relative_poses_are_unchanged():
    metas = [make_meta(0), make_meta(1)]
    frame = Frame.from_metas(metas)
    can_bus = np.stack([meta["can_bus"] for meta in metas])
    np.testing.assert_array_equal(frame.can_bus, can_bus.astype(np.float32))
    np.testing.assert_array_equal(frame.motion.delta_xy_global, can_bus[:, CAN_POSITION][:, :2])
    np.testing.assert_array_equal(frame.motion.turn_deg, can_bus[:, CAN_YAW_DEG])
    np.testing.assert_array_equal(frame.motion.yaw_rad, can_bus[:, CAN_YAW_RAD])


def test_absolute_poses_become_relative_to_the_previous_frame():
    metas, previous = [make_meta(0, 1), make_meta(1, 1)], make_meta(0, 0)["can_bus"]
    before = copy.deepcopy(metas)
    frame = Frame.from_metas(metas, [previous, None])
    now = metas[0]["can_bus"]
    moved = (now - previous)[CAN_POSITION][:2]
    np.testing.assert_array_equal(frame.motion.delta_xy_global, [moved, (0, 0)])
    np.testing.assert_array_equal(frame.motion.turn_deg, [(now - previous)[CAN_YAW_DEG], 0])
    np.testing.assert_array_equal(frame.can_bus[0, 3:17], now[3:17].astype(np.float32))
    assert frame.has_prev.tolist() == [True, False]
    for meta, old in zip(metas, before):
        np.testing.assert_array_equal(meta["can_bus"], old["can_bus"])


@pytest.mark.parametrize(
    ("exist", "expected"), [((True, True), True), ((False, False), False), ((True, False), None)]
)
def test_has_prev_is_a_tensor_only_where_samples_differ(exist, expected):
    metas = [make_meta(s, prev_bev_exists=has) for s, has in enumerate(exist)]
    has_prev = Frame.from_metas(metas).has_prev
    if expected is None:
        assert has_prev.tolist() == list(exist)
    else:
        assert has_prev is expected


def test_cameras_are_named_where_the_metas_name_them():
    names = ("LEFT", "RIGHT")
    assert Frame.from_metas([make_meta(0)]).cameras == ()
    assert Frame.from_metas([dict(make_meta(s), cameras=names) for s in (0, 1)]).cameras == names
    with pytest.raises(ValueError, match="same cameras"):
        Frame.from_metas(
            [dict(make_meta(0), cameras=names), dict(make_meta(1), cameras=names[::-1])]
        )


def test_absolute_poses_of_another_length_are_rejected():
    with pytest.raises(ValueError, match="18 numbers"):
        Frame.from_metas([dict(make_meta(0), can_bus=np.zeros(17))], [make_meta(0)["can_bus"]])


def test_options_of_v2_are_none_where_no_sample_has_them():
    frame = Frame.from_metas([make_meta(0), make_meta(1)])
    assert frame.image_flip is None
    assert frame.bev_augmentation is None
    assert frame.exists is True
    matrix = np.diag([-1.0, 1.0, 1.0])
    metas = [dict(make_meta(0), image_flip=True, frame_exists=False), make_meta(1)]
    metas[1]["bev_augmentation"] = matrix
    frame = Frame.from_metas(metas)
    assert frame.image_flip.tolist() == [True, False]
    assert frame.exists.tolist() == [False, True]
    np.testing.assert_array_equal(frame.bev_augmentation, [np.eye(2), matrix[:2, :2]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"img_shape": [(32, 64, 3), (64, 64, 3)]}, "padded to one size"),
        ({"lidar2img": [np.eye(4)]}, "same cameras"),
        ({"can_bus": np.zeros(17)}, "18 numbers"),
        ({"can_bus": None}, "sample0frame0 has no can_bus: add it to meta_keys"),
    ],
)
def test_metas_the_network_cannot_use_are_rejected(change, message):
    meta = {k: v for k, v in {**make_meta(0), **change}.items() if v is not None}
    with pytest.raises(ValueError, match=message):
        Frame.from_metas([meta, make_meta(1)])


@pytest.mark.parametrize("key", ["lidar2img", "can_bus"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(key, value):
    metas = [make_meta(0), make_meta(1)]
    numbers = np.array(metas[1][key], dtype=np.float64)
    numbers.flat[5] = value
    metas[1][key] = numbers
    with pytest.raises(ValueError, match=f"{key} of {metas[1].get('sample_idx')} has a NaN"):
        Frame.from_metas(metas)

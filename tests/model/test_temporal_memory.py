import numpy as np
import pytest
import torch

from projects.bevformer.geometry.can_bus import CAN_POSITION, CAN_SIZE, CAN_YAW_DEG, CAN_YAW_RAD
from projects.bevformer.model.temporal_memory import TemporalMemory


def pose(scene, position, yaw_deg):
    """A meta with an absolute pose; the other CAN-bus numbers are 9."""
    can_bus = np.full(CAN_SIZE, 9.0)
    can_bus[CAN_POSITION] = position
    can_bus[CAN_YAW_DEG] = yaw_deg
    return dict(scene_token=scene, can_bus=can_bus, sample_idx="s")


def bev(value, batch=1):
    return torch.full((batch, 4, 2), float(value))


def test_the_first_frame_knows_nothing():
    prev_bev, has_prev, (meta,) = TemporalMemory().recall([pose("a", (5, 6, 7), 30)])
    assert prev_bev is None
    assert has_prev == [False]
    assert not meta["can_bus"][CAN_POSITION].any()
    assert meta["can_bus"][CAN_YAW_DEG] == 0
    assert meta["can_bus"][CAN_YAW_RAD] == 9


def test_the_next_frame_gets_the_bev_and_the_pose_relative_to_it():
    memory = TemporalMemory()
    memory.remember(bev(1), [pose("a", (5, 6, 7), 30)])
    given = pose("a", (6, 4, 7), 33)
    before = given["can_bus"].copy()
    prev_bev, has_prev, (meta,) = memory.recall([given])
    assert torch.equal(prev_bev, bev(1))
    assert has_prev == [True]
    assert meta["can_bus"][CAN_POSITION].tolist() == [1, -2, 0]
    assert meta["can_bus"][CAN_YAW_DEG] == 3
    assert meta["can_bus"][3:17].tolist() == [9.0] * 14
    assert meta["sample_idx"] == "s"
    np.testing.assert_array_equal(given["can_bus"], before)


def test_poses_are_relative_to_the_last_frame_not_the_first():
    memory = TemporalMemory()
    for step, position in enumerate([(0, 0, 0), (1, 0, 0), (3, 0, 0)]):
        _, has_prev, (meta,) = memory.recall([pose("a", position, 10 * step)])
        memory.remember(bev(step), [pose("a", position, 10 * step)])
    assert meta["can_bus"][CAN_POSITION].tolist() == [2, 0, 0]
    assert meta["can_bus"][CAN_YAW_DEG] == 10


def test_later_edits_of_a_remembered_meta_do_not_reach_the_memory():
    memory, remembered = TemporalMemory(), pose("a", (5, 6, 7), 30)
    memory.remember(bev(1), [remembered])
    remembered["can_bus"][:] = 0
    _, _, (meta,) = memory.recall([pose("a", (6, 6, 7), 30)])
    assert meta["can_bus"][CAN_POSITION].tolist() == [1, 0, 0]


def test_a_new_scene_starts_afresh_and_an_old_one_is_forgotten():
    memory = TemporalMemory()
    memory.remember(bev(1), [pose("a", (0, 0, 0), 0)])
    assert memory.recall([pose("b", (0, 0, 0), 0)])[:2] == (None, [False])
    memory.remember(bev(2), [pose("b", (0, 0, 0), 0)])
    assert memory.recall([pose("a", (0, 0, 0), 0)])[:2] == (None, [False])
    prev_bev, has_prev, _ = memory.recall([pose("b", (0, 0, 0), 0)])
    assert torch.equal(prev_bev, bev(2))
    assert has_prev == [True]


def test_streams_change_scenes_one_by_one():
    memory = TemporalMemory()
    memory.remember(bev(1, 2), [pose("a", (1, 1, 1), 5), pose("b", (2, 2, 2), 6)])
    metas = [pose("c", (7, 7, 7), 7), pose("b", (4, 2, 2), 8)]
    prev_bev, has_prev, (fresh, known) = memory.recall(metas)
    assert torch.equal(prev_bev, bev(1, 2))
    assert has_prev == [False, True]
    assert fresh["can_bus"][CAN_POSITION].tolist() == [0, 0, 0]
    assert known["can_bus"][CAN_POSITION].tolist() == [2, 0, 0]
    assert known["can_bus"][CAN_YAW_DEG] == 2


def test_another_batch_size_starts_afresh():
    memory = TemporalMemory()
    memory.remember(bev(1, 2), [pose("a", (1, 1, 1), 5), pose("b", (2, 2, 2), 6)])
    assert memory.recall([pose("a", (1, 1, 1), 5)])[:2] == (None, [False])


@pytest.mark.parametrize("batch", [1, 2])
def test_reset_forgets_everything(batch):
    memory = TemporalMemory()
    metas = [pose(f"scene{b}", (0, 0, 0), 0) for b in range(batch)]
    memory.remember(bev(1, batch), metas)
    memory.reset()
    assert memory.recall(metas)[:2] == (None, [False] * batch)


def test_no_gradient_is_kept():
    memory = TemporalMemory()
    memory.remember(bev(1).requires_grad_() * 2, [pose("a", (0, 0, 0), 0)])
    assert not memory.recall([pose("a", (0, 0, 0), 0)])[0].requires_grad

import numpy as np
import pytest
import torch

from projects.bevformer.geometry.can_bus import CAN_POSITION, CAN_SIZE, CAN_YAW_DEG
from projects.bevformer.model import BEVState
from projects.bevformer.model.temporal_memory import TemporalMemory


def pose(scene, position=(0, 0, 0), yaw_deg=0, **more):
    """A meta with an absolute pose; the other CAN-bus numbers are 9."""
    can_bus = np.full(CAN_SIZE, 9.0)
    can_bus[CAN_POSITION] = position
    can_bus[CAN_YAW_DEG] = yaw_deg
    return dict(scene_token=scene, can_bus=can_bus, sample_idx="s", **more)


def bevs(*values):
    """(B, 4, 2), one value per sample."""
    return torch.tensor(values, dtype=torch.float32)[:, None, None].expand(-1, 4, 2).contiguous()


def test_first_frame_has_no_previous():
    assert BEVState().read([pose("a")]) == (None, [None])


def test_next_frame_reads_bev_and_pose_of_the_last():
    state = BEVState()
    for step, position in enumerate([(0, 0, 0), (1, 0, 0), (3, 0, 0)]):
        meta = pose("a", position, 10 * step)
        prev_bev, previous = state.read([meta])
        state = state.updated([meta], bevs(step))
    assert torch.equal(prev_bev, bevs(1))
    assert previous[0][CAN_POSITION].tolist() == [1, 0, 0]
    assert previous[0][CAN_YAW_DEG] == 10


def test_later_edits_of_a_meta_do_not_reach_the_state():
    meta = pose("a", (5, 6, 7), 30)
    state = BEVState().updated([meta], bevs(1))
    meta["can_bus"][:] = 0
    assert state.read([pose("a")])[1][0][CAN_POSITION].tolist() == [5, 6, 7]


def test_updating_does_not_modify_the_old_state():
    old = BEVState().updated([pose("a")], bevs(1))
    old.updated([pose("b")], bevs(2))
    old.updated([pose("a")], bevs(3))
    assert list(old.scenes) == ["a"]
    assert torch.equal(old.read([pose("a")])[0], bevs(1))


def test_streams_change_scenes_one_by_one():
    state = BEVState().updated([pose("a", (1, 1, 1)), pose("b", (2, 2, 2))], bevs(1, 2))
    prev_bev, previous = state.read([pose("c"), pose("b")])
    assert torch.equal(prev_bev[1], bevs(2)[0])
    assert previous[0] is None
    assert previous[1][CAN_POSITION].tolist() == [2, 2, 2]


@pytest.mark.parametrize("order", ["ab", "ba", "a", "b"])
def test_scenes_are_found_in_any_slot_and_batch_size(order):
    values = {"a": 1, "b": 2}
    state = BEVState().updated([pose(scene) for scene in "ab"], bevs(1, 2))
    prev_bev, previous = state.read([pose(scene) for scene in order])
    assert torch.equal(prev_bev, bevs(*(values[scene] for scene in order)))
    assert all(pose is not None for pose in previous)


def test_a_smaller_batch_loses_no_history():
    state = BEVState().updated([pose("a"), pose("b")], bevs(1, 2))
    state = state.updated([pose("a")], bevs(3))
    prev_bev, _ = state.read([pose("b"), pose("a")])
    assert torch.equal(prev_bev, bevs(2, 3))


def test_the_largest_batch_decides_how_many_scenes_are_kept():
    """Batches of 4, 1, 1 and 4 again: nobody's history is lost on the way."""
    state = BEVState().updated([pose(scene) for scene in "abcd"], bevs(1, 2, 3, 4))
    for _ in range(2):
        state = state.updated([pose("a")], bevs(5))
    prev_bev, _ = state.read([pose(scene) for scene in "abcd"])
    assert torch.equal(prev_bev, bevs(5, 2, 3, 4))


@pytest.mark.parametrize("no", [False, np.False_, 0])
def test_a_stream_can_begin_anew(no):
    state = BEVState().updated([pose("a")], bevs(1))
    assert state.read([pose("a", prev_bev_exists=no)]) == (None, [None])


@pytest.mark.parametrize(("max_scenes", "kept"), [(None, "bc"), (1, "c"), (3, "abc")])
def test_only_scenes_of_the_latest_batches_are_kept(max_scenes, kept):
    state = BEVState()
    for scene in "abc":
        state = state.updated([pose(scene)], bevs(1), max_scenes)
    assert "".join(state.scenes) == kept


def test_scene_seen_again_counts_as_recent():
    state = BEVState()
    for scene in "abac":
        state = state.updated([pose(scene)], bevs(1))
    assert list(state.scenes) == ["a", "c"]


def test_an_old_scene_does_not_keep_its_batch_alive():
    batch = bevs(1, 2)
    state = BEVState().updated([pose("a"), pose("b")], batch).updated([pose("b")], bevs(3))
    assert state.scenes["a"].bevs.data_ptr() != batch.data_ptr()
    assert state.scenes["a"].bevs.shape == (1, 4, 2)


def test_the_steady_state_copies_no_bev():
    batch = bevs(1, 2)
    state = BEVState().updated([pose("a"), pose("b")], batch)
    assert state.read([pose("a"), pose("b")])[0].data_ptr() == batch.data_ptr()


def test_time_running_backwards_is_an_error():
    state = BEVState().updated([pose("a", timestamp=10.5)], bevs(1))
    state.read([pose("a", timestamp=10.5)])
    with pytest.raises(ValueError, match=r"sample s at 10\.0 s is older .* reset_memory"):
        state.read([pose("a", timestamp=10.0)])


@pytest.mark.parametrize(
    "meta",
    [
        pose("b", timestamp=10.0),  # another scene
        pose("a", timestamp=10.0, prev_bev_exists=False),
    ],
)
def test_restarted_stream_may_go_back_in_time(meta):
    state = BEVState().updated([pose("a", timestamp=10.5)], bevs(1))
    assert state.read([meta]) == (None, [None])


def test_metas_without_timestamp_are_not_checked():
    state = BEVState().updated([pose("a", timestamp=10.5)], bevs(1))
    assert state.read([pose("a")])[1][0] is not None


def test_two_frames_of_a_scene_in_one_batch_are_rejected():
    with pytest.raises(ValueError, match="different scenes in scene_token, got .*'a', 'a'"):
        BEVState().updated([pose("a"), pose("a")], bevs(1, 2))


def test_metas_without_scene_are_rejected():
    meta = {k: v for k, v in pose("a").items() if k != "scene_token"}
    with pytest.raises(ValueError, match=r"scene_token, got \[None\]"):
        BEVState().updated([meta], bevs(1))


def test_scenes_of_the_batch_itself_are_always_kept():
    state = BEVState().updated([pose("a"), pose("b")], bevs(1, 2), max_scenes=1)
    assert list(state.scenes) == ["a", "b"]


def test_reset_forgets_everything():
    memory = TemporalMemory()
    memory.state = memory.state.updated([pose("a")], bevs(1))
    memory.reset()
    assert memory.state.read([pose("a")]) == (None, [None])


def test_no_gradient_is_kept():
    state = BEVState().updated([pose("a")], bevs(1).requires_grad_() * 2)
    assert not state.read([pose("a")])[0].requires_grad

from collections import Counter
from types import SimpleNamespace

import pytest

from projects.bevformer.datasets import EpochShuffleSampler, SceneSampler
from projects.bevformer.datasets.samplers import SampleKey


def dataset(*frames_of_scenes):
    tokens = [f"s{i}" for i, frames in enumerate(frames_of_scenes) for _ in range(frames)]
    return SimpleNamespace(data_infos=[{"scene_token": token} for token in tokens])


def shares(data, world_size):
    return [list(SceneSampler(data, rank, world_size)) for rank in range(world_size)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("frames", [(40, 40, 41, 39), (1, 2, 3, 40, 5), (4,), (40,) * 150])
def test_whole_scenes_in_order(frames, world_size):
    data = dataset(*frames)
    parts = shares(data, world_size)
    assert [index for part in parts for index in part] == list(range(sum(frames)))
    scenes = [{data.data_infos[i]["scene_token"] for i in part} for part in parts]
    assert sum(len(names) for names in scenes) == len(frames)  # no scene on two ranks
    assert [len(SceneSampler(data, r, world_size)) for r in range(world_size)] == [
        len(part) for part in parts
    ]


def test_balanced_by_frames():
    assert [len(part) for part in shares(dataset(*(40,) * 8), 4)] == [80, 80, 80, 80]
    assert [len(part) for part in shares(dataset(60, 20, 20, 20), 2)] == [60, 60]
    assert [len(part) for part in shares(dataset(40, 100, 20), 2)] == [40, 120]  # not 140 and 20


def test_more_ranks_than_scenes():
    parts = shares(dataset(4, 4), 5)
    assert sorted(len(part) for part in parts) == [0, 0, 0, 4, 4]


def test_interleaved_scenes_are_refused():
    data = SimpleNamespace(data_infos=[{"scene_token": token} for token in "aba"])
    with pytest.raises(ValueError, match="not contiguous"):
        SceneSampler(data)


@pytest.mark.parametrize("sampler", [SceneSampler, EpochShuffleSampler])
def test_rank_out_of_range(sampler):
    with pytest.raises(ValueError, match="rank 2"):
        sampler(range(3), 2, 2)


@pytest.mark.parametrize(("size", "world_size"), [(12, 3), (10, 4), (2, 5), (7, 1)])
def test_epoch_covers_everything(size, world_size):
    samplers = [EpochShuffleSampler(range(size), rank, world_size) for rank in range(world_size)]
    parts = [list(sampler) for sampler in samplers]
    share = len(samplers[0])
    assert share == (size + world_size - 1) // world_size
    assert [len(part) for part in parts] == [share] * world_size
    counts = Counter(key.index for part in parts for key in part)
    assert set(counts) == set(range(size))
    if size >= world_size:
        assert sum(counts.values()) - size < world_size


def indices(sampler):
    return [key.index for key in sampler]


def test_epoch_order():
    first, second = (EpochShuffleSampler(range(50), seed=3) for _ in range(2))
    assert list(first) == list(second)
    order = indices(first)
    assert order != sorted(order)
    second.set_epoch(1)
    assert order != indices(second)
    assert order != indices(EpochShuffleSampler(range(50), seed=4))


def test_keys_name_seed_and_epoch():
    sampler = EpochShuffleSampler(range(3), seed=7)
    sampler.set_epoch(2)
    assert {key[:2] for key in sampler} == {(7, 2)}
    assert isinstance(next(iter(sampler)), SampleKey)


def test_epoch_can_start_in_the_middle():
    whole, rest = (EpochShuffleSampler(range(10), seed=3) for _ in range(2))
    rest.start_at(4, 6)
    whole.set_epoch(4)
    assert list(rest) == list(whole)[6:]
    for later in (1, 2):  # what mmcv's IterLoader counts
        rest.set_epoch(later)
        whole.set_epoch(4 + later)
        assert list(rest) == list(whole)


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_total_batches_do_not_depend_on_the_number_of_processes(world_size):
    """Of six samples, from the third one of an epoch on."""

    def batches(processes):
        samplers = [EpochShuffleSampler(range(30), rank, processes, 3) for rank in range(processes)]
        share = 6 // processes
        for sampler in samplers:
            sampler.start_at(1, 2 * share)
        parts = [indices(sampler) for sampler in samplers]
        starts = range(0, len(parts[0]), share)
        return [{i for part in parts for i in part[start : start + share]} for start in starts]

    assert batches(world_size) == batches(1)
    assert len(batches(1)) == 3


def test_empty_dataset_is_refused():
    with pytest.raises(ValueError, match="empty"):
        EpochShuffleSampler([])

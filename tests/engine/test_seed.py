import random

import numpy as np
import torch

from projects.bevformer.engine.seed import WorkerSeed, choose_seed, set_seed


def worker_draw(torch_seed, rank):
    """First numbers of a worker whose torch generator starts at `torch_seed`."""
    torch.manual_seed(torch_seed)
    WorkerSeed(rank)(worker_id=0)
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_workers_differ_by_epoch_and_rank_and_repeat_by_seed():
    draws = [worker_draw(1, 0), worker_draw(2, 0), worker_draw(1, 1)]
    for numbers in zip(*draws):
        assert len(set(numbers)) == 3
    assert worker_draw(1, 0) == draws[0]


def test_set_seed_repeats_all_generators():
    def draw():
        set_seed(5)
        return random.random(), np.random.rand(), torch.rand(1).item()

    assert draw() == draw()


def test_choose_seed_keeps_a_given_one_and_draws_otherwise():
    assert choose_seed(0) == 0
    assert choose_seed() != choose_seed()

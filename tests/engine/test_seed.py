import random

import numpy as np
import torch

from projects.bevformer.datasets.samplers import SampleKey
from projects.bevformer.engine.seed import SeededDataset, choose_seed, seeded, set_seed


def draw():
    return random.random(), np.random.rand(), torch.rand(1).item()


class Draws:
    """A data set of numbers that are drawn anew on each reading."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return (index, *draw())


def test_samples_depend_only_on_seed_epoch_and_index():
    dataset = SeededDataset(Draws())
    assert len(dataset) == 5
    first = dataset[SampleKey(0, 1, 2)]
    dataset[SampleKey(0, 1, 3)]
    draw()
    assert dataset[SampleKey(0, 1, 2)] == first
    others = [dataset[SampleKey(*key)] for key in ((1, 1, 2), (0, 2, 2), (0, 1, 3), (0, 2, 1))]
    for numbers in zip(first[1:], *(other[1:] for other in others)):
        assert len(set(numbers)) == 5


def test_negative_seeds_are_seeds():
    assert SeededDataset(Draws())[SampleKey(-1, 0, 0)] != SeededDataset(Draws())[SampleKey(0, 0, 0)]


def test_seeded_restores_the_generators():
    set_seed(3)
    expected = [draw(), draw()]
    set_seed(3)
    numbers = [draw()]
    with seeded(1, 2):
        draw()
    numbers.append(draw())
    assert numbers == expected


def test_set_seed_repeats_all_generators():
    def draw_seeded():
        set_seed(5)
        return draw()

    assert draw_seeded() == draw_seeded()


def test_choose_seed_keeps_a_given_seed_and_draws_one_otherwise():
    assert choose_seed(0) == 0
    assert choose_seed() != choose_seed()

"""Which frames a process reads, and in which order."""

from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Sampler

from projects.bevformer.nuscenes.info_list import column


class SceneSampler(Sampler):
    """Whole scenes, in time order, for evaluation with a temporal model.

    Each rank gets a contiguous run of scenes, so no scene is cut and one process or many give the
    same predictions. Runs are balanced by number of frames; with more ranks than scenes some are empty.

    Args:
        dataset: has `data_infos`, scene after scene in time order.
        rank: index of this process.
        world_size: number of processes.

    Raises:
        ValueError: rank out of range, or the frames of a scene are not contiguous.
    """

    def __init__(self, dataset, rank=0, world_size=1):
        _check_rank(rank, world_size)
        scenes = _split_by_scene(column(dataset.data_infos, "scene_token"))
        # A scene goes to the rank in whose share of all frames its middle lies.
        total = len(dataset.data_infos)
        self.indices = [
            index
            for scene in scenes
            if (scene[0] + len(scene) / 2) * world_size // total == rank
            for index in scene
        ]

    def __iter__(self):
        return iter(self.indices)

    def __len__(self):
        return len(self.indices)


class SampleKey(NamedTuple):
    """A training sample, and everything that its random choices depend on."""

    seed: int
    epoch: int
    index: int


class EpochShuffleSampler(Sampler):
    """All frames once per epoch for training, shuffled by (seed, epoch) and split among processes.

    It yields `SampleKey`s: they bring seed and epoch to the data workers, persistent ones included.

    Every rank gets the same number of frames; where the total does not divide, the first frames of the
    epoch's order are read twice.

    Args:
        dataset: has a length.
        rank: index of this process.
        world_size: number of processes.
        seed: the same on all ranks.

    Raises:
        ValueError: rank out of range, or an empty dataset.
    """

    def __init__(self, dataset, rank=0, world_size=1, seed=0):
        _check_rank(rank, world_size)
        if len(dataset) == 0:
            raise ValueError("the dataset is empty: nothing to sample")
        self.size = len(dataset)
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.epoch = 0
        self._first_epoch = 0
        self._skipped = 0

    def set_epoch(self, epoch):
        """Choose the order of the next iteration."""
        self.epoch = self._first_epoch + epoch

    def start_at(self, epoch, position):
        """Let the next iteration begin in the middle of an epoch; `set_epoch` counts from that epoch.

        Args:
            epoch: which epoch.
            position: how many of this rank's samples of it to leave out.
        """
        self.epoch = self._first_epoch = epoch
        self._skipped = position

    def __iter__(self):
        generator = torch.Generator()
        generator.manual_seed(self.seed + self.epoch)
        order = torch.randperm(self.size, generator=generator).numpy()
        padded = np.resize(order, len(self) * self.world_size)
        own = padded[self.rank :: self.world_size].tolist()
        skipped, self._skipped = self._skipped, 0
        return iter([SampleKey(self.seed, self.epoch, index) for index in own[skipped:]])

    def __len__(self):
        return -(-self.size // self.world_size)


def _check_rank(rank, world_size):
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is not in 0 ... world_size - 1 = {world_size - 1}")


def _split_by_scene(scene_tokens):
    """Runs of equal tokens as ranges of indices."""
    starts = [
        index
        for index, token in enumerate(scene_tokens)
        if index == 0 or token != scene_tokens[index - 1]
    ]
    if len(starts) != len(set(scene_tokens)):
        raise ValueError(
            "the frames of a scene are not contiguous: sort data_infos by scene and time"
        )
    return [range(start, end) for start, end in zip(starts, starts[1:] + [len(scene_tokens)])]

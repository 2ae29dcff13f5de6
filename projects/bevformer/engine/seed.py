"""Random seeds of the main process and of training samples."""

from __future__ import annotations

import contextlib
import random
from typing import Any, Iterator

import numpy as np
import torch
from torch.utils.data import Dataset

from projects.bevformer.engine.determinism import make_deterministic
from projects.bevformer.engine.distributed import broadcast


def choose_seed(seed: int | None = None) -> int:
    """The given seed, or a random one that all ranks share."""
    if seed is None:
        seed = int(np.random.SeedSequence().generate_state(1)[0]) % 2**31
    return broadcast(seed)


def set_seed(seed: int, deterministic: bool = False) -> None:
    """Seed Python, numpy and torch; `deterministic` is `make_deterministic`."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if deterministic:
        make_deterministic()


@contextlib.contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Seed Python, numpy and torch (CPU) from `numbers`, and restore their states on exit.

    Generators of GPUs are not touched.

    Args:
        numbers: ints of 0 or more.
    """
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    words = np.random.SeedSequence(numbers).generate_state(6)
    random.seed(words[:4].tobytes())
    np.random.seed(words[:4])
    torch.default_generator.manual_seed(int(words[4]) << 32 | int(words[5]))
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


class SeededDataset(Dataset):
    """A data set whose random choices for a sample depend only on (seed, epoch, index).

    They do not depend on the worker, on what was read before, or on whether the run was resumed.

    Args:
        dataset: takes an index; draws from Python's, numpy's or torch's global generators.
    """

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Any) -> Any:
        """The item of a `SampleKey`."""
        with seeded(key.seed % 2**32, key.epoch, key.index):
            return self.dataset[key.index]

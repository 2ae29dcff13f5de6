"""Random seeds of the main process and of data workers."""

import random

import numpy as np
import torch

from projects.bevformer.engine.distributed import broadcast


def choose_seed(seed=None):
    """The given seed, or a random one that all ranks share."""
    if seed is None:
        seed = int(np.random.SeedSequence().generate_state(1)[0]) % 2**31
    return broadcast(seed)


def set_seed(seed, deterministic=False):
    """Seed Python, numpy and torch; `deterministic` also pins cuDNN to its repeatable algorithms."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if deterministic:
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False


class WorkerSeed:
    """`worker_init_fn`: another random stream for every worker, rank and epoch, repeatable by seed.

    torch seeds a worker from the main process's generator, which moves on every epoch; numpy and
    Python would otherwise start each epoch with the same numbers.
    """

    def __init__(self, rank):
        self.rank = rank

    def __call__(self, worker_id):
        entropy = [torch.initial_seed(), self.rank]
        words = np.random.SeedSequence(entropy).generate_state(3)
        random.seed(int(words[0]))
        np.random.seed(int(words[1]))
        torch.manual_seed(int(words[2]))

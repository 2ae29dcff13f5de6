"""Info records in one block of memory that data workers share."""

import pickle
from collections.abc import Sequence

import numpy as np
import torch


class InfoList(Sequence):
    """Records as bytes in one tensor; reading one gives a new object.

    A list of dicts is copied into every forked worker page by page, because reading an object writes
    its reference count. The bytes are never written: forked workers read the same pages, and spawned
    ones get the tensor through shared memory.

    Args:
        records: whatever pickles.
    """

    def __init__(self, records):
        parts = [np.frombuffer(pickle.dumps(record, protocol=4), np.uint8) for record in records]
        self._ends = torch.from_numpy(np.cumsum([len(part) for part in parts], dtype=np.int64))
        self._bytes = torch.from_numpy(np.concatenate(parts) if parts else np.zeros(0, np.uint8))

    def __len__(self):
        return len(self._ends)

    def __getitem__(self, index):
        """A copy of one record, or a list of copies for a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = range(len(self))[index]  # negative ones count from the end
        start = int(self._ends[position - 1]) if position else 0
        return pickle.loads(memoryview(self._bytes[start : self._ends[position]].numpy()))

    @property
    def nbytes(self):
        """Size of the shared block."""
        return self._bytes.numel() + self._ends.numel() * self._ends.element_size()

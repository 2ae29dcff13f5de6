"""Info records in one block of memory that data workers share."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any, Iterable

import numpy as np
import torch

_COLUMNS = ("token", "scene_token")


class InfoList(Sequence):
    """Records as bytes in one tensor; reading one gives a new object.

    A list of dicts is copied into every forked worker page by page, because reading an object writes
    its reference count. The bytes are never written: forked workers read the same pages, and spawned
    ones get the tensor through shared memory.

    Args:
        records: dicts; anything that pickles.
    """

    def __init__(self, records: Iterable[dict]) -> None:
        records = list(records)
        parts = [np.frombuffer(pickle.dumps(record, protocol=4), np.uint8) for record in records]
        self._ends = torch.from_numpy(np.cumsum([len(part) for part in parts], dtype=np.int64))
        self._bytes = torch.from_numpy(np.concatenate(parts) if parts else np.zeros(0, np.uint8))
        self._columns = {
            field: np.array([record[field] for record in records], dtype=str)
            for field in _COLUMNS
            if all(field in record for record in records)
        }

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: Any) -> Any:
        """A copy of one record, or a list of copies for a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = range(len(self))[index]  # negative ones count from the end
        start = int(self._ends[position - 1]) if position else 0
        return pickle.loads(memoryview(self._bytes[start : self._ends[position]].numpy()))

    @property
    def nbytes(self) -> int:
        """Size of the shared block."""
        return self._bytes.numel() + self._ends.numel() * self._ends.element_size()


def column(infos: Sequence, field: str) -> np.ndarray:
    """(len(infos),) "token" or "scene_token" of all records; an InfoList keeps them and reads no record."""
    if isinstance(infos, InfoList) and field in infos._columns:
        return infos._columns[field]
    return np.array([info[field] for info in infos])

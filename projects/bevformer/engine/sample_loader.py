"""A DataLoader that remembers which samples its workers have, for the message when one of them dies."""

from __future__ import annotations

import signal
import time
import weakref
from typing import Any, Iterator

from torch.utils.data import DataLoader

from projects.bevformer.datasets.samplers import SampleKey
from projects.bevformer.engine.build import data_sets_inside
from projects.bevformer.engine.distributed import is_distributed
from projects.bevformer.messages import listed

_SETTLE_S = 1
_MOST = 12  # tokens in a message
_loaders: weakref.WeakSet[SampleLoader] = weakref.WeakSet()


class SampleLoader(DataLoader):
    """A DataLoader whose samples in flight are known."""

    batches: Any = None  # the newest iterator over the batches

    @property
    def drawn(self) -> list:
        """The batches of indices that were drawn in this epoch."""
        return self.__dict__.setdefault("_drawn", [])

    @property
    def _index_sampler(self) -> Any:
        return _Recorded(super()._index_sampler, self.drawn)

    def end_workers(self) -> None:
        """End the workers of an epoch that was not read to its end."""
        if hasattr(self.batches, "_shutdown_workers"):
            self.batches._shutdown_workers()

    def _get_iterator(self) -> Any:
        if self.num_workers > 0 and is_distributed():
            # gloo's threads take a lock of Python's to free what their last collective used. A worker that is
            # forked meanwhile would wait for that lock forever: before Python 3.12 a child does not reset it.
            time.sleep(_SETTLE_S)
        try:
            iterator = super()._get_iterator()
        except (
            RuntimeError
        ) as error:  # a worker died before all batches of the start were handed out
            trace = error.__traceback__
            while trace is not None:
                self._remember(trace.tb_frame.f_locals.get("self"))
                trace = trace.tb_next
            raise
        self._remember(iterator)
        return iterator

    def _remember(self, iterator: Any) -> None:
        if hasattr(iterator, "_task_info"):
            # A reference: an error in the loop over the batches frees its own, and the workers with it.
            self.batches = iterator
            _loaders.add(self)

    def lost(self) -> Iterator[tuple[int, int, list[str]]]:
        """Process id, exit code and sample tokens of the workers that have died."""
        iterator = self.batches
        for number, worker in enumerate(getattr(iterator, "_workers", ())):
            if worker.exitcode:
                tokens = [
                    _token(self.dataset, key)
                    for batch, place in sorted(iterator._task_info.items())
                    if len(place) == 1 and place[0] == number  # it has not come back
                    for key in self.drawn[batch]
                ]
                yield worker.pid, worker.exitcode, tokens


class _Recorded:
    """Batches of indices, noted in a list as they are drawn."""

    def __init__(self, batches: Any, drawn: list) -> None:
        self._batches, self._drawn = batches, drawn

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        self._drawn.clear()
        for batch in self._batches:
            self._drawn.append(batch)
            yield batch


def _token(dataset: Any, key: Any) -> str:
    index = key.index if isinstance(key, SampleKey) else key
    parts = data_sets_inside(getattr(dataset, "dataset", dataset))
    if len(parts) == 1 and len(parts[0].data_infos) == len(dataset):
        return parts[0].data_infos[index]["token"]
    return f"number {index} of {len(dataset)}"  # of data sets that are repeated or joined


def lost_samples() -> str:
    """The end of a message: which data workers died, of what, and which samples they had."""
    found = [one for loader in list(_loaders) for one in loader.lost()]
    return "".join(
        f"; data worker {pid} ({signal.Signals(-code).name if code < 0 else f'exit code {code}'}) had "
        f"the samples {listed(tokens, _MOST)}"
        for pid, code, tokens in found
    )

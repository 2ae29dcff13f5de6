"""A training run that a signal ends: the iteration is finished, and its state saved."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from mmcv.runner import BaseRunner, Hook

from projects.bevformer.engine.distributed import all_gather, is_distributed
from projects.bevformer.engine.log import write_logs
from projects.bevformer.interruption import (
    Interrupted,
    command_to_go_on,
    end_at_once,
    is_launched,
)

INTERRUPTED = "interrupted.pth"
_SAME_EVENT_S = 3.0  # a launcher that received a signal too passes it on within this time


class Interruption(Hook):
    """Notes a signal, and ends the run after an iteration, of all processes the same.

    Its place is after what saves checkpoints and before what evaluates.
    """

    number = 0  # of the signal that this process received
    _noted_at = 0.0

    def note(self, number: int) -> None:
        """Handler of the signals; the second one ends the program at once.

        Ctrl-C and schedulers reach a launcher and its processes, which get the signal twice then.
        """
        if self.number:
            if is_launched() and time.monotonic() - self._noted_at < _SAME_EVENT_S:
                return
            end_at_once(number)
        self.number, self._noted_at = number, time.monotonic()
        # Not through a logger, which the signal may have interrupted.
        name = signal.Signals(number).name
        os.write(2, f"{name}: ending after this iteration; once more ends at once\n".encode())

    def after_train_iter(self, runner: BaseRunner) -> None:
        at_end = runner.counts_epochs and self.end_of_epoch(runner)
        if self._is_noted(runner) and not at_end:  # the end of an epoch has checkpoints of its own
            write_logs(runner)
            self.end(runner)

    def after_train_epoch(self, runner: BaseRunner) -> None:
        if self._is_noted(runner):
            self.end(runner)

    def _is_noted(self, runner: BaseRunner) -> bool:
        """The same in all processes: it was added up with the losses of this iteration."""
        return bool(runner.outputs["interrupted"] if is_distributed() else self.number)

    def end(self, runner: BaseRunner) -> None:
        """Save the state on all ranks, and raise `Interrupted`."""
        number = max(all_gather(self.number))
        name = signal.Signals(number).name
        try:
            path = save_interrupted(runner, name)
        except (OSError, ValueError) as error:
            text = f"{name}: the state is NOT saved: {error}; go on with: {command_to_go_on()}"
        else:
            text = (
                f"{name}: ended after iteration {runner.progress()[1]}, saved in {path}; go on with: "
                f"{command_to_go_on(path)}"
            )
        raise Interrupted(number, text)


def save_interrupted(runner: BaseRunner, reason: str, **meta: Any) -> Path:
    """Save the state of a run that ends before its time, on all ranks; returns the file.

    Args:
        runner: within an iteration or after it; its `stage` says which iterations are done.
        reason: stored as `interrupted`.
        meta: further plain values to store.

    Raises:
        NonFiniteError, OSError: it cannot be saved.
    """
    runner.save_on_all_ranks(
        runner.work_dir, INTERRUPTED, create_symlink=False, meta={"interrupted": reason, **meta}
    )
    return Path(runner.work_dir) / INTERRUPTED

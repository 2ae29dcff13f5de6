"""Saving checkpoints during training, and which of them stay."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Any, Iterator

from mmcv.runner import HOOKS, BaseRunner, Hook

from projects.bevformer.engine.checkpoint import file_bytes, load_checkpoint
from projects.bevformer.engine.distributed import average_buffers, get_rank, on_first_rank
from projects.bevformer.engine.resume import checkpoint_numbers
from projects.bevformer.files.writing import followed, free_bytes, mib, remove_left_over

_RUN_FILES = re.compile(r"(latest|interrupted|best_.+)\.pth")


@contextlib.contextmanager
def save_errors(runner: BaseRunner, what: str) -> Iterator[None]:
    """A block whose OSError is only logged, as `what`, where the runner's `on_save_error` is "continue"."""
    try:
        yield
    except OSError as error:
        if runner.on_save_error == "stop":
            raise
        runner.logger.warning("%s, training goes on (checkpoint_config.on_error): %s", what, error)


def save_or_go_on(runner: BaseRunner, out_dir: str | Path, **options: Any) -> bool:
    """Save a checkpoint, on all ranks; whether it was written.

    Args:
        runner: a failure ends it, unless its `on_save_error` is "continue".
        out_dir: a folder.
        options: of `runner.save_on_all_ranks`.

    Raises:
        OSError: the file cannot be written, on all ranks.
    """
    saved = False
    with save_errors(runner, "NO CHECKPOINT was saved"):
        runner.save_on_all_ranks(str(out_dir), **options)
        saved = True
    return saved


@HOOKS.register_module(force=True)
class CheckpointHook(Hook):
    """Saves checkpoints as mmcv's hook does, and keeps the newest of its own run.

    Args:
        interval: epochs, or iterations without `by_epoch`, between two checkpoints; -1 saves none but the
            last.
        by_epoch: what `interval` counts, and the number in the names.
        save_optimizer: keep the state of the optimizer, which resuming needs.
        out_dir: checkpoints go to a folder in it with the name of the work dir; the work dir by default.
        max_keep_ckpts: remove older ones of this run once there are more; -1 keeps all. Best checkpoints,
            those of other runs, and what `latest.pth` names stay.
        save_last: also save at the end of training.
        sync_buffer: before saving, set the floating-point buffers (statistics of batch norms) of all
            processes to their mean.
        file_client_args: refused unless for the disk: there is no other storage.
        on_error: "stop", or "continue" to go on training when a checkpoint cannot be written.
        filename_tmpl: of the names; `epoch_{}.pth` or `iter_{}.pth` by default.
        create_symlink: keep `latest.pth` up to date.
        meta: plain values that are stored with each checkpoint.

    Raises:
        ValueError: another storage than a disk, or a `filename_tmpl` that is none; `check_config` refuses other
            options that mean nothing.
    """

    def __init__(
        self,
        interval: int = -1,
        by_epoch: bool = True,
        save_optimizer: bool = True,
        out_dir: str | None = None,
        max_keep_ckpts: int = -1,
        save_last: bool = True,
        sync_buffer: bool = False,
        file_client_args: dict | None = None,
        on_error: str = "stop",
        filename_tmpl: str | None = None,
        create_symlink: bool = True,
        meta: dict | None = None,
    ) -> None:
        if file_client_args not in (None, {"backend": "disk"}) or "://" in str(out_dir):
            raise ValueError(
                f"checkpoint_config: file_client_args {file_client_args} and out_dir {out_dir!r}: checkpoints "
                "are written to disks only; mount the storage and name its folder in out_dir"
            )
        self.interval, self.by_epoch, self.save_last = interval, by_epoch, save_last
        self.out_dir, self.max_keep_ckpts, self.sync_buffer = out_dir, max_keep_ckpts, sync_buffer
        self.on_error = on_error
        self.template = filename_tmpl or f"{'epoch' if by_epoch else 'iter'}_{{}}.pth"
        try:
            named = Path(self.template.format(1))
        except (AttributeError, LookupError, ValueError):
            named = Path()
        if named.name != str(named) or not named.name:
            raise ValueError(
                f"checkpoint_config.filename_tmpl is {filename_tmpl!r}: it must be a name with {{}} for the "
                "number, such as 'epoch_{}.pth'"
            )
        self.options = {
            "save_optimizer": save_optimizer, "create_symlink": create_symlink, "meta": meta,
        }  # fmt: skip
        self._own: dict[Path, int] | None = None  # checkpoints of this run -> their numbers

    def before_run(self, runner: BaseRunner) -> None:
        runner.on_save_error = self.on_error
        work_dir = Path(runner.work_dir)
        self.folder = Path(self.out_dir, work_dir.name) if self.out_dir else work_dir
        on_first_rank(lambda: self._prepare(runner))

    def _prepare(self, runner: BaseRunner) -> None:
        """Find out before training what would end it at the first checkpoint."""
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_left_over(self.folder)
        done = runner.epoch if self.by_epoch else runner.iter
        written = [
            path
            for path, number in checkpoint_numbers(self.folder, self.template).items()
            if number > done
        ]
        for folder in {self.folder, Path(runner.work_dir)}:
            written += [path for path in folder.iterdir() if _RUN_FILES.fullmatch(path.name)]
        for path in written:
            if path.is_dir():
                raise ValueError(
                    f"{path} is a folder, and this run writes a checkpoint of that name: rename it"
                )
        detector = runner.model.module
        needed = file_bytes(detector.state_dict())
        if self.options["save_optimizer"]:  # most optimizers keep two numbers of each weight
            trained = [p for p in detector.parameters() if p.requires_grad]
            needed += 2 * file_bytes(trained)
        free = free_bytes(self.folder)
        if free is not None and free < needed:
            runner.logger.warning(
                "%s has %s free, and a checkpoint needs about %s: make room, or training ends at the first "
                "(checkpoint_config.on_error='continue' goes on without)",
                self.folder, mib(free), mib(needed),
            )  # fmt: skip

    def after_train_epoch(self, runner: BaseRunner) -> None:
        if self.by_epoch and (
            self.every_n_epochs(runner, self.interval)
            or (self.save_last and self.is_last_epoch(runner))
        ):
            self._save(runner, runner.epoch + 1)

    def after_train_iter(self, runner: BaseRunner) -> None:
        if not self.by_epoch and (
            self.every_n_iters(runner, self.interval)
            or (self.save_last and self.is_last_iter(runner))
        ):
            self._save(runner, runner.iter + 1)

    def _save(self, runner: BaseRunner, number: int) -> None:
        what = "epochs" if self.by_epoch else "iterations"
        runner.logger.info("Saving checkpoint at %d %s", number, what)
        if self.sync_buffer:
            average_buffers(runner.model.module)
        path = self.folder / self.template.format(number)
        if not save_or_go_on(runner, self.folder, filename_tmpl=path.name, **self.options):
            return
        runner.meta.setdefault("hook_msgs", {})["last_ckpt"] = str(path)
        if get_rank() == 0 and self.max_keep_ckpts > 0:
            self._remove_older(runner, path, number)

    def _remove_older(self, runner: BaseRunner, path: Path, number: int) -> None:
        if self._own is None:
            self._own = self._saved_before(runner)
        self._own[path] = number
        latest = followed(self.folder / "latest.pth").resolve()
        passed = sorted((n, file) for file, n in self._own.items() if n <= number)
        for _, file in passed[: -self.max_keep_ckpts]:
            if file.resolve() == latest:
                continue
            del self._own[file]
            try:
                os.remove(file)
            except FileNotFoundError:
                pass
            except OSError as error:
                runner.logger.warning("the old checkpoint %s cannot be removed: %s", file, error)

    def _saved_before(self, runner: BaseRunner) -> dict[Path, int]:
        """Checkpoints in the folder that this run saved before it was resumed; others are left alone."""
        run, own = runner.meta.get("run"), {}
        if runner.resumed is None or run is None:
            return own
        for path, number in checkpoint_numbers(self.folder, self.template).items():
            try:
                if load_checkpoint(path)["meta"].get("run") == run:
                    own[path] = number
            except (ValueError, OSError):
                continue  # a broken one is nothing to count on
        return own

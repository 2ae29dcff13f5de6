"""mmcv's runners with safe checkpoints: written atomically, resumed without running their code."""

import contextlib
from pathlib import Path

import torch
from mmcv.runner import EpochBasedRunner, IterBasedRunner
from mmcv.runner.hooks import EMAHook as MmcvEMAHook
from mmdet.core.hook.ema import BaseEMAHook

from projects.bevformer.engine.checkpoint import (
    camera_rows,
    load_checkpoint,
    load_weights,
    point_latest_at,
    save_checkpoint,
)
from projects.bevformer.engine.checkpoint_checks import check_training_state
from projects.bevformer.engine.distributed import on_first_rank
from projects.bevformer.engine.ema import AverageHook
from projects.bevformer.engine.optimizer import changed_options, fit_saved_state, match_layouts
from projects.bevformer.engine.provenance import check_same_classes
from projects.bevformer.engine.resume import read_on_all_ranks
from projects.bevformer.published import published

_AFTER_OPTIMIZER = 41  # priority: mmcv's optimizer hooks have 40, its CheckpointHook 50


class _SafeCheckpoints:
    """Replaces how mmcv's runners write and read checkpoints.

    Hooks may have a method `checkpoint_meta()`: the dict that it returns is added to the meta of
    each checkpoint when it is saved.
    """

    stage = None  # name of the hooks that are being called
    batch = None  # samples of an iteration, all processes together
    epoch_length = None  # iterations of an epoch
    resumed = None  # path and meta of the checkpoint that was resumed
    saved = None  # path and iterations of the newest checkpoint of this run, on rank 0
    skipped = False  # whether the iteration at hand makes no step, see FiniteLossHook

    def _progress(self):
        """Epochs and iterations that are done in this stage, and iterations of the epoch at hand.

        The last is None where whole epochs are counted.
        """
        raise NotImplementedError

    def call_hook(self, fn_name):
        """Call all hooks."""
        self.stage = fn_name
        super().call_hook(fn_name)

    def register_hook(self, hook, priority="NORMAL"):
        """Register a hook; one that averages the weights has a place of its own.

        Raises:
            ValueError: a second one, or one that exchanges the weights by itself.
        """
        name = type(hook).__name__
        if isinstance(hook, (MmcvEMAHook, BaseEMAHook)):
            raise ValueError(
                f"custom_hooks: {name} exchanges the weights at the end of an epoch, so that "
                "checkpoints differ from what is scored: derive it from AverageHook "
                "(projects/bevformer/engine/ema.py), or use EMAHook"
            )
        if isinstance(hook, AverageHook):
            if self.average is not None:
                raise ValueError(f"custom_hooks: {name} is a second average of the weights")
            priority = _AFTER_OPTIMIZER
        super().register_hook(hook, priority)

    @property
    def average(self):
        """The hook that averages the weights, or None."""
        return next((hook for hook in self.hooks if isinstance(hook, AverageHook)), None)

    def scored_weights(self):
        """Context with the weights in the network that count: their average, where there is one."""
        return self.average.put(average=True) if self.average else contextlib.nullcontext()

    def save_checkpoint(
        self, out_dir, filename_tmpl=None, save_optimizer=True, meta=None, create_symlink=True
    ):
        """Write `out_dir/filename_tmpl`, and point `latest.pth` at it.

        Args:
            out_dir: a folder, which is made if needed.
            filename_tmpl: with `{}` for the number of epochs done (of iterations, inside an epoch).
            save_optimizer: keep the optimizer's state, which resuming needs.
            meta: plain values to store in addition to the runner's own.
            create_symlink: update `latest.pth`.
        """
        epoch, iteration, inside = self._progress()
        kind, number = ("epoch", epoch) if inside is None else ("iter", iteration)
        path = Path(out_dir) / (filename_tmpl or f"{kind}_{{}}.pth").format(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        meta = {**(meta or {}), **(self.meta or {})}
        for hook in self.hooks:
            if hasattr(hook, "checkpoint_meta"):
                meta.update(hook.checkpoint_meta())
        meta.update(epoch=epoch, iter=iteration, world_size=self.world_size, total_batch=self.batch)
        if self.counts_epochs:
            meta.update(counted_in="epoch", iter_in_epoch=inside or 0)
        else:
            meta["counted_in"] = "iter"
        detector, optimizer = self.model.module, self.optimizer if save_optimizer else None
        raw = self.average.raw_weights(detector) if self.average else None
        with self.scored_weights():
            save_checkpoint(path, detector, optimizer, meta, raw)
        self.saved = path, iteration
        if create_symlink:
            point_latest_at(path)

    def save_on_all_ranks(self, out_dir, filename_tmpl=None, **options):
        """`save_checkpoint`, called on all ranks; what it raises on rank 0 ends all of them."""
        on_first_rank(lambda: self.save_checkpoint(out_dir, filename_tmpl, **options))

    def load_checkpoint(self, filename, map_location="cpu", strict=False, revise_keys=None):
        """Start from the weights of a file; missing ones keep their initial values (reported)."""
        checkpoint = read_on_all_ranks(load_checkpoint, filename, self.logger)
        load_weights(self.model.module, checkpoint, filename, self.logger, complete=strict)
        return checkpoint

    def resume(self, checkpoint, resume_optimizer=True, map_location="cpu"):
        """Resume with the weights, optimizer state and progress of a checkpoint file.

        mmcv's `resume` would execute the config text in the file as Python.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it is broken, of another model, or holds no training state.
        """
        path = checkpoint
        checkpoint = read_on_all_ranks(load_checkpoint, path, self.logger)
        check_training_state(checkpoint, path)
        check_same_classes(checkpoint, path, self.model.module)
        meta = checkpoint["meta"]
        self._resume_weights(checkpoint, path)
        if resume_optimizer:
            self._resume_optimizer(checkpoint, path)
        self._resume_progress(meta, path)
        for key in ("hook_msgs", "grad_scaler"):
            if key in meta:
                self.meta[key] = meta[key]
        self.meta["run"] = meta.get("run")  # None in older files
        self.resumed, self.saved = (Path(path), meta), (Path(path), self._iter)
        self.logger.info("resumed %s: epoch %d, iteration %d", path, self.epoch, self.iter)

    def _resume_weights(self, checkpoint, path):
        """Load the average, where there is one, and the raw weights that training goes on with."""
        detector, raw = self.model.module, checkpoint.get("raw_weights")
        load_weights(detector, checkpoint, path, self.logger)
        if self.average is not None:
            self.average.restart(detector)
            if raw is None:
                self.logger.warning(
                    "checkpoint %s has no average of the weights: the one of %s starts from its "
                    "weights", path, type(self.average).__name__,
                )  # fmt: skip
        elif raw is not None:
            self.logger.warning(
                "checkpoint %s has an average of the weights, and this config no EMAHook: training "
                "goes on with the raw weights, and the average ends", path,
            )  # fmt: skip
        if raw is not None:
            raw._metadata = checkpoint["state_dict"]._metadata
            load_weights(detector, {**checkpoint, "state_dict": raw}, path, self.logger)

    def _resume_optimizer(self, checkpoint, path):
        """Load the state of the optimizer; its options stay those of the config."""
        saved, parameters = checkpoint["optimizer"], self.model.module.named_parameters()
        try:
            state = fit_saved_state(saved, self.optimizer, parameters)
            changes = changed_options(saved, state)
            self.optimizer.load_state_dict(state)
            match_layouts(self.optimizer)
            self._reorder_camera_state(checkpoint, path)
        except (ValueError, KeyError, IndexError) as error:
            raise ValueError(f"checkpoint {path}: its optimizer does not fit: {error}") from error
        if changes:
            self.logger.info(
                "optimizer: the options of the config count, not those of %s: %s",
                path, "; ".join(changes),
            )  # fmt: skip

    def _resume_progress(self, meta, path):
        """Go on at the number of iterations of this run that have seen as many samples."""
        self._epoch, self._iter = meta["epoch"], meta["iter"]
        done = self._iter
        if self.batch is not None:
            samples = self.batch // self.world_size
            processes = meta.get("world_size") or self.world_size
            batch = meta.get("total_batch") or samples * processes
            self._go_to(done * batch // self.batch, meta)
        if self.counts_epochs and meta.get("iter_in_epoch"):
            self.logger.warning(
                "checkpoint %s was saved %d iterations after the start of epoch %d: that epoch is "
                "trained again from its start", path, meta["iter_in_epoch"], self.epoch + 1,
            )  # fmt: skip
        elif self._iter != done:
            self.logger.info(
                "checkpoint %s: %d iterations with a batch of %d are %d of this run, with a batch of "
                "%d and epochs of %d: the schedule goes by the samples seen",
                path, done, batch, self._iter, self.batch, self.epoch_length,
            )  # fmt: skip
        self._inner_iter = 0 if self.counts_epochs else self._iter

    def _go_to(self, iteration, meta):
        """Set epoch and iteration to those of this run after as many samples.

        Args:
            iteration: of this run, by the samples seen.
            meta: of the checkpoint.
        """
        raise NotImplementedError

    def _reorder_camera_state(self, checkpoint, path):
        """Reorder the optimizer state of the camera embeddings like the weights."""
        detector = self.model.module
        rows = camera_rows(checkpoint, getattr(detector, "CAMERAS", None), path)
        for name, parameter in detector.named_parameters():
            if rows is not None and name.endswith("cams_embeds"):
                for value in self.optimizer.state[parameter].values():
                    if torch.is_tensor(value) and value.shape == parameter.shape:
                        value.copy_(value[rows])


class SafeEpochBasedRunner(_SafeCheckpoints, EpochBasedRunner):
    """EpochBasedRunner with safe checkpoints."""

    counts_epochs = True

    def _progress(self):
        # Hooks fire before the runner counts the iteration or the epoch.
        if self.stage == "after_train_iter":
            inside = (self.inner_iter + 1) % len(self.data_loader)
            return self.epoch + (inside == 0), self.iter + 1, inside
        if self.stage == "before_train_iter":
            return self.epoch, self.iter, self.inner_iter
        return self.epoch + (self.stage in (None, "after_train_epoch")), self.iter, None

    def _go_to(self, iteration, meta):
        if meta.get("counted_in") == "iter":
            self._epoch = iteration // self.epoch_length
        self._iter = self._epoch * self.epoch_length  # the last batch of an epoch may be smaller


class SafeIterBasedRunner(_SafeCheckpoints, IterBasedRunner):
    """IterBasedRunner with safe checkpoints."""

    counts_epochs = False

    def _progress(self):
        # Hooks fire before the runner counts the iteration.
        iteration = self.iter + (self.stage in (None, "after_train_iter"))
        return self.epoch, iteration, iteration

    def _go_to(self, iteration, meta):
        self._iter = iteration


@published(ignores=("keys",), only={"eval_model": None})
class _VideoRunner(SafeEpochBasedRunner):
    """The runner of the original's mixed-precision recipe, where a second network encodes the history.

    Here one network does, and the whole batch goes to it.
    """


RUNNERS = {
    "EpochBasedRunner": SafeEpochBasedRunner,
    "IterBasedRunner": SafeIterBasedRunner,
    "EpochBasedRunner_video": _VideoRunner,
}

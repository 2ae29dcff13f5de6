"""mmcv's runners with safe checkpoints: written atomically, resumed without running their code."""

import contextlib
from pathlib import Path

import torch
from mmcv.runner import EpochBasedRunner, IterBasedRunner, LoggerHook
from mmcv.runner.hooks import EMAHook as MmcvEMAHook
from mmdet.core.hook.ema import BaseEMAHook

from projects.bevformer.engine.checkpoint import (
    camera_rows,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from projects.bevformer.engine.checkpoint_checks import check_training_state
from projects.bevformer.engine.checkpoint_hook import CheckpointHook
from projects.bevformer.engine.distributed import get_rank, note, on_first_rank
from projects.bevformer.engine.ema import AverageHook
from projects.bevformer.engine.optimizer import changed_options, fit_saved_state, match_layouts
from projects.bevformer.engine.provenance import check_same_classes
from projects.bevformer.engine.resume import read_on_all_ranks
from projects.bevformer.engine.run_state import (
    gather_rank_states,
    random_state,
    restore_buffers,
    set_random_state,
)
from projects.bevformer.files.writing import link_to
from projects.bevformer.published import published

# Priorities of hooks; mmcv's optimizer hooks have 40, hooks of a config 50 unless they say otherwise.
_AFTER_OPTIMIZER = 41
_AFTER_NORMAL = 51  # saves what those of a config count and draw in the iteration


class _SafeCheckpoints:
    """Replaces how mmcv's runners write and read checkpoints.

    Hooks may have a method `checkpoint_meta()`: the dict that it returns is added to the meta of
    each checkpoint when it is saved. What a hook counts it gives out as a dict with `state_of_run()`
    and gets back with `resume_state(dict)`.
    """

    stage = None  # name of the hooks that are being called
    batch = None  # samples of an iteration, all processes together
    epoch_length = None  # iterations of an epoch
    resumed = None  # path and meta of the checkpoint that was resumed
    on_save_error = "stop"  # or "continue", see CheckpointHook
    saved = None  # path and iterations of the newest checkpoint of this run
    interruption = None  # notes signals
    skipped = False  # whether the iteration at hand makes no step, see FiniteLossHook
    _ranks = None  # states of all ranks, while a checkpoint is saved
    _state_to_restore = None  # of a resumed run, until its first iteration

    def progress(self):
        """Epochs done, iterations done, and those of them in the epoch at hand."""
        done = self.iter + (self.stage == "after_train_iter")
        epoch, inside = divmod(done, self.epoch_length or len(self.data_loader))
        return epoch, done, inside

    def call_hook(self, fn_name):
        """Call all hooks."""
        self.stage = fn_name
        if fn_name == "before_train_iter":
            note(f"iteration {self.iter + 1}", bounded=True)
        elif fn_name == "after_train_iter":
            note(f"the end of iteration {self.iter + 1}, or loads the next batch")
        super().call_hook(fn_name)

    def register_hook(self, hook, priority="NORMAL"):
        """Register a hook; those that average the weights or save have places of their own.

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
        elif isinstance(hook, CheckpointHook) and priority == "NORMAL":
            priority = _AFTER_NORMAL
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
        epoch, iteration, inside = self.progress()
        inside_epoch = self.stage == "after_train_iter" or not self.counts_epochs
        kind, number = ("iter", iteration) if inside_epoch else ("epoch", epoch)
        path = Path(out_dir) / (filename_tmpl or f"{kind}_{{}}.pth").format(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        meta = {**(meta or {}), **(self.meta or {})}
        for hook in self.hooks:
            if hasattr(hook, "checkpoint_meta"):
                meta.update(hook.checkpoint_meta())
        meta.update(epoch=epoch, iter=iteration, world_size=self.world_size, total_batch=self.batch)
        meta.update(counted_in="epoch" if self.counts_epochs else "iter", iter_in_epoch=inside)
        detector, optimizer = self.model.module, self.optimizer if save_optimizer else None
        raw = self.average.raw_weights(detector) if self.average else None
        state = None
        if save_optimizer:
            meta.update(self._counters(meta.get("evaluation_due") == f"iter_{iteration}"))
            ranks = self._ranks or [{"random": random_state(self.model.device), "buffers": {}}]
            state = {"ranks": ranks, **self._gradients(iteration)}
        with self.scored_weights():
            save_checkpoint(path, detector, optimizer, meta, raw, state)
        self.saved = path, iteration
        if create_symlink:
            link_to(path, path.with_name("latest.pth"))

    def save_on_all_ranks(self, out_dir, filename_tmpl=None, **options):
        """`save_checkpoint` with the states of all ranks, called on all of them.

        What it raises on rank 0 ends all of them.
        """
        with self._raw_weights():
            self._ranks = gather_rank_states(self.model.module, self.model.device)

        def save():
            self.save_checkpoint(out_dir, filename_tmpl, **options)
            return self.saved

        try:
            self.saved = on_first_rank(save)
        finally:
            self._ranks = None

    def _raw_weights(self):
        return self.average.put(average=False) if self.average else contextlib.nullcontext()

    def _counters(self, evaluated):
        """What hooks count, and the values that the next log line is the mean of.

        Args:
            evaluated: an evaluation comes next, which clears these values.
        """
        buffer = self.log_buffer
        last = max([hook.interval for hook in self.hooks if isinstance(hook, LoggerHook)] or [0])
        logged = {
            name: [values[-last:], buffer.n_history[name][-last:]]
            for name, values in buffer.val_history.items()
        }
        counting = (hook for hook in self.hooks if hasattr(hook, "state_of_run"))
        return {
            "hooks": {type(hook).__name__: hook.state_of_run() for hook in counting},
            "log_buffer": logged if last and not evaluated else {},
        }

    def _gradients(self, iteration):
        """The gradients that the optimizer's hook keeps for a later step; the same on all ranks."""
        hooks = [hook for hook in self.hooks if hasattr(hook, "holds_gradients")]
        if not any(hook.holds_gradients(iteration) for hook in hooks):
            return {}
        parameters = self.model.module.named_parameters()
        return {"gradients": {name: p.grad.cpu() for name, p in parameters if p.grad is not None}}

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
        self._resume_run_state(checkpoint, path)
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
            self._go_to(done * batch // self.batch, meta, batch)
        if self._iter != done:
            self.logger.info(
                "checkpoint %s: %d iterations with a batch of %d are %d of this run, with a batch of "
                "%d and epochs of %d: the schedule goes by the samples seen",
                path, done, batch, self._iter, self.batch, self.epoch_length,
            )  # fmt: skip

    def _go_to(self, iteration, meta, batch):
        """Set epoch and iteration to those of this run after as many samples.

        Args:
            iteration: of this run, by the samples seen.
            meta: of the checkpoint.
            batch: its samples of an iteration.
        """
        raise NotImplementedError

    def _resume_run_state(self, checkpoint, path):
        """Take what this rank needs besides weights and optimizer; generators are set later."""
        meta, ranks = checkpoint["meta"], checkpoint.get("ranks", [])
        state = ranks[get_rank()] if get_rank() < len(ranks) else None
        self._state_to_restore = {}
        try:
            for hook in self.hooks:
                if hasattr(hook, "resume_state") and type(hook).__name__ in meta.get("hooks", {}):
                    hook.resume_state(meta["hooks"][type(hook).__name__])
            logged = meta.get("log_buffer", {}).items()
            self._state_to_restore["logged"] = [(name, *parts) for name, parts in logged]
            if state is not None:
                restore_buffers(state["buffers"], self.model.module)
                # Found out now whether it can be set.
                set_random_state(state["random"], self.model.device)
                self._state_to_restore["random"] = state["random"]
            for name, parameter in self.model.module.named_parameters():
                if name in checkpoint.get("gradients", {}):
                    parameter.grad = checkpoint["gradients"][name].to(parameter).clone()
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"checkpoint {path}: its run state does not fit: {error}") from error
        if len(ranks) != self.world_size:
            self.logger.warning(
                "checkpoint %s has the random states of %d process(es), this run has %d: others start "
                "from the seed", path, len(ranks), self.world_size,
            )  # fmt: skip

    def _restore(self):
        """Just before the first iteration of a resumed run: nothing may draw in between."""
        state, self._state_to_restore = self._state_to_restore or {}, None
        for name, values, numbers in state.get("logged", ()):
            self.log_buffer.val_history[name] = list(values)
            self.log_buffer.n_history[name] = list(numbers)
        if "random" in state:
            set_random_state(state["random"], self.model.device)

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
    _done_inside = 0  # iterations of the first epoch that a resumed run leaves out

    def _go_to(self, iteration, meta, batch):
        if meta.get("counted_in") == "iter":
            self._epoch, inside = divmod(iteration, self.epoch_length)
        else:
            inside = min(meta.get("iter_in_epoch", 0) * batch // self.batch, self.epoch_length - 1)
        # Not from `iteration`: the last batch of an epoch may be smaller.
        self._iter = self._epoch * self.epoch_length + inside
        self._done_inside = inside

    def train(self, data_loader, **kwargs):
        """Train an epoch; the first one of a resumed run goes on where it was."""
        self.model.train()
        self.mode = "train"
        self.data_loader = data_loader
        self._max_iters = self._max_epochs * len(data_loader)
        first, self._done_inside = self._done_inside, 0
        if first == 0:
            self._restore()
        else:
            data_loader.sampler.start_at(0, first * data_loader.batch_size)
        self._inner_iter = first
        self.call_hook("before_train_epoch")
        if first != 0:
            self._restore()  # the epoch's hooks did their part before
        for self._inner_iter, self.data_batch in enumerate(data_loader, start=first):
            self.call_hook("before_train_iter")
            self.run_iter(self.data_batch, train_mode=True, **kwargs)
            self.call_hook("after_train_iter")
            del self.data_batch
            self._iter += 1
        self.call_hook("after_train_epoch")
        self._epoch += 1


class SafeIterBasedRunner(_SafeCheckpoints, IterBasedRunner):
    """IterBasedRunner with safe checkpoints."""

    counts_epochs = False

    @property
    def epoch(self):
        """Epochs done; mmcv's loader counts only those of this process."""
        return self.iter // self.epoch_length if self.epoch_length else self._epoch

    def _go_to(self, iteration, meta, batch):
        self._iter = iteration

    def train(self, data_loader, **kwargs):
        """Train an iteration."""
        self._restore()
        super().train(data_loader, **kwargs)


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

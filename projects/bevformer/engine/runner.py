"""mmcv's runners with safe checkpoints: written atomically, resumed without running their code."""

from pathlib import Path

import torch
from mmcv.runner import EpochBasedRunner, IterBasedRunner

from projects.bevformer.engine.checkpoint import (
    camera_rows,
    load_checkpoint,
    load_weights,
    point_latest_at,
    save_checkpoint,
)
from projects.bevformer.engine.optimizer import fit_saved_state, match_layouts
from projects.bevformer.published import published


class _SafeCheckpoints:
    """Replaces how mmcv's runners write and read checkpoints.

    Hooks may have a method `checkpoint_meta()`: the dict that it returns is added to the meta of
    each checkpoint when it is saved.
    """

    def _progress(self):
        """Epochs and iterations that are done when a checkpoint hook fires."""
        raise NotImplementedError

    def save_checkpoint(
        self, out_dir, filename_tmpl=None, save_optimizer=True, meta=None, create_symlink=True
    ):
        """Write `out_dir/filename_tmpl`, and point `latest.pth` at it.

        Args:
            out_dir: an existing folder.
            filename_tmpl: with `{}` for the number of epochs (or iterations) done.
            save_optimizer: keep the optimizer's state, which resuming needs.
            meta: plain values to store in addition to the runner's own.
            create_symlink: update `latest.pth`.
        """
        epoch, iteration, name = self._progress()
        if filename_tmpl is not None:
            name = filename_tmpl.format(epoch if self.counts_epochs else iteration)
        meta = {**(meta or {}), **(self.meta or {})}
        for hook in self.hooks:
            if hasattr(hook, "checkpoint_meta"):
                meta.update(hook.checkpoint_meta())
        meta.update(epoch=epoch, iter=iteration, world_size=self.world_size)
        path = Path(out_dir) / name
        save_checkpoint(path, self.model.module, self.optimizer if save_optimizer else None, meta)
        if create_symlink:
            point_latest_at(path)

    def load_checkpoint(self, filename, map_location="cpu", strict=False, revise_keys=None):
        """Start from the weights of a file; missing ones keep their initial values (reported)."""
        checkpoint = load_checkpoint(filename)
        load_weights(self.model.module, checkpoint, filename, self.logger, complete=strict)
        return checkpoint

    def resume(self, checkpoint, resume_optimizer=True, map_location="cpu"):
        """Resume with the weights, optimizer state and progress of a checkpoint file.

        mmcv's `resume` would execute the config text in the file as Python.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it is broken, of another model, or holds no training state.
        """
        path, checkpoint = checkpoint, load_checkpoint(checkpoint)
        meta = checkpoint["meta"]
        if "epoch" not in meta or "iter" not in meta:
            raise ValueError(
                f"checkpoint {path} holds no training state: start from its weights with "
                "`--cfg-options load_from=...` instead of resuming"
            )
        load_weights(self.model.module, checkpoint, path, self.logger)
        if resume_optimizer:
            if "optimizer" not in checkpoint:
                raise ValueError(
                    f"checkpoint {path} has no optimizer state, so it cannot be resumed"
                )
            try:
                state = fit_saved_state(
                    checkpoint["optimizer"], self.optimizer, self.model.module.parameters()
                )
                self.optimizer.load_state_dict(state)
                match_layouts(self.optimizer)
                self._reorder_camera_state(checkpoint, path)
            except (ValueError, KeyError) as error:
                raise ValueError(
                    f"checkpoint {path}: its optimizer does not fit: {error}"
                ) from error
        self._epoch, self._iter = int(meta["epoch"]), int(meta["iter"])
        previous = int(meta.get("world_size", self.world_size))
        if previous != self.world_size:
            self._iter = self._iter * previous // self.world_size
            self.logger.info(
                "%d processes before, %d now: iteration %d", previous, self.world_size, self._iter
            )
        self._inner_iter = 0 if self.counts_epochs else self._iter
        for key in ("hook_msgs", "grad_scaler"):
            if key in meta:
                self.meta[key] = meta[key]
        self.logger.info("resumed %s: epoch %d, iteration %d", path, self.epoch, self.iter)

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
        return self.epoch + 1, self.iter, f"epoch_{self.epoch + 1}.pth"


class SafeIterBasedRunner(_SafeCheckpoints, IterBasedRunner):
    """IterBasedRunner with safe checkpoints."""

    counts_epochs = False

    def _progress(self):
        # Hooks fire before the runner counts the iteration.
        return self.epoch, self.iter + 1, f"iter_{self.iter + 1}.pth"


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

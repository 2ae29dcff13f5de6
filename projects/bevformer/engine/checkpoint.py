"""Checkpoint files: written so that a crash never leaves a broken one, read without running code."""

import contextlib
import os
import re
import time
from collections import Counter, OrderedDict
from pathlib import Path

import mmcv
import torch

from projects.bevformer.compat import load_torch_file

_PUBLISHED_META = ("CLASSES", "config", "seed", "epoch", "iter", "mmcv_version", "trained_with")
_PLAIN = (str, int, float, bool, type(None))


def plain_values(value, name="meta"):
    """Copy of nested dicts and lists that holds nothing but str, int, float, bool and None.

    Checkpoints that hold more cannot be loaded safely.

    Raises:
        TypeError: something else is inside; says where.
    """
    if type(value) in _PLAIN:
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, dict):
        return {str(key): plain_values(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_values(item, f"{name}[{i}]") for i, item in enumerate(value)]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # numpy and torch scalars
        return plain_values(value.item(), name)
    raise TypeError(
        f"{name} is a {type(value).__name__}: checkpoints keep str, int, float, list, dict"
    )


def _sync_directory(directory):
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save_checkpoint(path, detector, optimizer=None, meta=None):
    """Write a checkpoint; the file appears under its name complete, or not at all.

    Args:
        path: where to; its folder exists.
        detector: the bare model.
        optimizer: saved with its state if given.
        meta: dict of plain values.

    Raises:
        TypeError: meta holds other objects.
        OSError: the disk is full or read-only; an earlier file of that name is left as it was.
    """
    path = Path(path)
    meta = {**(meta or {}), "mmcv_version": mmcv.__version__, "time": time.asctime()}
    if getattr(detector, "CLASSES", None) is not None:
        meta["CLASSES"] = list(detector.CLASSES)
    # nn.Module.state_dict, not mmcv's get_state_dict: that one saves non-persistent buffers too.
    state = detector.state_dict()
    weights = OrderedDict((name, value.cpu()) for name, value in state.items())
    weights._metadata = getattr(state, "_metadata", OrderedDict())
    checkpoint = {"meta": plain_values(meta), "state_dict": weights}
    if optimizer is not None:
        checkpoint["optimizer"] = optimizer.state_dict()

    _write(path, checkpoint)


def _write(path, checkpoint):
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(unfinished, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise
    _sync_directory(path.parent)


def publish_weights(source, target, half=False):
    """Write the weights of a checkpoint without what only a training run needs.

    The optimizer is left out; of the meta data the class names, the config, the seed and the progress
    stay.

    Args:
        source: a training checkpoint.
        target: the file to write; its folder exists.
        half: store matrices and kernels as float16. Models load them into their own dtype.
            Vectors (biases, BatchNorm statistics) stay as they are: they are small, and their range
            is not.

    Raises:
        FileNotFoundError, ValueError: see `load_checkpoint`.
        OSError: see `save_checkpoint`.
    """
    checkpoint = load_checkpoint(source)
    weights = checkpoint["state_dict"]
    for name, value in weights.items():
        value = value.contiguous()
        weights[name] = (
            value.half() if half and value.is_floating_point() and value.ndim > 1 else value
        )
    meta = {key: checkpoint["meta"][key] for key in _PUBLISHED_META if key in checkpoint["meta"]}
    _write(Path(target), {"meta": plain_values(meta), "state_dict": weights})


def point_latest_at(path):
    """Let `latest.pth` beside a checkpoint name that checkpoint, without a moment in which it is absent."""
    path = Path(path)
    link = path.with_name(f".latest.{os.getpid()}.tmp")
    with contextlib.suppress(FileNotFoundError):
        link.unlink()
    link.symlink_to(path.name)
    os.replace(link, path.with_name("latest.pth"))


def load_checkpoint(path):
    """Read a checkpoint onto the CPU.

    Returns:
        dict with at least "state_dict" (names without a leading `module.`) and "meta" (maybe empty).

    Raises:
        FileNotFoundError: no such file.
        ValueError: unreadable, unsafe, or no weights inside.
    """
    checkpoint = load_torch_file(path)
    if not isinstance(checkpoint, dict):
        raise ValueError(
            f"checkpoint {path} holds a {type(checkpoint).__name__}, not a dict of weights"
        )
    state = checkpoint.get("state_dict", checkpoint)
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ValueError(
            f"checkpoint {path} has no state_dict of tensors: is it a model checkpoint?"
        )
    weights = OrderedDict((re.sub(r"^module\.", "", name), value) for name, value in state.items())
    weights._metadata = getattr(state, "_metadata", OrderedDict())
    if state is checkpoint:
        return {"state_dict": weights, "meta": {}}
    return {**checkpoint, "state_dict": weights, "meta": checkpoint.get("meta") or {}}


def by_prefix(names):
    """`3 pts_bbox_head.transformer, 1 img_neck.fpn_convs`"""
    counts = Counter(".".join(name.split(".")[:2]) for name in names)
    return ", ".join(f"{count} {prefix}" for prefix, count in counts.items())


def _first(reshaped, count=3):
    return "; ".join(list(reshaped.values())[:count])


class WeightFit:
    """How the weights of a file fit a model, name by name.

    Args:
        weights: name -> tensor of the file.
        own: name -> tensor of the model.

    Attributes:
        fitting: OrderedDict of what can be loaded.
        missing: names that only the model has. Old files lack the BatchNorm counters, which nothing
            reads: those do not count.
        surplus: names that only the file has.
        reshaped: name -> "name is (shape) in the file and (shape) in the model", of the others.
    """

    def __init__(self, weights, own):
        self.reshaped = OrderedDict(
            (
                name,
                f"{name} is {tuple(weights[name].shape)} in the file and "
                f"{tuple(own[name].shape)} in the model",
            )
            for name in own
            if name in weights and weights[name].shape != own[name].shape
        )
        self.missing = [
            name for name in own if name not in weights and not name.endswith("num_batches_tracked")
        ]
        self.surplus = [name for name in weights if name not in own]
        self.fitting = OrderedDict(
            (name, value)
            for name, value in weights.items()
            if name in own and value.shape == own[name].shape
        )

    def left_over(self):
        """Lines on what is not loaded and what keeps its initial value; empty where all fits."""
        lines = []
        if self.missing:
            lines.append(f"absent from the file: {by_prefix(self.missing)}")
        if self.surplus:
            lines.append(f"absent from the model: {by_prefix(self.surplus)}")
        if self.reshaped:
            lines.append(f"other shape: {by_prefix(self.reshaped)}; {_first(self.reshaped)}")
        return lines

    def alarming(self):
        """Lines on what is wrong even where weights may load partly; empty for a normal start.

        A start from other weights is made for the sake of its backbone.
        """
        untrained = [name for name in self.missing if name.startswith("img_backbone.")]
        lines = []
        if untrained:
            lines.append(
                f"{len(untrained)} backbone weights are absent from the file ({by_prefix(untrained)}): "
                "it is not of this backbone"
            )
        reshaped = [name for name in self.reshaped if name.startswith("img_backbone.")]
        if reshaped:
            lines.append(
                f"{len(reshaped)} backbone weights have another shape: {self.reshaped[reshaped[0]]}"
            )
        return lines


def load_weights(detector, checkpoint, path, logger, complete=True):
    """Put a checkpoint's weights into a model.

    Args:
        detector: the bare model.
        checkpoint: what `load_checkpoint` returned.
        path: its file, for messages.
        logger: told what was left over; a warning where that is not normal.
        complete: every parameter of the model has to come from the checkpoint (evaluation, resume).
            Otherwise (`load_from`) those it lacks keep their initial values, and those of another
            shape are skipped; both are reported.

    Raises:
        ValueError: not `complete` enough, or nothing fits.
    """
    weights, own = checkpoint["state_dict"], detector.state_dict()
    fit = WeightFit(weights, own)
    if fit.reshaped and complete:
        raise ValueError(
            f"checkpoint {path} was made with another config: {len(fit.reshaped)} shapes differ, "
            f"{_first(fit.reshaped)}; use the config it was trained with"
        )
    if fit.missing and complete:
        raise ValueError(
            f"checkpoint {path} lacks {len(fit.missing)} of {len(own)} weights of this model "
            f"({by_prefix(fit.missing)}); use the config it was trained with"
        )
    if not fit.fitting:
        raise ValueError(
            f"checkpoint {path} has no weight that fits this model: it holds {by_prefix(fit.surplus)}"
        )
    fit.fitting._metadata = weights._metadata
    detector.load_state_dict(fit.fitting, strict=False)

    logger.info("%s: %d of %d weights loaded", path, len(fit.fitting), len(own))
    for line in fit.left_over():
        logger.info("%s: %s", path, line)
    for line in fit.alarming():
        logger.warning("%s: %s", path, line)


def find_latest_checkpoint(work_dir, logger):
    """Newest checkpoint of a training run that loads.

    Args:
        work_dir: folder with `epoch_N.pth` or `iter_N.pth`.
        logger: told which files are broken and skipped.

    Returns:
        its path, or None.
    """
    numbered = []
    for path in Path(work_dir).glob("*.pth"):
        match = re.fullmatch(r"(epoch|iter)_(\d+)\.pth", path.name)
        if match:
            numbered.append((int(match.group(2)), path))
    for _, path in sorted(numbered, reverse=True):
        try:
            load_checkpoint(path)
        except (ValueError, OSError) as error:
            logger.warning("--auto-resume skips %s: %s", path.name, error)
        else:
            return path
    return None

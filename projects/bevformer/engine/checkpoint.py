"""Checkpoint files: written atomically, read without running code."""

from __future__ import annotations

import logging
import re
import time
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any, Iterable, Mapping, Sequence

import mmcv
import torch
from mmcv.runner import weights_to_cpu
from torch import nn

from projects.bevformer.engine.checkpoint_checks import check_meta
from projects.bevformer.engine.download import download
from projects.bevformer.engine.non_finite import check_finite, check_float16
from projects.bevformer.engine.optimizer import saved_state
from projects.bevformer.engine.weight_fit import WeightFit, by_prefix, some_of
from projects.bevformer.files.weights import load_weight_file, safetensors_bytes
from projects.bevformer.files.writing import atomic_write, followed
from projects.bevformer.nuscenes.spec import CAMERAS

_PUBLISHED_META = (
    "CLASSES",
    "CAMERAS",
    "config",
    "seed",
    "epoch",
    "iter",
    "mmcv_version",
    "trained_with",
)
_CONTAINERS = ("state_dict", "model")  # keys of a file under which its weights lie
_BYTES_PER_TENSOR = 400  # name, shape and place in the archive
_PLAIN = (str, int, float, bool, type(None))


def to_plain(value: Any, name: str = "meta") -> Any:
    """Copy of nested dicts and lists that contains only str, int, float, bool and None.

    Checkpoints that hold more cannot be loaded safely.

    Raises:
        TypeError: something else is inside; says where.
    """
    if type(value) in _PLAIN:
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, dict):
        return {str(key): to_plain(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item, f"{name}[{i}]") for i, item in enumerate(value)]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # numpy and torch scalars
        return to_plain(value.item(), name)
    raise TypeError(
        f"{name} is a {type(value).__name__}: checkpoints keep str, int, float, list, dict"
    )


def save_checkpoint(
    path: str | Path,
    detector: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    meta: dict | None = None,
    raw_weights: dict[str, torch.Tensor] | None = None,
    run_state: dict | None = None,
) -> None:
    """Write a checkpoint atomically.

    Args:
        path: where to; its folder exists.
        detector: the bare model; its CLASSES and CAMERAS, where it has them, go into the meta.
        optimizer: saved with its state if given.
        meta: dict of plain values.
        raw_weights: `state_dict` with which training goes on, where `detector` has an average.
        run_state: further entries of the file, tensors and plain values.

    Raises:
        TypeError: meta holds other objects.
        NonFiniteError: a weight or a number of the training state is NaN or infinite.
        OSError: the disk is full or read-only; an earlier file of that name is left as it was.
    """
    path = Path(path)
    meta = {**(meta or {}), "mmcv_version": mmcv.__version__, "time": time.asctime()}
    for names in ("CLASSES", "CAMERAS"):
        if getattr(detector, names, None) is not None:
            meta[names] = list(getattr(detector, names))
    # nn.Module.state_dict, not mmcv's get_state_dict: that one saves non-persistent buffers too.
    weights = weights_to_cpu(detector.state_dict())
    checkpoint = {"meta": to_plain(meta), "state_dict": weights}
    if optimizer is not None:
        checkpoint["optimizer"] = saved_state(optimizer, detector)
    if raw_weights is not None:
        checkpoint["raw_weights"] = raw_weights
    checkpoint.update(run_state or {})
    check_finite(checkpoint, f"checkpoint {path} is not written")
    _write(path, checkpoint)


class _LateErrors:
    """A file that raises its first error when it is asked to.

    An error within torch.save ends in another one of PyTorch's, or, in torch 1.10, in the end of the process.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._error = file, None

    def write(self, content: Any) -> int:
        if self._error is None:
            try:
                return self._file.write(content)
            except OSError as error:
                self._error = error
        return len(content)

    def flush(self) -> None:
        """Nothing: the file is flushed when it is complete."""

    def raise_error(self) -> None:
        if self._error is not None:
            raise self._error


def _write(path: Path, checkpoint: dict) -> None:
    with atomic_write(path, "wb", file_bytes(checkpoint)) as file:
        late = _LateErrors(file)
        torch.save(checkpoint, late)
        late.raise_error()


def file_bytes(value: Any) -> int:
    """About the size of the file that `torch.save` makes of nested dicts and lists of tensors."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size() + _BYTES_PER_TENSOR
    if isinstance(value, dict):
        return sum(map(file_bytes, value.values()))
    return sum(map(file_bytes, value)) if isinstance(value, (list, tuple)) else 0


def publish_weights(
    source: str | Path, target: str | Path, half: bool = False, safetensors: bool = False
) -> None:
    """Write the weights of a checkpoint without what only a training run needs.

    The optimizer state and the raw weights of an averaged checkpoint are dropped; of the meta data the
    class and camera names, the config, the seed and the progress stay.

    Args:
        source: a training checkpoint.
        target: the file to write; its folder is made.
        half: store matrices and kernels as float16. Models load them into their own dtype.
            Vectors (biases, BatchNorm statistics) stay float32: they are small, and their range
            is not.
        safetensors: write this format; the default for a target that ends in .safetensors.

    Raises:
        FileNotFoundError, ValueError: see `load_checkpoint`; or a weight is too large for float16, or the
            target is the source or a folder.
        OSError: see `save_checkpoint`.
    """
    target, file = Path(target).expanduser(), followed(source)
    if target.is_dir():
        raise ValueError(f"{target} is a folder: name a file in it, such as {target / file.name}")
    if target.exists() and file.exists() and target.samefile(file):
        raise ValueError(f"{target} is the checkpoint {source} itself: write to another file")
    checkpoint = load_checkpoint(source)
    weights = checkpoint["state_dict"]
    for name, value in weights.items():
        value = value.contiguous()
        weights[name] = (
            value.half() if half and value.is_floating_point() and value.ndim > 1 else value
        )
    if half:
        check_float16(weights, f"{target} is not written")
    meta = {key: checkpoint["meta"][key] for key in _PUBLISHED_META if key in checkpoint["meta"]}
    target.parent.mkdir(parents=True, exist_ok=True)
    if safetensors or target.suffix == ".safetensors":
        with atomic_write(target, "wb", file_bytes(weights)) as file:
            file.write(safetensors_bytes(weights, to_plain(meta)))
    else:
        _write(target, {"meta": to_plain(meta), "state_dict": weights})


def load_checkpoint(path: str | Path, finite: bool = True) -> dict:
    """Read a checkpoint onto the CPU.

    Args:
        path: a file (also a text file in place of a link, see `followed`), a URL or a name such as
            torchvision://resnet50, see `download`. Weights may lie under `state_dict` or `model`
            (detectron2), or be all that the file holds.
        finite: refuse numbers that are not.

    Returns:
        dict with at least "state_dict" (names without a leading `module.`) and "meta" (maybe
        empty).

    Raises:
        FileNotFoundError: no such file.
        ValueError: unreadable, unsafe, no weights inside, or a NaN or infinite number.
    """
    is_url = "://" in str(path)
    checkpoint = download(str(path)) if is_url else load_weight_file(str(followed(path)))
    if not isinstance(checkpoint, dict):
        raise ValueError(
            f"checkpoint {path} holds a {type(checkpoint).__name__}, not a dict of weights"
        )
    state = checkpoint
    while any(isinstance(state.get(key), dict) for key in _CONTAINERS):
        state = next(state[key] for key in _CONTAINERS if isinstance(state.get(key), dict))
    named = (isinstance(name, str) and isinstance(state[name], torch.Tensor) for name in state)
    if not state or not all(named):
        raise ValueError(
            f"checkpoint {path} has no state_dict of tensors, its keys are "
            f"{some_of(map(str, state))}: is it a model checkpoint?"
        )
    meta = None if state is checkpoint else checkpoint.get("meta")
    meta = {} if meta is None else meta
    check_meta(meta, path)
    weights = OrderedDict((re.sub(r"^module\.", "", name), value) for name, value in state.items())
    weights._metadata = getattr(state, "_metadata", OrderedDict())
    if finite:
        check_finite({**checkpoint, "state_dict": weights}, f"checkpoint {path}")
    if state is checkpoint:
        return {"state_dict": weights, "meta": {}}
    return {**checkpoint, "state_dict": weights, "meta": meta}


def _camera_embeddings(weights: Iterable[str]) -> list[str]:
    return [name for name in weights if name.endswith("cams_embeds")]


def camera_rows(
    checkpoint: dict, cameras: Sequence[str] | None, path: str | Path
) -> list[int] | None:
    """Rows of a checkpoint's camera embeddings in the order of a data set's cameras.

    Args:
        checkpoint: what `load_checkpoint` returned. Six cameras without `CAMERAS` in its meta are
            those of nuScenes; of another number only the number is known.
        cameras: names in the order of the data set; None checks nothing.
        path: file of the checkpoint, for messages.

    Returns:
        Row of the file for each camera; None where the order is the same or there are no
        embeddings.

    Raises:
        ValueError: it was trained with other cameras.
    """
    embeddings = _camera_embeddings(checkpoint["state_dict"])
    if cameras is None or not embeddings:
        return None
    number, wanted = len(checkpoint["state_dict"][embeddings[0]]), list(cameras)
    saved = checkpoint["meta"].get("CAMERAS") or (CAMERAS if number == len(CAMERAS) else [])
    if number != len(wanted) or (saved and sorted(saved) != sorted(wanted)):
        raise ValueError(
            f"checkpoint {path} was trained with {number} cameras "
            f"({', '.join(saved) or 'not named'}), the data set has {len(wanted)} "
            f"({', '.join(wanted)}): each camera has a learned embedding, so use weights of the "
            "same cameras"
        )
    return [saved.index(name) for name in wanted] if saved and list(saved) != wanted else None


def _without_other_cameras(checkpoint, cameras, path, logger):
    """A checkpoint as a start for a rig of other cameras: their embeddings are left out."""
    try:
        camera_rows(checkpoint, cameras, path)
    except ValueError:
        weights = checkpoint["state_dict"].copy()
        for name in _camera_embeddings(list(weights)):
            del weights[name]
        logger.warning(
            "%s was trained with other cameras than %s: their embeddings start anew",
            path, ", ".join(cameras),
        )  # fmt: skip
        return {**checkpoint, "state_dict": weights}
    return checkpoint


def fit_checkpoint(
    checkpoint: dict,
    own: Mapping[str, torch.Tensor],
    path: str | Path,
    complete: bool,
    part: str = "",
) -> WeightFit:
    """Compare a checkpoint with a network, and refuse what cannot be loaded.

    Args:
        checkpoint: what `load_checkpoint` returned.
        own: name -> tensor of the network, or of a part of it with the names of the whole network.
        path: file of the checkpoint, for messages.
        complete: every weight has to come from the checkpoint.
        part: name of the part; "" for the whole network.

    Raises:
        ValueError: not `complete`, nothing fits, or the file has a backbone of which nothing fits.
    """
    fit = WeightFit(checkpoint["state_dict"], own, part)
    if not fit.fitting:
        raise ValueError(
            f"checkpoint {path} has no weight that fits {part or 'this model'}: the file has "
            f"{some_of(checkpoint['state_dict'])}, {part or 'the model'} {some_of(own)}"
            + (f"; {fit.first_reshaped(1)}" if fit.reshaped else "")
        )
    if fit.reshaped and complete:
        raise ValueError(
            f"checkpoint {path} was made with another config: {len(fit.reshaped)} shapes differ, "
            f"{fit.first_reshaped()}; use the config it was trained with"
        )
    if fit.missing and complete:
        raise ValueError(
            f"checkpoint {path} lacks {len(fit.missing)} of {len(own)} weights of this model "
            f"({by_prefix(fit.missing)}); use the config it was trained with"
        )
    theirs, ours = (
        [name for name in names if "backbone." in name] for names in (checkpoint["state_dict"], own)
    )
    if theirs and ours and not any(name in fit.fitting for name in ours):
        raise ValueError(
            f"checkpoint {path} is of another backbone, no weight fits: the file has "
            f"{some_of(theirs)}, the model {some_of(ours)}"
        )
    return fit


def load_weights(
    detector: nn.Module,
    checkpoint: dict,
    path: str | Path,
    logger: logging.Logger,
    complete: bool = True,
) -> WeightFit:
    """Load a checkpoint's weights into a model.

    Args:
        detector: the bare model. Where it has `CAMERAS`, camera embeddings are reordered to match.
        checkpoint: what `load_checkpoint` returned.
        path: its file, for messages.
        logger: receives what was left over, as a warning where that is not normal.
        complete: every parameter of the model has to come from the checkpoint (evaluation, resume).
            Otherwise (`load_from`) those it lacks keep their initial values, and those of another
            shape and embeddings of other cameras are skipped; all are reported.

    Returns:
        What was loaded and what was not.

    Raises:
        ValueError: not `complete` enough, nothing fits, or, if `complete`, it was trained with other
            cameras.
    """
    cameras = getattr(detector, "CAMERAS", None)
    if not complete:
        checkpoint = _without_other_cameras(checkpoint, cameras, path, logger)
    rows = camera_rows(checkpoint, cameras, path)
    fit = fit_checkpoint(checkpoint, detector.state_dict(), path, complete)
    if rows is not None:
        fit.fitting.update(
            (name, fit.fitting[name][rows]) for name in _camera_embeddings(fit.fitting)
        )
        logger.info("%s: camera embeddings reordered to %s", path, ", ".join(cameras))
    weights = fit.fitting.copy()
    if not fit.notes:
        weights._metadata = getattr(checkpoint["state_dict"], "_metadata", OrderedDict())
    detector.load_state_dict(weights, strict=False)
    fit.report(path, logger)
    return fit

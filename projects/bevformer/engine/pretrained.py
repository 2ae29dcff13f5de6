"""Pretrained weights of parts of a network: `Pretrained` in any `init_cfg`, and `model.pretrained`."""

from __future__ import annotations

import contextlib
import logging
from typing import Any, Iterator, Mapping, NamedTuple, Sequence

import torch
from mmcv.cnn import INITIALIZERS
from mmcv.runner import CheckpointLoader
from torch import nn

from projects.bevformer.engine.checkpoint import fit_checkpoint, load_checkpoint
from projects.bevformer.engine.checkpoint_checks import head_of_other_classes
from projects.bevformer.engine.config_keys import nested_values
from projects.bevformer.engine.weight_fit import WeightFit, some_of


class _Start(NamedTuple):
    """A file for a part of a network."""

    module: nn.Module
    checkpoint: str
    prefix: str | None = None


@contextlib.contextmanager
def noted_pretrained() -> Iterator[list[_Start]]:
    """A block in which `Pretrained` of mmcv reads no file; yields what it should have loaded."""
    noted: list[_Start] = []

    def initializer(checkpoint: str, prefix: str | None = None, map_location: Any = None) -> Any:
        def note(module: nn.Module) -> None:  # mmcv sets attributes of it
            noted.append(_Start(module, checkpoint, prefix))

        return note

    mmcvs = INITIALIZERS.get("Pretrained")
    INITIALIZERS.register_module("Pretrained", force=True, module=initializer)
    try:
        yield noted
    finally:
        INITIALIZERS.register_module("Pretrained", force=True, module=mmcvs)


def _load_safely(filename: str, map_location: Any = None, logger: Any = None) -> dict:
    """Takes the place of mmcv's, which unpickles, for parts that read a file themselves."""
    return load_checkpoint(filename)


CheckpointLoader.load_checkpoint = _load_safely


@contextlib.contextmanager
def checked_pretrained(detector: nn.Module, logger: logging.Logger) -> Iterator[set[str]]:
    """A block for `init_weights`; after it the pretrained files are loaded, safely, whatever fits.

    Loading comes last, so that no part that initialises its children again overwrites it. Parts that
    read a file in their own `init_weights` (mmdet's transformers, which convert names) do so in the
    block.

    Args:
        detector: the network that is initialised in the block.
        logger: receives what was loaded into which part.

    Yields:
        Set of the names of the weights that were loaded, filled after the block.

    Raises:
        ValueError: nothing of a file fits the part that names it, or a head is of as many other classes;
            see `load_checkpoint`.
    """
    loaded: set[str] = set()
    names = {module: name for name, module in detector.named_modules()}
    read, opened = CheckpointLoader.load_checkpoint, []

    def load(path: str, *args: Any, **kwargs: Any) -> dict:
        opened.append(path)
        return read(path)

    CheckpointLoader.load_checkpoint = load
    try:
        with noted_pretrained() as starts:
            yield loaded
    except (LookupError, RuntimeError, TypeError) as error:
        if not opened:
            raise
        raise ValueError(
            f"checkpoint {opened[-1]} has no weight that fits the part that reads it "
            f"({type(error).__name__}: {error}): the file has "
            f"{some_of(load_checkpoint(opened[-1])['state_dict'])}"
        ) from error
    finally:
        CheckpointLoader.load_checkpoint = read
    noted = {start.module for start in starts}
    starts += [
        _Start(module, init["checkpoint"], init.get("prefix"))
        for module in names
        for init in _init_cfgs(module)
        if init.get("type") == "Pretrained" and module not in noted
    ]
    order = list(names)
    for start in sorted(starts, key=lambda start: order.index(start.module)):
        checkpoint = load_checkpoint(start.checkpoint)
        of_file = [] if start.module in noted else _weights_of(start.module, checkpoint)
        if of_file:
            total = len(start.module.state_dict())
            part = names[start.module]
            what = f"{len(of_file)} of {total} weights of {part} are of the file, as it reads it"
            logger.info("%s: %s", start.checkpoint, what)
            loaded.update(f"{part}.{name}" for name in of_file)
        else:
            fit = _load_part(start, names[start.module], checkpoint)
            path = start.checkpoint
            difference = head_of_other_classes(checkpoint, path, detector, fit.fitting)
            if difference is not None:
                raise ValueError(
                    f"{difference}: name the file in load_from, with load_from_other_classes=True"
                )
            fit.report(path, logger)
            loaded.update(fit.fitting)


def pretrained_files(model: Mapping[str, Any]) -> dict[str, str]:
    """Config key -> file, of all weights that a network starts from.

    They are named by `pretrained` of the model or its backbone, or by a `Pretrained` at any depth.

    Args:
        model: of a config.
    """
    named: dict[str, Any] = {}
    for key, part in (("model", model), ("model.img_backbone", model.get("img_backbone") or {})):
        given = part.get("pretrained")
        if isinstance(given, dict):
            named[f"{key}.pretrained.img"] = given.get("img")
        else:
            named[f"{key}.pretrained"] = given
    for key, part in nested_values(model, "model."):
        if isinstance(part, dict) and part.get("type") == "Pretrained":
            named[f"{key}.checkpoint"] = part["checkpoint"]
    return {key: file for key, file in named.items() if file}


def _init_cfgs(module: nn.Module) -> Sequence[dict]:
    init = getattr(module, "init_cfg", None) or ()
    return (init,) if isinstance(init, dict) else init


def _weights_of(module: nn.Module, checkpoint: dict) -> list[str]:
    """Names of weights with numbers of a checkpoint, under whatever name it has them.

    Only matrices and kernels are compared: vectors of ones or zeros are everywhere.
    """

    def mark(value: torch.Tensor) -> tuple:
        return (*value.shape, *value.flatten()[:16].tolist())

    in_file = {mark(value) for value in checkpoint["state_dict"].values() if value.ndim > 1}
    return [
        name
        for name, value in module.state_dict().items()
        if value.ndim > 1 and value.any() and mark(value) in in_file
    ]


def _load_part(start: _Start, part: str, checkpoint: dict) -> WeightFit:
    """Load a file into one part of the network.

    Args:
        start: the part and its file. Only names that begin with its prefix count.
        part: name of the part in the network; "" for the network itself.
        checkpoint: what `load_checkpoint` returned for the file.

    Returns:
        How its weights fit the part.
    """
    module, path, prefix = start
    weights = checkpoint["state_dict"]
    if prefix:
        prefix = prefix.rstrip(".") + "."
        chosen = {n[len(prefix) :]: value for n, value in weights.items() if n.startswith(prefix)}
        if not chosen:
            raise ValueError(
                f"checkpoint {path} has no name that begins with {prefix}, the prefix of "
                f"{part or 'model'}.init_cfg: it has {some_of(weights)}"
            )
        checkpoint["state_dict"] = chosen
    begin = f"{part}." if part else ""
    own = {f"{begin}{name}": value for name, value in module.state_dict().items()}
    fit = fit_checkpoint(checkpoint, own, path, complete=False, part=part)
    module.load_state_dict({n[len(begin) :]: value for n, value in fit.fitting.items()}, False)
    return fit

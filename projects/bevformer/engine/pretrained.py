"""Pretrained weights of parts of a network: `Pretrained` in any `init_cfg`, and `model.pretrained`."""

from __future__ import annotations

import contextlib
import logging
from typing import Any, Iterator

from mmcv.cnn import INITIALIZERS
from mmcv.runner import BaseModule, CheckpointLoader
from torch import nn

from projects.bevformer.engine.checkpoint import fit_checkpoint, load_checkpoint
from projects.bevformer.engine.weight_fit import WeightFit, some_of


@contextlib.contextmanager
def checked_pretrained(detector: nn.Module, logger: logging.Logger) -> Iterator[set[str]]:
    """A block in which `init_weights` reads files safely, and refuses those of which nothing fits.

    Args:
        detector: the network that is initialised in the block.
        logger: receives what was loaded into which part.

    Yields:
        Set of the names of the weights that were loaded, filled in the block.

    Raises:
        ValueError: nothing of a file fits the part that names it; see `load_checkpoint`.
    """
    loaded: set[str] = set()
    fits: list[tuple[str, WeightFit]] = []
    parts = {module: name for name, module in detector.named_modules()}
    unread = {  # parts with a way of their own to initialise: mmdet's transformers convert names
        module: {name: value.clone() for name, value in module.state_dict().items()}
        for module in parts
        if _files_of(module)
        and getattr(type(module), "init_weights", None) is not BaseModule.init_weights
    }

    def initializer(checkpoint: str, prefix: str | None = None, map_location: Any = None) -> Any:
        def load(module: nn.Module) -> None:
            unread.pop(module, None)
            fits.append((checkpoint, _load_part(module, parts[module], checkpoint, prefix)))

        return load

    mmcvs, read = INITIALIZERS.get("Pretrained"), CheckpointLoader.load_checkpoint
    INITIALIZERS.register_module("Pretrained", force=True, module=initializer)
    CheckpointLoader.load_checkpoint = lambda path, *args, **kwargs: load_checkpoint(path)
    try:
        yield loaded
    finally:
        INITIALIZERS.register_module("Pretrained", force=True, module=mmcvs)
        CheckpointLoader.load_checkpoint = read
    for path, fit in fits:  # afterwards: the caller silences mmcv's lines in the block
        fit.report(path, logger)
        loaded.update(fit.fitting)
    for module, before in unread.items():
        names = [n for n, value in module.state_dict().items() if not value.equal(before[n])]
        _check_own_way(module, parts[module], names, logger)
        loaded.update(f"{parts[module]}.{name}" for name in names)


def pretrained_files(part: Any, key: str = "model") -> dict[str, str]:
    """Config key -> file of every `Pretrained` in a section of a config, at any depth.

    Args:
        part: the section.
        key: its own key.
    """
    if isinstance(part, dict) and part.get("type") == "Pretrained":
        return {key: part["checkpoint"]}
    items = part.items() if isinstance(part, dict) else ()
    items = enumerate(part) if isinstance(part, (list, tuple)) else items
    found: dict[str, str] = {}
    for name, value in items:
        found.update(pretrained_files(value, f"{key}.{name}"))
    return found


def _files_of(module: nn.Module) -> list[str]:
    """Files that the `init_cfg` of a module names."""
    return list(pretrained_files(getattr(module, "init_cfg", None)).values())


def _load_part(module: nn.Module, part: str, path: str, prefix: str | None) -> WeightFit:
    """Load a file into one part of the network.

    Args:
        module: the part.
        part: its name in the network; "" for the network itself.
        path: see `load_checkpoint`.
        prefix: only names that begin with it count; None for all.

    Returns:
        How its weights fit the part.
    """
    checkpoint = load_checkpoint(path)
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
    start = f"{part}." if part else ""
    own = {f"{start}{name}": value for name, value in module.state_dict().items()}
    fit = fit_checkpoint(checkpoint, own, path, complete=False, part=part)
    module.load_state_dict({n[len(start) :]: value for n, value in fit.fitting.items()}, False)
    return fit


def _check_own_way(module: nn.Module, part: str, names: list[str], logger: logging.Logger) -> None:
    """Refuse a part whose own `init_weights` took nothing from its file."""
    path, own = _files_of(module)[0], module.state_dict()
    if not names:
        raise ValueError(
            f"checkpoint {path} has no weight that fits {part}: the file has "
            f"{some_of(load_checkpoint(path)['state_dict'])}, {part} {some_of(own)}"
        )
    logger.info("%s: %d of %d weights of %s loaded", path, len(names), len(own), part)

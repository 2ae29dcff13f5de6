"""Whether the parts of a checkpoint file are of the kinds that the rest of the engine relies on.

Files are checked once: `check_meta` when one is read, `check_training_state` when one is resumed.
"""

from __future__ import annotations

import numbers
import re
import reprlib
from pathlib import Path
from typing import Any, Callable, Iterable, Mapping

import torch

_WITHOUT_CLASSES = ("img_backbone.", "img_neck.")  # parts that depend on no classes
_OTHER_FILE = "the file is damaged or not of this program: use another one"


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_version(value: Any) -> bool:
    return value is None or bool(
        isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)+[\w.+-]*", value)
    )


def _is_names(value: Any) -> bool:
    return value is None or (
        isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value)
    )


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, numbers.Real) and not isinstance(value, bool))


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_number, value))


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**40


def _is_positive(value: Any) -> bool:
    return value is None or (type(value) is int and value > 0)


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _is_module_version(value: Any) -> bool:
    return _is_dict(value) and all(v is None or type(v) is int for v in value.values())


_NAMES = (_is_names, "a list of names")
_TEXT = (_is_text, "text")
_COUNT = (_is_count, "a whole number from 0 on")
_POSITIVE = (_is_positive, "a whole number from 1 on")
_DICT = (_is_dict, "a dict")
_META: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("CLASSES", "CAMERAS"), _NAMES),
    **dict.fromkeys(("epoch", "iter", "iter_in_epoch"), _COUNT),
    **dict.fromkeys(("world_size", "total_batch"), _POSITIVE),
    **dict.fromkeys(("hook_msgs", "hooks", "grad_scaler", "trained_with", "log_buffer"), _DICT),
    **dict.fromkeys(("config", "run", "evaluation_due", "exp_name", "env_info", "time"), _TEXT),
    **dict.fromkeys(("mmcv_version", "mmdet_version", "interrupted"), _TEXT),
    "mmdet3d_version": (_is_version, "a version such as '0.17.1'"),
    "seed": (_is_number, "a number"),
    "counted_in": (lambda value: value in ("epoch", "iter"), "'epoch' or 'iter'"),
}
_HOOK_MESSAGES = {"best_score": (_is_number, "a number"), "best_ckpt": _TEXT, "last_ckpt": _TEXT}


def _refuse(path: str | Path, what: str, value: Any, wanted: str) -> None:
    raise ValueError(
        f"checkpoint {path}: {what} is {reprlib.repr(value)} ({type(value).__name__}), it must be "
        f"{wanted}: {_OTHER_FILE}"
    )


def _check_kinds(path: str | Path, where: str, values: Mapping, kinds: Mapping) -> None:
    for key, (is_right, wanted) in kinds.items():
        if key in values and not is_right(values[key]):
            _refuse(path, f"{where}.{key}", values[key], wanted)


def check_weights(weights: Any, path: str | Path, where: str) -> None:
    """Raise ValueError unless `weights` is a dict of names and tensors."""
    if not isinstance(weights, dict):
        _refuse(path, where, weights, "a dict of names and tensors")
    for name, value in weights.items():
        if not isinstance(name, str):
            _refuse(path, f"a name in {where}", name, "text")
        if not isinstance(value, torch.Tensor):
            _refuse(path, f"{where}.{name}", value, "a tensor")
    versions = getattr(weights, "_metadata", {})
    if not _is_dict(versions) or not all(map(_is_module_version, versions.values())):
        _refuse(path, f"{where}._metadata", versions, "the version of each module")


def check_meta(meta: Any, path: str | Path) -> None:
    """Check the meta of a checkpoint.

    Args:
        meta: as in the file.
        path: its file, for messages.

    Raises:
        ValueError: a part is of another kind than it must be.
    """
    if not isinstance(meta, dict):
        _refuse(path, "meta", meta, "a dict")
    _check_kinds(path, "meta", meta, _META)
    _check_kinds(path, "meta.hook_msgs", meta.get("hook_msgs", {}), _HOOK_MESSAGES)


def check_training_state(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Check what resuming needs besides weights and meta.

    Args:
        checkpoint: what `load_checkpoint` returned.
        path: its file, for messages.

    Raises:
        ValueError: a part is of another kind than it must be, or there is no training state.
    """
    meta = checkpoint["meta"]
    lacks_progress = "epoch" not in meta or "iter" not in meta
    if lacks_progress or "optimizer" not in checkpoint:
        what = "training state" if lacks_progress else "optimizer state"
        raise ValueError(
            f"checkpoint {path} holds no {what}, so it cannot be resumed: it is published, or was saved "
            "with checkpoint_config.save_optimizer=False; start from its weights instead (--cfg-options "
            "load_from=FILE)"
        )
    if meta.get("iter_in_epoch", 0) > meta["iter"]:
        _refuse(path, "meta.iter_in_epoch", meta["iter_in_epoch"], f"at most iter, {meta['iter']}")
    for name, state in meta.get("hooks", {}).items():
        if not _is_dict(state):
            _refuse(path, f"meta.hooks.{name}", state, "a dict")
    for name, parts in meta.get("log_buffer", {}).items():
        if not isinstance(parts, list) or len(parts) != 2 or not all(map(_is_numbers, parts)):
            _refuse(
                path, f"meta.log_buffer.{name}", parts, "a list of values and one of their counts"
            )
    _check_optimizer(checkpoint["optimizer"], path)
    if "raw_weights" in checkpoint:
        check_weights(checkpoint["raw_weights"], path, "raw_weights")
    if "gradients" in checkpoint:
        check_weights(checkpoint["gradients"], path, "gradients")
    ranks = checkpoint.get("ranks", [])
    if not isinstance(ranks, list) or not all(_is_dict(rank) for rank in ranks):
        _refuse(path, "ranks", ranks, "a list with a dict for each process")
    for number, rank in enumerate(ranks):
        if not _is_dict(rank.get("random", {})):
            _refuse(path, f"ranks[{number}].random", rank["random"], "a dict")
        check_weights(rank.get("buffers", {}), path, f"ranks[{number}].buffers")


def _check_optimizer(optimizer: Any, path: str | Path) -> None:
    if not _is_dict(optimizer):
        _refuse(path, "optimizer", optimizer, "a dict, as `optimizer.state_dict()` gives")
    state, groups = optimizer.get("state"), optimizer.get("param_groups")
    if not isinstance(state, dict) or not all(isinstance(of, dict) for of in state.values()):
        _refuse(path, "optimizer.state", state, "a dict with a dict for each parameter")
    if not isinstance(groups, list) or not groups or not all(map(_is_group, groups)):
        _refuse(path, "optimizer.param_groups", groups, "a list of dicts with the `params` of each")


def _is_group(group: Any) -> bool:
    if not _is_dict(group) or not isinstance(group.get("params"), list):
        return False
    numbers_, names = group["params"], group.get("param_names")
    return all(type(number) is int for number in numbers_) and (
        names is None or (_is_names(names) and len(names) == len(numbers_))
    )


def other_classes(checkpoint: Mapping[str, Any], path: str | Path, owner: Any) -> str | None:
    """What is different between the classes of a checkpoint and of a network or data set, or None.

    Args:
        checkpoint: what `load_checkpoint` returned; nothing is known without CLASSES in its meta.
        path: its file, for the text.
        owner: has CLASSES, where they are known.
    """
    trained_for, own = checkpoint["meta"].get("CLASSES"), getattr(owner, "CLASSES", None)
    if not trained_for or not own or list(trained_for) == list(own):
        return None
    order = ", the same in another order" if sorted(trained_for) == sorted(own) else ""
    return (
        f"checkpoint {path} was trained for the classes {list(trained_for)}, this run has "
        f"{list(own)}{order}"
    )


def head_of_other_classes(
    checkpoint: Mapping[str, Any], path: str | Path, detector: Any, fitting: Iterable[str]
) -> str | None:
    """`other_classes`, where a head of as many classes is loaded: another number shows in the shapes.

    Args:
        checkpoint: what `load_checkpoint` returned.
        path: its file, for the text.
        detector: the network.
        fitting: names in the network of the weights that are loaded.
    """
    difference = other_classes(checkpoint, path, detector)
    if difference is None or all(name.startswith(_WITHOUT_CLASSES) for name in fitting):
        return None
    same_number = len(checkpoint["meta"]["CLASSES"]) == len(detector.CLASSES)
    return difference if same_number else None

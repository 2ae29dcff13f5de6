"""Keys of a config that nothing reads, at any depth below its top level."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from fnmatch import fnmatchcase
from typing import Any, Callable, Iterator, NamedTuple, Sequence

from torch.nn.utils import clip_grad_norm_

from projects.bevformer.engine.config_keys import registered
from projects.bevformer.engine.finite_hook import FiniteLossHook
from projects.bevformer.engine.hooks import TemporalEvalHook
from projects.bevformer.messages import did_you_mean
from projects.bevformer.model.v2.dd3d_head import FCOS2DHead, FCOS3DHead
from projects.bevformer.model.v2.dd3d_losses import FCOS2DLoss, FCOS3DLoss, NuscenesLoss
from projects.bevformer.model.v2.dd3d_targets import LocationAssigner

_SECTIONS = (
    *("model", "train_cfg", "data", "optimizer", "optimizer_config", "lr_config"),
    *("momentum_config", "checkpoint_config", "log_config", "evaluation", "fp16"),
    *("custom_hooks", "runner", "auto_scale_lr", "non_finite", "dist_params"),
)
# Sections that name no class, and the one that reads them.
READERS = {
    "optimizer_config": "OptimizerHook",
    "checkpoint_config": "CheckpointHook",
    "evaluation": TemporalEvalHook,
    "non_finite": FiniteLossHook,
}
_CONSTRUCTORS = (None, "DefaultOptimizerConstructor", "MergedGroupsConstructor")
_OUR_DETECTORS = ("BEVFormer", "BEVFormer_fp16", "BEVFormerV2")
_LOADER = ("samples_per_gpu", "workers_per_gpu", "persistent_workers")
# Where -> what is read there besides the arguments of a class. A place is a dotted key, or the name
# of a class with what follows below it; `*` stands for anything.
_READ: dict[str, Sequence[str] | Callable] = {
    "data": (*_LOADER, "train", "val", "test", "shuffler_sampler", "train_dataloader"),
    "data.train_dataloader": _LOADER,
    "optimizer": ("constructor", "paramwise_cfg"),
    "optimizer.paramwise_cfg": (
        *("custom_keys", "bias_lr_mult", "bias_decay_mult", "norm_decay_mult", "bypass_duplicate"),
        *("dwconv_decay_mult", "dcn_offset_lr_mult"),
    ),
    "optimizer.paramwise_cfg.custom_keys.*": ("lr_mult", "decay_mult"),
    "optimizer_config.grad_clip": clip_grad_norm_,
    "lr_config": ("policy",),
    "momentum_config": ("policy",),
    "log_config": ("interval", "hooks"),
    "fp16": ("loss_scale", "dtype"),
    "custom_hooks.*": ("priority",),
    "runner": ("type", "max_epochs", "max_iters"),
    "auto_scale_lr": ("base_batch_size", "enable"),
    "data.*.modality": ("use_camera", "use_lidar", "use_radar", "use_map", "use_external"),
    "model.heads.*": ("name", "weight"),
    "*norm_cfg": ("requires_grad",),
    "*init_cfg*": ("override", "name"),
    "ResNet.dcn": ("fallback_on_stride",),
    **{f"{name}.train_cfg": ("pts",) for name in _OUR_DETECTORS},
    **{f"{name}.train_cfg.pts": ("assigner",) for name in _OUR_DETECTORS},
    **{f"{name}.pretrained": ("img",) for name in _OUR_DETECTORS},
    "NuscenesDD3D.fcos2d_cfg": FCOS2DHead,
    "NuscenesDD3D.fcos2d_loss_cfg": FCOS2DLoss,
    "NuscenesDD3D.fcos3d_cfg": FCOS3DHead,
    "NuscenesDD3D.fcos3d_loss_cfg": FCOS3DLoss,
    "NuscenesDD3D.target_assign_cfg": LocationAssigner,
    "NuscenesDD3D.nusc_loss_weight": NuscenesLoss,
    "CustomNuScenesDatasetV2.mono_cfg": ("min_num_lidar_points", "min_box_visibility"),
    "CropResizeFlipImage.data_aug_conf": ("reisze", "crop", "H", "W", "rand_flip"),
}
# Keys of the original's configs that change nothing, here as there. Arguments of constructors that
# change nothing are declared at the classes (`published`). docs/checkpoint_compatibility.md has both.
WITHOUT_EFFECT: dict[str, Sequence[str]] = {
    "runner": ("keys",),  # of EpochBasedRunner_video
    "data": ("nonshuffler_sampler",),
    "data.val": ("samples_per_gpu",),
    "data.test": ("samples_per_gpu",),
    "CustomNuScenesDatasetV2.mono_cfg": ("name", "data_root"),
    **{
        f"{name}.train_cfg.pts": ("grid_size", "voxel_size", "point_cloud_range", "out_size_factor")
        for name in _OUR_DETECTORS
    },
}
KNOWN_PACKAGES = ("projects.bevformer.", "mmcv.", "mmdet.", "mmdet3d.", "mmseg.", "torch.")


def unread_keys(cfg: Any) -> Iterator[tuple[str, str]]:
    """Keys that nothing reads.

    A dict with a `type` is compared with the constructor of that class and, where it passes `**kwargs`
    on, with those of its bases; other dicts with what the code reads there. Where a class does something
    else with its `**kwargs`, or nothing is known of a dict, every key passes.

    Args:
        cfg: mmcv.Config. Its top level is not looked at.

    Yields:
        The dotted name of a key; who does not read it, and the nearest key that is read.
    """
    for section in _SECTIONS:
        place = section
        if section == "train_cfg":
            model = cfg.get("model")
            place = f"{model.get('type') if isinstance(model, dict) else ''}.train_cfg"
        yield from _unread(cfg.get(section), section, place, READERS.get(section))


def _unread(
    value: Any, path: str, place: str, reader: str | type | None = None
) -> Iterator[tuple[str, str]]:
    if isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from _unread(item, f"{path}.{i}", f"{place}.{i}")
    if not isinstance(value, dict):
        return
    name = value.get("type", hook_of_policy(value, path) or reader)
    classes = [name] if inspect.isclass(name) else registered(name) if name else []
    title = getattr(name, "__name__", name) or path
    patterns = [
        p for p in {**_READ, **WITHOUT_EFFECT} if any(map(fnmatchcase, (path, place), (p, p)))
    ]
    known: set[str] | None = {key for pattern in patterns for key in _keys(pattern)} or None
    if name and not classes:
        known = None  # building it says what is wrong with the name
    elif classes and path != "runner":
        arguments = [arguments_of(one) for one in classes]
        known = {"type", *(known or ()), *set().union(*(taken or () for taken in arguments))}
        known = None if None in arguments else known
        own = not any(one.__module__.startswith(KNOWN_PACKAGES) for one in classes)
        place = "" if own else str(title)
    ignored = {key for one in classes for key in getattr(one, "__published__", ())}
    for key, item in value.items():
        if known is not None and key not in known:
            yield f"{path}.{key}", f"is not read by {title}{_hint(key, known)}"
        elif key == "paramwise_cfg" and value.get("constructor") not in _CONSTRUCTORS:
            continue
        elif key not in ignored:
            yield from _unread(item, f"{path}.{key}", f"{place}.{key}")


def _keys(pattern: str) -> Sequence[str]:
    read = _READ.get(pattern, ())
    names = list(read) if isinstance(read, (list, tuple)) else list(arguments_of(read) or ())
    return [*names, *WITHOUT_EFFECT.get(pattern, ())]


def hook_of_policy(section: dict, path: str) -> str | None:
    """The hook that mmcv makes of a `policy`; it completes names in lower case."""
    policy = section.get("policy")
    if path not in ("lr_config", "momentum_config") or not isinstance(policy, str):
        return None
    policy = policy.title() if policy == policy.lower() else policy
    return f"{policy}{'LrUpdaterHook' if path == 'lr_config' else 'MomentumUpdaterHook'}"


def _hint(key: str, known: set[str]) -> str:
    return did_you_mean(key, sorted(known)) or f" (it reads {', '.join(sorted(known))})"


@functools.lru_cache(maxsize=None)
def arguments_of(function: Callable | None) -> frozenset[str] | None:
    """Names of the keyword arguments that a class or function reads.

    Returns:
        None where it takes `**kwargs` and its source does not show which of them it reads.
    """
    if function is None:
        return None
    names: set[str] = set()
    taken: set[str] = set()  # arguments that a class itself gives to its base
    for cls, build in _constructors(function):
        try:
            explicit, keywords = _explicit(build)
        except ValueError:  # written in C
            return None
        names |= {*explicit, *vars(cls).get("__published__", ())} - taken
        if keywords is None:
            break
        use = _use_of_keywords(build, keywords)
        if use is None:
            return None
        names |= use.read - taken
        taken |= use.given
        if not use.base_reads:
            break
    return frozenset(name for name in names if name.isidentifier())


def _constructors(function: Callable) -> list[tuple[Callable, Callable]]:
    """The function, or a class and its bases with their constructors, in the order of their calls."""
    if not inspect.isclass(function):
        return [(function, function)]
    bases = function.__mro__[:-1]
    return [(cls, vars(cls)["__init__"]) for cls in bases if "__init__" in vars(cls)]


def _explicit(function: Callable) -> tuple[list[str], str | None]:
    """Named parameters of a function, and the name of its `**kwargs` or None."""
    parameters = inspect.signature(function).parameters.values()
    keywords = [p.name for p in parameters if p.kind is p.VAR_KEYWORD]
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    named = [name for name in named if name not in ("self", "parameters")]
    return named, keywords[0] if keywords else None


class _Use(NamedTuple):
    """What a constructor does with its `**kwargs`.

    Attributes:
        read: names that it may read: each string in it, each keyword of a `dict(...)`, and the arguments of
            what it calls with them.
        base_reads: whether the constructor of a base gets the rest.
        given: arguments that it gives to the base itself.
    """

    read: set[str]
    base_reads: bool
    given: set[str]


def _use_of_keywords(build: Callable, keywords: str) -> _Use | None:
    """Read off the source of a constructor; None where it does something else with its `**kwargs`."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(build)))
    except (OSError, TypeError, SyntaxError):
        return None
    use = _Use(set(), False, set())
    unexplained = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            use.read.add(node.value)
        elif isinstance(node, ast.Name):
            unexplained += node.id == keywords
        elif isinstance(node, ast.Subscript):  # kwargs["x"]
            unexplained -= _is(node.value, keywords)
        elif isinstance(node, ast.Attribute):  # kwargs.get("x")
            unexplained -= _is(node.value, keywords) and node.attr in ("get", "pop")
        elif isinstance(node, ast.Compare):  # "x" in kwargs
            unexplained -= sum(_is(other, keywords) for other in node.comparators)
        elif isinstance(node, ast.Call):
            names = {keyword.arg for keyword in node.keywords if keyword.arg}
            if _is(node.func, "dict"):
                use.read.update(names)
            if not any(k.arg is None and _is(k.value, keywords) for k in node.keywords):
                continue
            unexplained -= 1
            if getattr(node.func, "attr", None) == "__init__":
                use = use._replace(base_reads=True, given=names)
                continue
            called = arguments_of(_resolve(node.func, inspect.unwrap(build).__globals__))
            if called is None:
                return None
            use.read.update(called)
    return None if unexplained else use


def _is(node: ast.AST | None, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _resolve(node: ast.AST, names: dict[str, Any]) -> Any:
    """The class or function of `f(...)` or `module.f(...)`; None for anything else."""
    if isinstance(node, ast.Attribute):
        return getattr(_resolve(node.value, names), node.attr, None)
    return names.get(node.id) if isinstance(node, ast.Name) else None

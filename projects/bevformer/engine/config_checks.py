"""Checks across a config before anything is built: keys that nothing reads, values that contradict."""

from __future__ import annotations

import inspect
import re
from fnmatch import fnmatchcase
from numbers import Integral
from typing import Any, Iterable, Iterator, Mapping, NamedTuple, Sequence

from mmcv import Config

from projects.bevformer.engine.config_keys import READ_KEYS, registered
from projects.bevformer.engine.pretrained import pretrained_files
from projects.bevformer.engine.unread_keys import unread_keys
from projects.bevformer.model.detection.head import BEVFormerHead

_HEAD = "model.pts_bbox_head"
# Groups of keys whose values must be equal. `*` stands for anything, what follows a colon is the type
# of the part; "2 * key" is twice the value, "len(key)" the number of items.
_EQUAL: tuple[Sequence[str], ...] = (
    (
        f"{_HEAD}.*.pc_range",
        "model.train_cfg.pts.assigner.pc_range",
        "data.*.point_cloud_range:ObjectRangeFilter",
    ),
    (
        "model.img_neck.out_channels",
        f"{_HEAD}.in_channels",
        f"{_HEAD}.*.embed_dims",
        f"2 * {_HEAD}.positional_encoding.num_feats",
        "model.fcos3d_bbox_head.in_channels",
    ),
    ("data.*.classes:?*", "data.*.class_names:*FormatBundle3D"),
    ("data.*.benchmark",),
    (
        f"{_HEAD}.num_classes",
        f"{_HEAD}.bbox_coder.num_classes",
        "model.fcos3d_bbox_head.num_classes",
        "len(data.*.classes:*Dataset*)",
    ),
    ("model.frames", f"{_HEAD}.transformer.frames", "data.*.frames:CustomNuScenesDatasetV2"),
    ("len(model.img_backbone.out_indices)", "len(model.img_neck.in_channels:FPN)"),
    *(
        (f"data.{name}", f"data.train_dataloader.{name}")
        for name in ("samples_per_gpu", "workers_per_gpu", "persistent_workers")
    ),
    *((f"data.*.{name}:NormalizeMultiviewImage",) for name in ("mean", "std", "to_rgb")),
)
_NONE = ("benchmark",)  # keys that None is a value of: nuScenes' benchmark
# Whole numbers of at least 1.
_COUNTS = (
    *(f"{_HEAD}.{name}" for name in ("bev_h", "bev_w", "num_query", "bbox_coder.max_num")),
    *(f"{_HEAD}.*.{name}" for name in ("embed_dims", "num_heads", "num_points", "num_layers")),
    *("model.img_neck.out_channels", "model.img_neck.num_outs", "data.*.queue_length"),
    *("data.samples_per_gpu", "data.*.load_interval"),
    *("runner.max_epochs", "runner.max_iters", "log_config.interval"),
    "auto_scale_lr.base_batch_size",
)


def check_config(cfg: Config, given: Iterable[str] = ()) -> None:
    """Refuse a config in which a value has no effect or contradicts another one.

    Args:
        cfg: of `load_config`.
        given: keys of the command line; where a message names none of them, it ends with the variables.

    Raises:
        ValueError: names the keys and their values.
    """
    for section in ("model", "data"):
        if not cfg.get(section):
            raise ValueError(f"{section} is {cfg.get(section)!r}: a config must have it")
    problems = [f"{key} {what}" for key, what in config_problems(cfg)]
    if len(problems) > 1:
        problems[0] += f" (and {len(problems) - 1} more: tools/doctor.py --config lists them)"
    if problems:
        variables = [key for key in given if key.split(".")[0] not in READ_KEYS]
        if variables and not any(key in problems[0] for key in given):
            problems[0] += f" (made of --cfg-options {', '.join(variables)})"
        raise ValueError(problems[0])


def config_problems(cfg: Config) -> list[tuple[str, str]]:
    """What `check_config` refuses: pairs of a dotted key and what is wrong with it."""
    return [*unread_keys(cfg), *_contradictions(cfg)]


class _Value(NamedTuple):
    """A value of a config, or the default of the class that reads it.

    Attributes:
        key: dotted.
        reader: `type` of the dict that holds it; "" where there is none.
        value: lists are tuples.
        given: whether it stands in the config.
    """

    key: str
    reader: str
    value: Any
    given: bool = True

    def __str__(self) -> str:
        value = list(self.value) if isinstance(self.value, tuple) else self.value
        return f"{value!r}{'' if self.given else f' by default of {self.reader}'}"


def _contradictions(cfg: Config) -> Iterator[tuple[str, str]]:
    values = list(_values(cfg.get("data"), "data"))
    model = cfg.get("model") or {}
    if any(
        inspect.isclass(cls) and issubclass(cls, BEVFormerHead)
        for cls in registered((model.get("pts_bbox_head") or {}).get("type"))
    ):  # little is known of other networks
        values += _values(model, "model")
        yield from _images_prepared_twice(values)
        yield from _two_starts(model)
        yield from _overruled_dropout(values)
    for section in ("runner", "log_config", "auto_scale_lr"):
        values += _values(cfg.get(section), section)
    yield from _bad_lists(cfg, values)
    yield from _not_counts(values)
    groups = [[v for key in group for v in _matching(values, key)] for group in _EQUAL]
    for group in [*groups, _levels(values)]:
        number = [sum(other.value == one.value for other in group) for one in group]
        most = [one for one, times in zip(group, number) if times == max(number)]
        usual = min(most, key=lambda one: one.key.count("."), default=None)
        for odd in (one for one in group if one.value != usual.value):
            yield odd.key, f"is {odd}, {usual.key} is {usual}: they must be equal"
    yield from _covered_range(values)
    yield from _counted_in_epochs(cfg)
    norm = ((cfg.get("optimizer_config") or {}).get("grad_clip") or {}).get("max_norm", 1)
    if not isinstance(norm, (int, float)) or norm <= 0:
        yield "optimizer_config.grad_clip.max_norm", f"is {norm!r}: it must be a positive number"


def _values(part: Any, key: str) -> Iterator[_Value]:
    """All values below a key; for this project's classes also the defaults of what is not given."""
    if isinstance(part, (list, tuple)):
        part, reader = {str(i): item for i, item in enumerate(part)}, ""
    elif isinstance(part, dict):
        reader = str(part.get("type", ""))
    else:
        return
    defaults = _defaults(reader)
    for name in set(defaults) & set(part):
        if part[name] is not None or name != "classes":  # None: the classes of the data set
            del defaults[name]
    for name, value in {**part, **defaults}.items():
        plain = tuple(value) if isinstance(value, list) else value
        yield _Value(f"{key}.{name}", reader, plain, name not in defaults)
        yield from _values(value, f"{key}.{name}")


def _defaults(reader: str) -> dict[str, Any]:
    defaults: dict[str, Any] = {}
    for cls in registered(reader):
        if cls.__module__.startswith("projects.bevformer."):
            parameters = inspect.signature(cls).parameters.items()
            defaults.update({name: parameter.default for name, parameter in parameters})
            defaults["classes"] = getattr(cls, "CLASSES", None)  # of data sets
    unset = (inspect.Parameter.empty, None)
    return {name: value for name, value in defaults.items() if value not in unset or name in _NONE}


def _matching(values: Sequence[_Value], pattern: str) -> list[_Value]:
    """The values of an entry of `_EQUAL`, without those that name a file or are None and unset by that."""
    change, key, reader = re.fullmatch(r"(2 \* |len\()?([^:)]+):?([^)]*)\)?", pattern).groups()
    found = [
        one
        for one in values
        if fnmatchcase(one.key, key)
        and fnmatchcase(one.reader, reader or "*")
        and not isinstance(one.value, str)
        and (one.value is not None or key.split(".")[-1] in _NONE)
    ]
    if change == "len(":
        lists = [one for one in found if isinstance(one.value, tuple)]
        return [one._replace(key=f"len({one.key})", value=len(one.value)) for one in lists]
    if change:
        return [one._replace(key=f"2 * {one.key}", value=2 * one.value) for one in found]
    return found


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _not_counts(values: Sequence[_Value]) -> Iterator[tuple[str, str]]:
    for one in values:
        if not any(fnmatchcase(one.key, pattern) for pattern in _COUNTS):
            continue
        unset = one.value is None and one.key.startswith(("runner.", "auto_"))
        if not unset and (not _is_whole(one.value) or one.value < 1):
            yield one.key, f"is {one}: it must be a whole number of at least 1"


def _bad_lists(cfg: Config, values: Sequence[_Value]) -> Iterator[tuple[str, str]]:
    for one in _matching(values, "data.*.classes:?*"):
        names = one.value if isinstance(one.value, tuple) else ()
        if not names or len(set(names)) < len(names) or not all(isinstance(n, str) for n in names):
            yield one.key, f"is {one}: it must be a list of names, each once"
    hooks = {"custom_hooks": cfg.get("custom_hooks")}
    hooks["log_config.hooks"] = (cfg.get("log_config") or {}).get("hooks")
    for key, items in hooks.items():
        for item in items if isinstance(items, list) else [items] if items else []:
            if isinstance(item, str) or (isinstance(item, dict) and "type" not in item):
                yield (
                    key,
                    f"has {item!r}: it must be a list of dicts with a `type`, in a config file",
                )


def _levels(values: Sequence[_Value]) -> list[_Value]:
    """The numbers of feature levels: those that the encoder gets and those that its attention reads."""
    given = _matching(values, "model.num_levels") or _matching(values, "model.img_neck.num_outs")
    read = _matching(values, f"{_HEAD}.transformer.encoder.*.num_levels:MSDeformableAttention3D")
    return [*given, *read]


def _covered_range(values: Sequence[_Value]) -> Iterator[tuple[str, str]]:
    """Boxes of the range that the coder drops."""
    for inner in _matching(values, f"{_HEAD}.bbox_coder.pc_range"):
        for outer in _matching(values, f"{_HEAD}.bbox_coder.post_center_range"):
            if not isinstance(outer.value, tuple) or not isinstance(inner.value, tuple):
                continue  # the coder says what is wrong
            low = [a > b for a, b in zip(outer.value[:3], inner.value[:3])]
            high = [a < b for a, b in zip(outer.value[3:], inner.value[3:])]
            if any(low + high):
                yield outer.key, f"is {outer} and drops a part of {inner.key}, {inner}"


def _images_prepared_twice(values: Sequence[_Value]) -> Iterator[tuple[str, str]]:
    on_device = _matching(values, "model.data_preprocessor")
    for step in _matching(values, "data.*.pipeline.*"):
        kind = step.value.get("type") if isinstance(step.value, dict) else None
        if on_device and kind == "NormalizeMultiviewImage":
            yield step.key, "normalises images that model.data_preprocessor takes as they are"
        elif not on_device and kind == "ByteImageFormatBundle3D":
            yield step.key, "ends with uint8 images, for which model.data_preprocessor is not set"


def _overruled_dropout(values: Sequence[_Value]) -> Iterator[tuple[str, str]]:
    """mmcv's attention takes `dropout` for both of its dropouts and forgets the others."""
    given = {one.key: one for one in values if one.given}
    for key, one in given.items():
        holder, _, name = key.rpartition(".")
        dropout = given.get(f"{holder}.dropout")
        if name == "attn_drop" and dropout and one.value != dropout.value:
            yield (
                key,
                f"is {one}, {dropout.key} is {dropout} and counts instead: remove one of them",
            )


def _two_starts(model: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    files = pretrained_files(model)
    of_backbone = ("img_backbone.pretrained", "img_backbone.init_cfg.checkpoint")
    keys = [f"model.{key}" for key in ("pretrained", "pretrained.img", *of_backbone)]
    first, *others = [key for key in keys if key in files] or [""]
    for key in others:
        if files[key] != files[first]:
            yield first, f"is {files[first]!r}, {key} is {files[key]!r}: set one of them"


def _counted_in_epochs(cfg: Config) -> Iterator[tuple[str, str]]:
    if (cfg.get("runner") or {}).get("type") != "IterBasedRunner":
        return
    for section in ("lr_config", "momentum_config", "checkpoint_config", "evaluation"):
        if (cfg.get(section) or {}).get("by_epoch"):
            yield f"{section}.by_epoch", "is True, but runner.type is IterBasedRunner: set it False"

"""Checks across a config before anything is built: keys that nothing reads, values that contradict."""

from __future__ import annotations

import inspect
import math
import re
from fnmatch import fnmatchcase
from typing import Any, Iterable, Iterator, Mapping, NamedTuple, Sequence

from mmcv import Config

from projects.bevformer.engine.config_keys import READ_KEYS, SECTIONS, nested_values, registered
from projects.bevformer.engine.pretrained import pretrained_files
from projects.bevformer.engine.unread_keys import READERS, hook_of_policy, unread_keys
from projects.bevformer.engine.value_rules import senseless
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
_FACTORS = ("optimizer", "lr_config", "momentum_config", "fp16")  # sections of numbers in a step
_NONE = ("benchmark",)  # keys that None is a value of: nuScenes' benchmark


def check_config(cfg: Config, given: Iterable[str] = ()) -> None:
    """Refuse a config in which a value has no effect or contradicts another one.

    Args:
        cfg: of `load_config`.
        given: keys of the command line; where a message names none of them, it ends with the variables.

    Raises:
        ValueError: names the keys and their values.
    """
    check_sections(cfg, ("model", "data"))
    problems = [f"{key} {what}" for key, what in config_problems(cfg)]
    if len(problems) > 1:
        problems[0] += f" (and {len(problems) - 1} more: tools/doctor.py --config lists them)"
    if problems:
        variables = [key for key in given if key.split(".")[0] not in READ_KEYS]
        if variables and not any(key in problems[0] for key in given):
            problems[0] += f" (made of --cfg-options {', '.join(variables)})"
        raise ValueError(problems[0])


def check_sections(cfg: Config, names: Iterable[str]) -> None:
    """Refuse a config without what a tool needs, such as an empty file."""
    for name in names:
        if not cfg.get(name):
            raise ValueError(f"{name} is {cfg.get(name)!r}: a config must have it")


def config_problems(cfg: Config) -> list[tuple[str, str]]:
    """What `check_config` refuses: pairs of a dotted key and what is wrong with it."""
    values, unread = list(_all_values(cfg)), list(unread_keys(cfg))
    wrong = {**dict(_not_finite(cfg)), **dict(_senseless(values))}
    senseless = [found for found in wrong.items() if found[0] not in dict(unread)]
    # Values of a wrong kind cannot be compared.
    return [*unread, *senseless, *(() if senseless else _contradictions(cfg, values))]


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


def _all_values(cfg: Config) -> Iterator[_Value]:
    """What stands in the sections and plain keys that are read; of the model, if it is a BEVFormer."""
    for key, value in cfg._cfg_dict.items():
        if key in READ_KEYS:
            yield _Value(key, "", tuple(value) if isinstance(value, list) else value)
        if key in SECTIONS and isinstance(value, dict) and (key != "model" or _is_known(value)):
            reader = READERS.get(key) or hook_of_policy(value, key) or ""
            yield from _values(value, key, getattr(reader, "__name__", reader))
        elif key == "custom_hooks":
            yield from _values(value, key)


def _is_known(model: Mapping[str, Any]) -> bool:
    """Whether a model has this project's head; little is known of other networks."""
    head = model.get("pts_bbox_head")
    classes = registered(head.get("type") if isinstance(head, dict) else None)
    return not isinstance(head, dict) or any(
        inspect.isclass(cls) and issubclass(cls, BEVFormerHead) for cls in classes
    )


def _senseless(values: Sequence[_Value]) -> Iterator[tuple[str, str]]:
    for one in values:
        must = senseless(one.key, one.reader, one.value) if one.given else None
        if must:
            yield one.key, f"is {one}: it must be {must}"


def _not_finite(cfg: Config) -> Iterator[tuple[str, str]]:
    """NaN anywhere, and infinity where it would make one: in what weights, losses and steps are made of."""
    read = {key: cfg[key] for key in sorted(READ_KEYS) if key in cfg}
    for key, value in nested_values(read):
        for number in value if isinstance(value, tuple) else (value,):
            is_factor = key.split(".")[0] in _FACTORS or "weight" in key
            if number != number or (is_factor and number in (math.inf, -math.inf)):
                yield key, f"is {value!r}: it must be finite"


def _contradictions(cfg: Config, values: Sequence[_Value]) -> Iterator[tuple[str, str]]:
    model = cfg.get("model") or {}
    if model.get("pts_bbox_head") and _is_known(model):
        yield from _images_prepared_twice(values)
        yield from _two_starts(model)
        yield from _overruled_dropout(values)
        yield from _more_boxes_than_scores(values)
    groups = [[v for key in group for v in _matching(values, key)] for group in _EQUAL]
    for group in [*groups, _levels(values)]:
        number = [sum(other.value == one.value for other in group) for one in group]
        most = [one for one, times in zip(group, number) if times == max(number)]
        usual = min(most, key=lambda one: one.key.count("."), default=None)
        for odd in (one for one in group if one.value != usual.value):
            yield odd.key, f"is {odd}, {usual.key} is {usual}: they must be equal"
    yield from _covered_range(values)
    yield from _counted_in_epochs(cfg)


def _values(part: Any, key: str, reader: str = "") -> Iterator[_Value]:
    """All values below a key; for this project's classes also the defaults of what is not given."""
    if isinstance(part, (list, tuple)):
        part = {str(i): item for i, item in enumerate(part)}
    elif isinstance(part, dict):
        reader = str(part.get("type", reader))
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


def _more_boxes_than_scores(values: Sequence[_Value]) -> Iterator[tuple[str, str]]:
    """The coder takes the best of the scores, one per query and class."""
    found = {one.key: one for one in values}
    boxes, queries, classes = (
        found.get(f"{_HEAD}.{name}") for name in ("bbox_coder.max_num", "num_query", "num_classes")
    )
    if boxes and queries and classes and boxes.value > queries.value * classes.value:
        scores = f"{queries.value} queries x {classes.value} classes"
        yield boxes.key, f"is {boxes}, more than the scores of a frame, {scores}: lower it"


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
                continue
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

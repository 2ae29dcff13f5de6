"""What single values of a config may be: by their key, or by the default of the argument that takes them."""

from __future__ import annotations

import fnmatch
import functools
import inspect
import math
import re
from numbers import Integral, Real
from typing import Any, Callable, Sequence

from mmcv.runner import Hook

from projects.bevformer.engine.config_keys import SECTIONS, registered
from projects.bevformer.engine.unread_keys import KNOWN_PACKAGES


def is_whole(value: Any) -> bool:
    """Whether a value is an integer, and not a bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, and not a bool."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_range(value: Any) -> bool:
    numbers = isinstance(value, tuple) and len(value) == 6 and all(map(is_number, value))
    return numbers and all(low < high for low, high in zip(value[:3], value[3:]))


def _is_workflow(value: Any) -> bool:
    pairs = isinstance(value, tuple) and len(value) > 0
    return pairs and all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 and pair[0] == "train" and _is_count(pair[1])
        for pair in value
    )  # fmt: skip


def _is_count(value: Any) -> bool:
    return is_whole(value) and value >= 1


_HEAD = "model.pts_bbox_head"
# What it must be -> whether a value is that; keys (`*` stands for anything; of "?key" None is a value, too).
_RULES: dict[str, tuple[Callable[[Any], bool], Sequence[str]]] = {
    "a whole number of at least 1": (
        _is_count,
        (
            *(f"{_HEAD}.{name}" for name in ("bev_h", "bev_w", "num_query", "bbox_coder.max_num")),
            *("?model.*.num_classes", "?model.*num_levels", "model.num_mono_levels", "model.*_head.in_channels"),
            *("model.img_backbone.depth", "model.img_backbone.strides.*", "model.img_backbone.dilations.*"),
            *("model.*.inter_channels", "data.*.data_aug_conf.[HW]", "data.*.reisze.*", "lr_config.step.*"),
            *(f"{_HEAD}.*.{name}" for name in ("embed_dims", "num_heads", "num_points", "num_layers")),
            *(f"{_HEAD}.*.{name}" for name in ("num_points_in_pillar", "num_feats", "*_num_embed")),
            *("?model.*.feedforward_channels", "model.*.base_channels", "model.img_neck.in_channels.*"),
            *("model.img_neck.out_channels", "model.img_neck.num_outs", "data.*.queue_length"),
            *("data.samples_per_gpu", "data.train_dataloader.samples_per_gpu", "data.*.load_interval"),
            *("data.*.times", "?*.size_divisor", "optimizer_config.cumulative_iters"),
            *("?runner.max_epochs", "?runner.max_iters", "?total_epochs", "log_config.interval"),
            *("evaluation.interval", "?auto_scale_lr.base_batch_size"),
        ),
    ),
    "a whole number of at least 1, or -1": (
        lambda value: _is_count(value) or (is_whole(value) and value == -1),
        ("checkpoint_config.interval", "checkpoint_config.max_keep_ckpts"),
    ),
    "a whole number of 0 or more": (
        lambda value: is_whole(value) and value >= 0,
        (
            *("data.workers_per_gpu", "data.train_dataloader.workers_per_gpu", "opencv_num_threads"),
            *("lr_config.warmup_iters", "?evaluation.start", "model.img_backbone.out_indices.*"),
            *("non_finite.max_skipped", "?seed"),
        ),
    ),
    "a positive number": (
        lambda value: is_number(value) and value > 0,
        (
            *("?optimizer.lr", "optimizer_config.grad_clip.max_norm", "model.data_preprocessor.std.*"),
            *("data.*.std.*", "dist_params.timeout_minutes"),
        ),
    ),
    "a number from 0.01 to 4": (
        lambda value: is_number(value) and 0.01 <= value <= 4,
        ("data.*.scales.*", "model.data_preprocessor.scale"),
    ),
    "a number of 0 or more": (
        lambda value: is_number(value) and value >= 0,
        (
            *("model.*.loss_weight", "model.*.nusc_loss_weight.*_weight", "model.*_cost.weight", "model.*.gamma"),
            *("optimizer.weight_decay", "optimizer.paramwise_cfg.*_mult"),
        ),
    ),
    "a number from 0 to 1": (
        lambda value: is_number(value) and 0 <= value <= 1,
        (
            *("model.*.dropout", "model.*_dropout", "model.*.attn_drop", "model.*.proj_drop"),
            *("model.*.alpha", "?lr_config.warmup_ratio", "?lr_config.min_lr_ratio"),
        ),
    ),
    "a whole number": (is_whole, ("data.*.frames.*", "model.*frames.*")),
    "a finite number": (
        is_number,
        (
            *("model.*.mean.*", "data.*.mean.*", "model.*.code_weights.*", "data.*_range.*"),
            *("data.*.translation_std.*", "data.*.crop.*", "data.*.mono_cfg.min_*", "model.*.rotate_center.*"),
        ),
    ),
    "a name": (
        lambda value: isinstance(value, str) and bool(value),
        ("?deform_attn_backend", "model.*_cfg.norm", "model.*_type", "runner.type"),
    ),
    "a number, True, False or a list": (
        lambda value: isinstance(value, (bool, tuple)) or is_number(value),
        ("model.fcos3d_bbox_head.*_cfg.*", "model.fcos3d_bbox_head.nusc_loss_weight.*", "model.*.strides.*"),
    ),
    "six finite numbers, x, y, z of the lower and of the upper corner": (
        _is_range,
        ("?model.*.pc_range", "data.*.point_cloud_range", "?model.*.post_center_range"),
    ),
    "True or False": (
        lambda value: isinstance(value, bool),
        (
            *("find_unused_parameters", "channels_last", "cudnn_benchmark", "broadcast_buffers"),
            *("?tf32", "data.*persistent_workers", "model.*.requires_grad", "data.*.modality.*"),
            *("model.*.stage_with_dcn.*", "data.*.rand_flip", "load_from_other_classes"),
            *("auto_scale_lr.enable", "custom_imports.allow_failed_imports"),
        ),
    ),
    "a dict": (
        lambda value: isinstance(value, dict),
        (
            *(*(f"?{section}" for section in sorted(SECTIONS)), "data.val", "data.test"),
            *("?data.train_dataloader", "?data.*_sampler", "?data.*.modality", "data.*.benchmark.classes"),
            *("?model.img_backbone", "?model.img_neck", "?model.pts_bbox_head", "?model.*_preprocessor"),
            *("?model.*.transformer", "model.*.encoder", "?model.*.decoder", "model.*.bbox_coder"),
            *("model.*.transformerlayers", "model.*.deformable_attention", "?model.*.positional_encoding"),
            *("?model.*.loss_cls", "?model.*.loss_bbox", "?model.*.loss_iou", "?model.*_cost"),
            *("model.*.assigner", "?optimizer.paramwise_cfg", "optimizer.paramwise_cfg.custom_keys"),
            *("?model.train_cfg", "?model.train_cfg.pts", "?optimizer_config.grad_clip"),
        ),
    ),
    "a path": (
        lambda value: isinstance(value, str),
        ("?load_from", "?resume_from", "?work_dir", "?data.*.data_root", "?checkpoint_config.out_dir"),
    ),
    "the path of an info file, or a list of them": (
        lambda value: value != ()
        and all(isinstance(path, str) for path in (value if isinstance(value, tuple) else [value])),
        ("data.*.ann_file",),
    ),
    "a list of steps, each a dict with a `type`": (
        lambda value: isinstance(value, tuple)
        and len(value) > 0
        and all(isinstance(step, dict) and isinstance(step.get("type"), str) for step in value),
        ("data.*.pipeline", "data.*.transforms"),
    ),
    "a list of names, each once": (
        lambda value: isinstance(value, tuple)
        and len(value) > 0
        and all(isinstance(name, str) for name in value)
        and len(set(value)) == len(value),
        ("data.*.keys", "?data.*.classes", "?data.*.class_names"),
    ),
    "a list of dicts with a `type`, in a config file": (
        lambda value: all(
            "type" in hook if isinstance(hook, dict) else isinstance(hook, Hook)
            for hook in (value if isinstance(value, tuple) else [value])
        ),
        ("log_config.hooks", "?custom_hooks"),
    ),
    "True, False, 'on_input', 'on_lateral' or 'on_output'": (
        lambda value: value in (True, False, "on_input", "on_lateral", "on_output"),
        ("model.*.add_extra_convs",),
    ),
    "a positive number or 'inf'": (
        lambda value: value in ("inf", math.inf) or (is_number(value) and value > 0),
        ("optimizer_config.grad_clip.norm_type",),
    ),
    "a positive number or 'dynamic'": (
        lambda value: value == "dynamic" or isinstance(value, dict) or (is_number(value) and value > 0),
        ("fp16.loss_scale",),
    ),
    "a list of at least two numbers from 0 to 1": (
        lambda value: isinstance(value, tuple)
        and len(value) > 1
        and all(is_number(one) and 0 <= one <= 1 for one in value),
        ("optimizer.betas",),
    ),
    "'stop' or 'skip'": (lambda value: value in ("stop", "skip"), ("non_finite.policy",)),
    "'stop' or 'continue'": (
        lambda value: value in ("stop", "continue"), ("checkpoint_config.on_error",),
    ),
    "a list such as [('train', 1)]; only 'train' is supported, `evaluation` validates": (_is_workflow, ("?workflow",)),
}  # fmt: skip
# Type of the default of an argument, what a value must be then, and whether it is.
_KINDS: tuple[tuple[Any, str, Callable[[Any], bool]], ...] = (
    (bool, "True or False", lambda value: isinstance(value, bool)),
    (Real, "a finite number", is_number),
    (str, "a text", lambda value: value is None or isinstance(value, str)),
    (dict, "a dict", lambda value: value is None or isinstance(value, dict)),
)


def senseless(key: str, reader: str, value: Any) -> str | None:
    """What a value must be and is not.

    Args:
        key: dotted.
        reader: `type` of the dict that holds it, or "".
        value: of the config; lists are tuples.

    Returns:
        None for a value that may be right.
    """
    for must, (holds, _) in _RULES.items():
        found = _keys(must).fullmatch(key)
        if found:
            fits = holds(value) or (value is None and found["may_be_none"] is not None)
            return None if fits else must
    defaults = [_defaults(cls).get(key.rpartition(".")[2]) for cls in registered(reader)]
    for kind, must, holds in _KINDS:
        if any(isinstance(default, kind) for default in defaults):
            return None if holds(value) else must
    return None


@functools.lru_cache(maxsize=None)
def _keys(must: str) -> re.Pattern[str]:
    """The keys of a rule, as one pattern; the group "may_be_none" has those of which None is a value."""
    keys = _RULES[must][1]
    with_none = [fnmatch.translate(key[1:]) for key in keys if key.startswith("?")]
    others = [fnmatch.translate(key) for key in keys if not key.startswith("?")]
    return re.compile("|".join([f"(?P<may_be_none>{'|'.join(with_none) or '(?!)'})", *others]))


@functools.lru_cache(maxsize=None)
def _defaults(cls: type) -> dict[str, Any]:
    """Argument -> default, of a class and its bases."""
    defaults = {}
    for base in reversed(cls.__mro__) if inspect.isclass(cls) else ():
        known = f"{base.__module__}.".startswith(KNOWN_PACKAGES)  # of others nothing is certain
        if "__init__" in vars(base):
            for name, parameter in inspect.signature(base.__init__).parameters.items():
                defaults[name] = parameter.default if known else None
    return defaults

"""Top-level names of configs: which of them are read, and what a misspelt one may mean."""

from __future__ import annotations

import difflib
import functools
import importlib
from typing import Any, Iterable, Mapping

from mmcv.utils import Registry

SECTIONS = frozenset(  # dicts
    "model data optimizer optimizer_config lr_config momentum_config runner checkpoint_config "
    "evaluation log_config fp16 custom_imports train_cfg test_cfg auto_scale_lr non_finite dist_params".split()
)
READ_KEYS = (
    SECTIONS
    | frozenset(  # tests/engine/test_config_values.py compares them with the code
        "broadcast_buffers channels_last cudnn_benchmark custom_hooks deform_attn_backend "
        "find_unused_parameters load_from load_from_other_classes log_level mp_start_method "
        "opencv_num_threads plugin plugin_dir resume_from seed tf32 total_epochs work_dir workflow".split()
    )
)
# Keys of published configs that nothing reads, here and mostly there; files may have them.
UNREAD_KEYS = frozenset({"file_client_args", "gpu_ids", "seed", "sync_bn"})
# Of MultiScaleFlipAug3D, which needs it: no step reads the scale that it passes on.
UNREAD_ARGUMENTS = frozenset({"img_scale"})
_REGISTRIES = (  # modules that hold registries; of parts with the same name the last counts
    "mmcv.cnn",
    "mmcv.cnn.bricks.registry",
    "mmcv.runner",
    "mmdet.core.bbox.builder",
    "mmdet.core.bbox.match_costs.builder",
    "mmdet.models.utils.builder",
    "mmdet3d.models.builder",
    "mmdet.datasets",
    "mmdet3d.datasets",
)
# What every config can be asked for in short.
SHORT_NAMES = {
    "samples_per_gpu": "data.samples_per_gpu",
    "workers_per_gpu": "data.workers_per_gpu",
    "lr": "optimizer.lr",
}


def nearest_key(name: str, config: Mapping[str, Any]) -> str:
    """The key of a config that is the most like `name`: of its first level, or a dotted one."""
    keys = {key: key for key in (*sorted(READ_KEYS), *config, *SHORT_NAMES)}
    for key, _ in nested_values({key: config[key] for key in config if key in READ_KEYS}):
        if not key.split(".")[-1].isdigit():
            keys.setdefault(key.split(".")[-1], key)
    return keys[difflib.get_close_matches(name, list(keys), n=1, cutoff=0.0)[0]]


def nested_values(value: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    """(dotted key, value) of all that a dict or list holds, at any depth."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in items:
        yield f"{prefix}{key}", part
        if isinstance(part, (dict, list)):
            yield from nested_values(part, f"{prefix}{key}.")


def places_of(name: str, value: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> value of what is read where a variable of this name and value belongs.

    The keys that end in the name, and those that hold the same list or text.
    """
    telling = isinstance(value, (list, tuple, str)) and bool(value)
    return {
        key: held
        for key, held in nested_values({key: config[key] for key in config if key in READ_KEYS})
        if key.split(".")[-1] not in UNREAD_ARGUMENTS
        and (key.split(".")[-1] == name.strip("_") or (telling and held == value))
    }


@functools.lru_cache(maxsize=None)
def registries() -> list[Registry]:
    """The registries of OpenMMLab that configs name parts of."""
    modules = map(importlib.import_module, _REGISTRIES)
    return [one for module in modules for one in vars(module).values() if isinstance(one, Registry)]


def registered(name: Any) -> list[type]:
    """All classes that a config can name so, in any registry; an empty list where there is none."""
    name = str(name).rpartition(".")[2]  # without a scope such as "mmdet."
    found = [one.module_dict[name] for one in registries() if name in one.module_dict]
    return list(dict.fromkeys(found))

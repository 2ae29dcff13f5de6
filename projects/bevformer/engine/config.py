"""Reading a config: overrides from the command line, plugins, and checks across its keys."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import re
import traceback
from pathlib import Path
from typing import Any, Iterable, Iterator, Mapping

from mmcv import Config, ConfigDict
from mmcv.runner import CheckpointHook
from mmcv.utils import Registry

from projects.bevformer.engine.optimizer import MergedGroupsConstructor
from projects.bevformer.engine.plugins import import_parts, missing_part

_REGISTRIES = (  # modules that hold registries
    "mmcv.cnn.bricks.registry",
    "mmcv.runner",
    "mmdet.core.bbox.builder",
    "mmdet.core.bbox.match_costs.builder",
    "mmdet.models.utils.builder",
    "mmdet3d.models.builder",
    "mmdet.datasets",
    "mmdet3d.datasets",
)
_SUFFIXES = (".py", ".yml", ".yaml", ".json")


@contextlib.contextmanager
def config_errors(key: str) -> Iterator[None]:
    """Turn an error of a registry into a ValueError that names the config section.

    mmcv and mmdet check many arguments by assertions.
    """
    try:
        yield
    except (KeyError, TypeError, AttributeError, AssertionError) as error:
        reason = error.args[0] if error.args else type(error).__name__
        reason = str(reason).rstrip() + _hint(error)
        raise ValueError(f"config section `{key}`: {reason}") from error


def _hint(error: BaseException) -> str:
    """A suggestion for a name that a registry or a constructor does not have."""
    unknown = re.search(r"(\w+) is not in the .+ registry", str(error))
    if unknown:
        name = unknown.group(1)
        return missing_part(name, _did_you_mean(name, _registered_classes()))
    argument = re.search(
        r"(\w+): \S*__init__\(\) got an unexpected keyword argument '(\w+)'", str(error)
    )
    if argument:
        classes = {part.__name__: part for part in _registered_classes().values()}
        part = classes.get(argument.group(1))
        if part is None:
            return ""
        known = [*inspect.signature(part).parameters, *getattr(part, "__published__", ())]
        return _did_you_mean(argument.group(2), known) or f" (it takes {', '.join(known)})"
    while error.__context__ is not None:  # mmcv wraps the error of a nested section at each level
        error = error.__context__
    if isinstance(error, AssertionError) and not str(error):
        return f" fails at `{traceback.extract_tb(error.__traceback__)[-1].line}`"
    return ""


def _registered_classes() -> dict[str, type]:
    """What configs can name by `type`; where mmdet and mmdet3d share a name, mmdet3d's."""
    return {
        name: registered
        for module in _REGISTRIES
        for registry in vars(importlib.import_module(module)).values()
        if isinstance(registry, Registry)
        for name, registered in registry.module_dict.items()
    }


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.8)
    return f", did you mean {close[0]!r}?" if close else ""


def load_config(
    path: str | Path,
    options: Mapping[str, Any] | None = None,
    data_root: str | Path | None = None,
) -> Config:
    """Read a config file, merge overrides and import its plugins.

    An `optimizer` without a `constructor` gets MergedGroupsConstructor.

    Args:
        path: a Python config.
        options: dict of dotted keys -> values from `--cfg-options`.
        data_root: replaces the `data_root` of all splits. An info file that is missing below the
            old root is looked up below the new one.

    Returns:
        mmcv.Config.

    Raises:
        FileNotFoundError: no such file, or a `_base_` is missing.
        ValueError: the file raises an error, a plugin does not import, or an option is misspelt.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"config {path} does not exist")
    if Path(path).suffix not in _SUFFIXES:
        raise ValueError(f"{path} is not a config: it must end in {', '.join(_SUFFIXES)}")
    try:
        cfg = Config.fromfile(str(path), import_custom_modules=False)
    except OSError:
        raise  # its message names the missing _base_
    except Exception as error:  # a config is code, it can raise anything
        reason = error if str(error) else error.__context__  # mmcv raises a bare ImportError
        name = type(error).__name__
        raise ValueError(f"config {path} cannot be read ({name}): {reason}") from error
    if options:
        for key in options:
            _check_spelling(cfg, key)
        try:
            cfg.merge_from_dict(options)
        except (KeyError, TypeError) as error:
            raise ValueError(f"--cfg-options does not fit the config: {error}") from error
    if data_root is not None:
        if not Path(data_root).is_dir():
            raise FileNotFoundError(f"--data-root {data_root} is not a folder")
        for split in {"train", "val", "test"} & set(cfg.data):
            _move_split(cfg.data[split], str(data_root))
    if cfg.get("optimizer"):
        cfg.optimizer.setdefault("constructor", MergedGroupsConstructor.__name__)
    import_parts(cfg)
    return cfg


def _move_split(options: ConfigDict, data_root: str) -> None:
    """Point a section of `data` to another root."""
    old_root, ann_file = options.get("data_root"), options.get("ann_file")
    if old_root and ann_file and not Path(ann_file).is_file():
        with contextlib.suppress(ValueError):  # it does not lie below the old root
            moved = Path(data_root) / Path(ann_file).relative_to(old_root)
            if moved.is_file():
                options.ann_file = str(moved)
    options.data_root = data_root


def _check_spelling(cfg: Config, dotted_key: str) -> None:
    """Refuse a new key that looks like an existing one."""
    node = cfg
    for part in dotted_key.split("."):
        if not isinstance(node, (dict, Config)):
            return
        if part not in node:
            hint = _did_you_mean(part, node)
            if hint:
                raise ValueError(f"--cfg-options {dotted_key}: the config has no {part!r}{hint}")
            return
        node = node[part]


def resolve_work_dir(
    cfg: Config, config_path: str | Path, work_dir: str | Path | None = None
) -> Path:
    """Folder for logs, checkpoints and results: command line, then config, then work_dirs/<config>.

    Creates it.

    Raises:
        OSError: it cannot be made or written.
    """
    chosen = Path(work_dir or cfg.get("work_dir") or Path("work_dirs") / Path(config_path).stem)
    try:
        chosen.mkdir(parents=True, exist_ok=True)
        probe = chosen / ".writable"
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(
            f"work dir {chosen} cannot be written ({error}): choose another --work-dir"
        ) from error
    cfg.work_dir = str(chosen)
    return chosen


def runner_settings(cfg: Config, max_iters: int | None = None) -> ConfigDict:
    """The `runner` dict of a config.

    Args:
        cfg: has `runner`, or `total_epochs` as older configs do.
        max_iters: stop after this many iterations instead.

    Raises:
        ValueError: the config has neither, they contradict each other, or max_iters is below 1.
    """
    if max_iters is not None:
        if max_iters < 1:
            raise ValueError(f"--max-iters is {max_iters}: it must be at least 1")
        return ConfigDict(type="IterBasedRunner", max_iters=max_iters)
    runner, total_epochs = cfg.get("runner"), cfg.get("total_epochs")
    if runner is None and total_epochs is None:
        raise ValueError(
            "the config does not say how long to train: "
            "add runner = dict(type='EpochBasedRunner', max_epochs=24)"
        )
    if runner is None:
        return ConfigDict(type="EpochBasedRunner", max_epochs=total_epochs)
    if total_epochs is not None and runner.get("max_epochs", total_epochs) != total_epochs:
        raise ValueError(
            f"total_epochs = {total_epochs} and runner.max_epochs = {runner.max_epochs} contradict "
            "each other: set both (--cfg-options total_epochs=N runner.max_epochs=N)"
        )
    return runner.copy()


def check_checkpoint_config(checkpoint_config: Mapping[str, Any] | None) -> None:
    """Refuse unknown keys of `checkpoint_config` now; mmcv fails only when it first saves.

    Args:
        checkpoint_config: the config's dict, or None.

    Raises:
        ValueError: a key that mmcv's CheckpointHook does not take.
    """
    options = dict(checkpoint_config or {})
    if options.pop("type", "CheckpointHook") != "CheckpointHook":
        return
    parameters = inspect.signature(CheckpointHook).parameters.values()
    known = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    known += ["meta", "filename_tmpl", "create_symlink"]  # for the runner
    for key in options:
        if key not in known:
            hint = _did_you_mean(key, known) or f" (it takes {', '.join(known)})"
            raise ValueError(f"checkpoint_config has no {key!r}{hint}")

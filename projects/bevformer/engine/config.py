"""Reading a config: overrides from the command line, plugins, and checks across its keys."""

from __future__ import annotations

import contextlib
import inspect
import re
import traceback
from pathlib import Path
from typing import Any, Iterator, Mapping

from mmcv import Config, ConfigDict

from projects.bevformer.engine.config_files import SUFFIXES
from projects.bevformer.engine.config_keys import registries
from projects.bevformer.engine.config_options import read_config
from projects.bevformer.engine.data_sections import info_files, inner_sections
from projects.bevformer.engine.optimizer import MergedGroupsConstructor
from projects.bevformer.engine.plugins import import_parts, missing_part
from projects.bevformer.files.writing import make_folder
from projects.bevformer.messages import did_you_mean


@contextlib.contextmanager
def config_errors(key: str) -> Iterator[None]:
    """Turn an error of a registry into a ValueError that names the config section.

    mmcv and mmdet check many arguments by assertions.
    """
    try:
        yield
    except (LookupError, TypeError, AttributeError, AssertionError, ArithmeticError) as error:
        reason = error.args[0] if error.args else type(error).__name__
        reason = str(reason).rstrip() + _hint(error)
        raise ValueError(f"config section `{key}`: {reason}") from error


def _hint(error: BaseException) -> str:
    """A suggestion for a name that a registry or a constructor does not have."""
    unknown = re.search(r"(\w+) is not in the .+ registry", str(error))
    if unknown:
        name = unknown.group(1)
        return missing_part(name, did_you_mean(name, _registered_classes()))
    argument = re.search(
        r"(\w+): \S*__init__\(\) got an unexpected keyword argument '(\w+)'", str(error)
    )
    if argument:
        classes = {part.__name__: part for part in _registered_classes().values()}
        part = classes.get(argument.group(1))
        if part is None:
            return ""
        known = [*inspect.signature(part).parameters, *getattr(part, "__published__", ())]
        return did_you_mean(argument.group(2), known) or f" (it takes {', '.join(known)})"
    while error.__context__ is not None:  # mmcv wraps the error of a nested section at each level
        error = error.__context__
    if isinstance(error, AssertionError) and not str(error):
        return f" fails at `{traceback.extract_tb(error.__traceback__)[-1].line}`"
    return ""


def _registered_classes() -> dict[str, type]:
    return {name: part for one in registries() for name, part in one.module_dict.items()}


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
    if Path(path).suffix not in SUFFIXES:
        raise ValueError(f"{path} is not a config: it must end in {', '.join(SUFFIXES)}")
    cfg = read_config(path, options or {})
    if data_root is not None:
        if not Path(data_root).is_dir():
            raise FileNotFoundError(f"--data-root {data_root} is not a folder")
        for split in {"train", "val", "test"} & set(cfg.get("data") or {}):
            for _, options in inner_sections(cfg.data[split], f"data.{split}"):
                _move_split(options, str(data_root))
    if cfg.get("optimizer"):
        cfg.optimizer.setdefault("constructor", MergedGroupsConstructor.__name__)
    import_parts(cfg)
    return cfg


def _move_split(options: ConfigDict, data_root: str) -> None:
    """Point a section of `data` to another root."""
    old_root, files = options.get("data_root"), info_files(options)
    for i, path in enumerate(files):
        with contextlib.suppress(ValueError):  # it does not lie below the old root
            moved = Path(data_root) / Path(path).relative_to(old_root or data_root)
            if moved.is_file() and not Path(path).is_file():
                files[i] = str(moved)
    if files:
        options.ann_file = files if isinstance(options.ann_file, (list, tuple)) else files[0]
    options.data_root = data_root


def resolve_work_dir(
    cfg: Config, config_path: str | Path, work_dir: str | Path | None = None
) -> Path:
    """Folder for logs, checkpoints and results: command line, then config, then work_dirs/<config>.

    Creates it.

    Raises:
        OSError: it cannot be made or written.
    """
    chosen = work_dir or cfg.get("work_dir") or Path("work_dirs") / Path(config_path).stem
    cfg.work_dir = str(chosen)
    return make_folder(chosen, "work dir")


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
    total_epochs = cfg.get("total_epochs")
    default = dict(type="EpochBasedRunner", max_epochs=total_epochs)
    runner = {key: part for key, part in (cfg.get("runner") or default).items() if part is not None}
    epochs, iters = runner.get("max_epochs"), runner.get("max_iters")
    if epochs is None and iters is None:
        raise ValueError(
            "the config does not say how long to train: "
            "add runner = dict(type='EpochBasedRunner', max_epochs=24)"
        )
    if epochs is not None and iters is not None:
        raise ValueError(
            f"runner.max_iters = {iters} and runner.max_epochs = {epochs} contradict each other: set one "
            "of them to None"
        )
    if None not in (total_epochs, epochs) and total_epochs != epochs:
        raise ValueError(
            f"total_epochs = {total_epochs} and runner.max_epochs = {epochs} contradict "
            "each other: set both (--cfg-options total_epochs=N runner.max_epochs=N)"
        )
    return ConfigDict(runner)

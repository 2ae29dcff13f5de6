"""Parts from outside: what `custom_imports`, `plugin` and `plugin_dir` of a config bring in.

Importing this module registers the parts of this project, whatever a config names.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from typing import Any, Iterator, NamedTuple

from mmcv import Config
from mmcv.utils import Registry
from mmdet3d.utils import get_root_logger

from projects.bevformer import plugin, published  # noqa: F401
from projects.bevformer.engine.distributed import launched_as_first
from projects.bevformer.engine.original_names import SUBSTITUTES

# Published configs name this folder; where it does not exist, this project's plugin stands for it.
_ORIGINAL = "mmdet3d_plugin"
_BRING_IN = (
    'a part of your own is brought in by custom_imports = dict(imports=["your.module"]) in the '
    "config (docs/own_parts.md)"
)


class _Registration(NamedTuple):
    registry: Registry
    name: str
    before: Any
    part: Any


_registered_by: dict[str, list[_Registration]] = {}  # by module; Python imports it only once
_in_effect: list[_Registration] = []  # those of the last config that take the place of others
_stood_for: list[str] = []  # plugins of the last config that do not exist
_notices: list[str] = []  # lines about the parts of the last config


def import_parts(cfg: Config) -> None:
    """Import the parts of a user that a config names, after this project's own.

    First `custom_imports`, then `plugin` and `plugin_dir`. What they register under a name that exists
    replaces that part until another config is read, and is logged. Modules and folders are found on the
    search path of Python, in the working directory, and next to the config or in a folder above it.

    Args:
        cfg: mmcv.Config; `filename` is where to look for folders.

    Raises:
        ValueError: a module or a folder does not exist or cannot be imported; the message says which,
            why and in which file.
    """
    _restore()
    custom = dict(cfg.get("custom_imports") or {})
    optional = custom.pop("allow_failed_imports", False)
    for module in _as_list(custom.pop("imports", None)):
        _bring_in(f"custom_imports {module}", module, cfg.filename, optional)
    if custom:
        raise ValueError(f"custom_imports has no {next(iter(custom))!r}: it takes imports, a list")
    named = cfg.get("plugin")
    if named is True:
        named = cfg.get("plugin_dir", _ORIGINAL)
    for folder in _as_list(named):
        _bring_in(f"plugin_dir {folder}", folder, cfg.filename)


def notices() -> list[str]:
    """What was logged about the parts of the config that was read last, for the log file of a run."""
    return list(_notices)


def missing_part(name: str, guess: str) -> str:
    """End of the message for a name that is in no registry: what to do.

    Args:
        name: the name.
        guess: ", did you mean ...?", or "".
    """
    if name in SUBSTITUTES:
        where = "docs/checkpoint_compatibility.md#names-of-the-original"
        return f"; this part of the original is not here: {SUBSTITUTES[name]} ({where})"
    if _stood_for:
        stood = f"{', '.join(_stood_for)} does not exist, this project's plugin stands for it"
        return f"{guess}; {stood}; {_BRING_IN}"
    return guess or f"; {_BRING_IN}"


def _as_list(value: Any) -> list:
    if not value:
        return []
    if not isinstance(value, (str, list, tuple)):
        raise ValueError(
            f"plugin, plugin_dir and custom_imports.imports take a module, a folder or a list, not {value!r}"
        )
    return [value] if isinstance(value, str) else list(value)


def _restore() -> None:
    """Undo what the config before has replaced."""
    for registration in reversed(_in_effect):
        registration.registry.module_dict[registration.name] = registration.before
    _in_effect.clear()
    _stood_for.clear()
    _notices.clear()
    published.REPLACED_TYPES.clear()


def _bring_in(what: str, name: str, config: str | None, optional: bool = False) -> None:
    """Import a module or folder once, and put into effect what it registers."""
    registrations: list[_Registration] = []
    try:
        with _recorded(registrations):
            module = _import(name, config)
    except Exception as error:  # it is code, it can raise anything
        message = f"{what} cannot be imported ({type(error).__name__}: {error}{_place(error)})"
        if not (optional and isinstance(error, ImportError)):
            raise ValueError(f"{message}{_remedy(error, name)}") from error
        _notice(f"{message}; allow_failed_imports is set")
        return
    if module is None:
        _stood_for.append(what)
        return
    if module in _registered_by:  # of an earlier config: Python does not run it again
        known = _registered_by[module]
        registrations = [r._replace(before=r.registry.module_dict.get(r.name)) for r in known]
    _registered_by[module] = registrations
    replaced = []
    for new in registrations:
        new.registry.module_dict[new.name] = new.part
        if new.before not in (None, new.part):
            _in_effect.append(new)
            published.REPLACED_TYPES.add(new.name)
            replaced.append(f"{new.name} of {new.before.__module__}")
    if replaced:
        _notice(f"{what} replaces for this run: {', '.join(replaced)}")


def _notice(line: str) -> None:
    _notices.append(line)
    if launched_as_first():
        get_root_logger().warning(line)


def _import(name: str, config: str | None) -> str | None:
    """Import a module, by its dotted name or its folder.

    Returns:
        Its dotted name; None for the folder of the original that does not exist.
    """
    parts = Path(name).parts if "/" in name else tuple(name.split("."))
    folders = [Path.cwd(), *(Path(config).resolve().parents if config else ())]
    if not all(part.isidentifier() for part in parts):  # "/home/me/parts", "../parts"
        found = [folder / name for folder in folders if (folder / name).is_dir()]
        folders, parts = [folder.resolve().parent for folder in found], Path(name).parts[-1:]
        if not folders and parts[0] != _ORIGINAL:
            raise ImportError(f"there is no folder {name}")
    dotted, relative = ".".join(parts), Path(*parts)
    place = None
    for folder in folders:
        if (folder / relative).is_dir() or (folder / relative).with_suffix(".py").is_file():
            if str(folder) not in sys.path:
                sys.path.append(str(folder))  # last: it hides nothing that is found already
            place = (folder / relative).resolve()
            break
    else:
        if parts[-1] == _ORIGINAL and _spec(dotted) is None:
            return None
    spec = _spec(dotted)
    if spec is not None and spec.origin is None:
        raise ImportError(f"there is no __init__.py in {list(spec.submodule_search_locations)}")
    if (
        place
        and spec
        and place
        not in (
            Path(spec.origin).resolve().parent,
            Path(spec.origin).resolve().with_suffix(""),
        )
    ):
        raise ImportError(f"{dotted} is also {spec.origin}, which Python finds first: rename one")
    importlib.import_module(dotted)
    return dotted


def _spec(dotted: str) -> Any:
    try:
        return importlib.util.find_spec(dotted)
    except ModuleNotFoundError as error:
        if not dotted.startswith(str(error.name)):
            raise  # a package above it imports what does not exist
        return None


@contextlib.contextmanager
def _recorded(registrations: list[_Registration]) -> Iterator[None]:
    """Note what is registered; names of others may be registered again, which mmcv refuses."""
    register = Registry._register_module
    seen = set()

    def record(self: Registry, module: Any, module_name: Any = None, force: bool = False) -> None:
        names = [module.__name__] if module_name is None else module_name
        for name in [names] if isinstance(names, str) else names:
            before = self.module_dict.get(name)
            register(self, module, name, force=force or (id(self), name) not in seen)
            seen.add((id(self), name))
            registrations.append(_Registration(self, name, before, module))

    Registry._register_module = record
    try:
        yield
    except BaseException:
        for one in reversed(registrations):
            if one.before is None:
                del one.registry.module_dict[one.name]
            else:
                one.registry.module_dict[one.name] = one.before
        raise
    finally:
        Registry._register_module = register


def _place(error: Exception) -> str:
    """Where an error occurred, if that is in a file of the user."""
    if isinstance(error, SyntaxError):
        return ""  # its message has the place
    frames = traceback.extract_tb(error.__traceback__)
    not_of_user = ("importlib", "site-packages", __file__)
    of_user = [f for f in frames if not any(part in f.filename for part in not_of_user)]
    return f", {of_user[-1].filename}:{of_user[-1].lineno}" if of_user else ""


def _remedy(error: Exception, name: str) -> str:
    if Path(name).name == _ORIGINAL:
        return ": set plugin=False to run the config with this project's parts only (docs/own_parts.md)"
    if not isinstance(error, ModuleNotFoundError):
        return ""
    if _ORIGINAL in str(error.name):
        return ": the modules of the original are not here, use those of projects.bevformer (docs/own_parts.md)"
    if name.replace("/", ".").startswith(str(error.name)):
        return ": it must lie in the working directory, next to the config or on PYTHONPATH"
    return ""

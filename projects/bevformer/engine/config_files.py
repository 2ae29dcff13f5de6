"""Evaluation of config files, in which bases follow the variables that a child overrides.

The rules are mmcv's (`_base_`, `_delete_`, `{{_base_.name}}`, `{{ fileDirname }}`), and one more: a
name that a child file or an option gives another value has this value in the bases too, so that
whatever they make of it follows. Dicts of config keys (`model`, `data`, ...) are merged at the end only.
"""

from __future__ import annotations

import ast
import copy
import json
import os.path as osp
import re
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Callable, Mapping, NamedTuple

import yaml

from projects.bevformer.engine.config_keys import READ_KEYS

SUFFIXES = (".py", ".yml", ".yaml", ".json")
_MAX_VALUES = 10**5  # of a JSON or YAML file; the largest published config has 500
_ROUNDS = 6  # evaluations until the variables of a file and of its bases agree
_BASE_VARIABLE = re.compile(r"\{\{\s*_base_\.([\w.]+)\s*\}\}")


def merged(change: Any, value: Any, key: str = "") -> Any:
    """A value after a change, by the rules of mmcv.

    Args:
        change: the new value. A dict is merged into a dict, unless it has `_delete_=True`; into a list
            its keys are indices.
        value: the old value; it stays as it is.
        key: dotted key, for messages.

    Raises:
        TypeError: a dict on a value that has no keys.
        KeyError: an index that a list does not have.
    """
    if not isinstance(change, dict):
        return change
    change = dict(change)
    if change.pop("_delete_", False) or value is None:
        value = {}
    if isinstance(value, list):
        known: Any = {str(index): item for index, item in enumerate(value)}
        for index in change:
            if index not in known:
                raise KeyError(f"{key} is a list of {len(value)} and has no index {index!r}")
            known[index] = merged(change[index], known[index], f"{key}.{index}")
        return list(known.values())
    if not isinstance(value, dict):
        raise TypeError(
            f"{key} is {value!r} and has no keys: give all of it (in a file, with _delete_=True)"
        )
    result = dict(value)
    for name, part in change.items():
        result[name] = merged(part, result.get(name), f"{key}.{name}" if key else str(name))
    return result


def is_variable(name: str, value: Any) -> bool:
    """Whether files are evaluated again where `name` is overridden; dicts of config keys are merged."""
    return name not in READ_KEYS or not isinstance(value, dict)


class _Source(NamedTuple):
    text: str
    run: Callable  # (namespace, after each statement) -> None
    used: set[str]  # names that the file reads


class ConfigFiles:
    """A config file and its bases.

    Attributes:
        path: of the file.
        new_names: file -> (names that its bases do not have, names of the bases), of all files that
            were evaluated.

    Args:
        path: a Python, JSON or YAML file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = osp.abspath(osp.expanduser(str(path)))
        self.new_names: dict[str, tuple[list[str], list[str]]] = {}
        self._sources: dict[str, _Source] = {}
        self._bases: dict[str, list[str]] = {}
        self._names: dict[str, set[str]] = {}  # of a file and its bases
        self._evaluated: dict[tuple, tuple[dict, list[str]]] = {}

    def evaluate(
        self, changes: Mapping[str, Any], path: str | None = None, without: str | None = None
    ) -> dict[str, Any]:
        """The merged config of the file; not to be modified.

        Args:
            changes: name -> change (see `merged`), which counts more than the files.
            path: one of the bases instead of the file.
            without: a variable that the file overrides, see `overrides`, which is left out.

        Raises:
            FileNotFoundError: a base is missing.
            ValueError: a file raises an error, or variables of files depend on each other.
        """
        try:
            return self._evaluate(path or self.path, dict(changes), without)[0]
        except OSError:
            raise  # its message names the missing base
        except (Exception, SystemExit) as error:  # a config is code, it can raise anything
            name, line = type(error).__name__, self._line_of(error)
            reason = f"{line}: {error}" if line else error
            given = "".join(f"; given: {key} = {value!r}" for key, value in changes.items())
            raise ValueError(
                f"config {self.path} cannot be read ({name}): {reason}{given}"
            ) from error

    def overrides(self, path: str) -> list[str]:
        """Variables of its bases that a file overrides."""
        return self._evaluate(path, {}, None)[1]

    @property
    def text(self) -> str:
        """The text of all files, bases first, as mmcv keeps it."""
        return self._text(self.path)

    @property
    def used(self) -> set[str]:
        """Names that any of the files reads."""
        return set().union(*(source.used for source in self._sources.values()))

    def _line_of(self, error: BaseException) -> str:
        """`line 3` or `line 3 of base.py`, or nothing, for what `evaluate` raised."""
        place, frame = "", error.__traceback__
        while frame is not None:
            path = frame.tb_frame.f_code.co_filename
            if path in self._sources:
                place = f"line {frame.tb_lineno}" + (f" of {path}" if path != self.path else "")
            frame = frame.tb_next
        return place

    def _text(self, path: str) -> str:
        own = f"{path}\n{self._source(path).text}"
        return "\n".join([*map(self._text, self._bases.get(path, [])), own])

    def _source(self, path: str) -> _Source:
        if path not in self._sources:
            self._sources[path] = _read(path)
        return self._sources[path]

    def _evaluate(
        self, path: str, changes: dict[str, Any], without: str | None
    ) -> tuple[dict[str, Any], list[str]]:
        """The merged config of a file, and the variables of its bases that it overrides."""
        if path in self._names:  # other names change nothing
            changes = {key: value for key, value in changes.items() if key in self._names[path]}
        key = (path, repr(changes), without)
        if key not in self._evaluated:
            values, bases, own = self._settle(path, changes, without)
            self.new_names[path] = ([name for name in values if name not in bases], list(bases))
            self._names[path] = {*values, *bases}
            self._evaluated[key] = merged(values, bases), list(own)
        return self._evaluated[key]

    def _settle(
        self, path: str, changes: dict[str, Any], without: str | None
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Evaluate a file and its bases until they agree on the variables that the file overrides."""
        own: dict[str, Any] = {}
        for _ in range(_ROUNDS):
            values, bases = self._run(path, own, changes, without)
            found = {
                name: value
                for name, value in values.items()
                if name in bases
                and name != without
                and is_variable(name, bases[name])
                and is_variable(name, value)
                and (name in own or merged(value, bases[name], name) != bases[name])
            }
            if repr(found) == repr(own):  # NaN is not equal to itself
                return values, bases, own
            changing = [name for name in found if repr(found[name]) != repr(own.get(name))]
            own = found
        raise ValueError(
            f"{', '.join(changing)} of {path} and variables of its bases are made of each other and "
            "never come to rest: give one of them a plain value"
        )

    def _run(
        self, path: str, own: dict[str, Any], changes: dict[str, Any], without: str | None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Values of a file, and of its bases with the variables `own` of the file."""
        namespace: dict[str, Any] = {"__file__": path, "__name__": Path(path).stem}
        evaluated: dict[str, dict] = {}

        def bases_without(name: str = "") -> dict[str, Any]:
            left = {key: value for key, value in own.items() if key != name}
            key = name if name in own else ""
            if key not in evaluated:
                evaluated[key] = self._evaluate_bases(path, namespace, {**changes, **left})
            return evaluated[key]

        def base_value(dotted: str) -> Any:
            names = dotted.split(".")
            value = bases_without(names[0])
            for name in names:
                if not isinstance(value, dict) or name not in value:
                    raise KeyError(f"no base has {dotted!r}")
                value = value[name]
            return _unshared(value)

        def override() -> None:
            for name, change in changes.items():
                if name in namespace and is_variable(name, namespace[name]):
                    value = merged(_unshared(change), namespace[name], name)
                    if value != namespace[name]:
                        namespace[name] = value
            if without in namespace:
                namespace[without] = _unshared(bases_without()[without])

        namespace["__base__"] = base_value
        self._source(path).run(namespace, override)
        bases = bases_without()
        values = {
            name: _unshared(value)
            for name, value in namespace.items()
            if not (name.startswith("__") or isinstance(value, ModuleType) or callable(value))
        }
        values.pop("_base_", None)
        return values, bases

    def _evaluate_bases(
        self, path: str, namespace: dict[str, Any], changes: dict[str, Any]
    ) -> dict[str, Any]:
        named = namespace.get("_base_", [])
        named = [named] if isinstance(named, str) else named
        self._bases[path] = [osp.normpath(osp.join(osp.dirname(path), base)) for base in named]
        tree: dict[str, Any] = {}
        for base in self._bases[path]:
            if base not in self._sources and not osp.isfile(base):
                raise FileNotFoundError(f"config {path}: its base {base} does not exist")
            values, _ = self._evaluate(base, changes, None)
            twice = sorted(tree.keys() & values.keys())
            if twice:
                raise KeyError(f"{', '.join(twice)} are in two bases, one of them {base}")
            tree.update(values)
        return tree


def _read(path: str) -> _Source:
    """Parse a file.

    Raises:
        SyntaxError: it is not Python.
    """
    text = Path(path).read_text(encoding="utf-8")
    stem, suffix = osp.splitext(osp.basename(path))
    predefined = {
        "fileDirname": osp.dirname(path),
        "fileBasename": stem + suffix,
        "fileBasenameNoExtension": stem,
        "fileExtname": suffix,
    }
    used = {dotted.split(".")[0] for dotted in _BASE_VARIABLE.findall(text)}
    code = re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda found: predefined.get(found[1], found[0]), text)
    if suffix != ".py":
        code = _BASE_VARIABLE.sub(r'"{{_base_.\1}}"', code)
        return _Source(text, _run_data(code, suffix), used)
    nodes = ast.parse(_BASE_VARIABLE.sub(r'__base__("\1")', code), path).body
    nodes.sort(key=lambda node: not _names_bases(node))  # they are needed first
    statements = [
        compile(ast.Module(body=[node], type_ignores=[]), path, "exec", dont_inherit=True)
        for node in nodes
    ]
    for node in nodes:
        for part in ast.walk(node):
            if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load):
                used.add(part.id)
    return _Source(text, _run_statements(statements), used)


def _names_bases(node: ast.stmt) -> bool:
    """Whether a statement is `_base_ = ` and a list of strings."""
    if not isinstance(node, ast.Assign) or getattr(node.targets[0], "id", None) != "_base_":
        return False
    return not any(isinstance(part, (ast.Name, ast.Call)) for part in ast.walk(node.value))


def _run_statements(statements: list[CodeType]) -> Callable:
    def run(namespace: dict[str, Any], after_each: Callable[[], None]) -> None:
        for statement in statements:
            exec(statement, namespace)
            after_each()

    return run


def _run_data(code: str, suffix: str) -> Callable:
    def run(namespace: dict[str, Any], after_each: Callable[[], None]) -> None:
        values = _parse_data(code, suffix)
        namespace["_base_"] = values.pop("_base_", [])
        namespace.update(_with_base_values(values, namespace["__base__"]))
        after_each()

    return run


def _parse_data(code: str, suffix: str) -> dict[str, Any]:
    """The dict of a JSON or YAML file, of plain values.

    Raises:
        ValueError: it has another form, a tag of Python, or aliases that stand for very much.
    """
    try:
        values = json.loads(code) if suffix == ".json" else _parse_yaml(code)
    except yaml.constructor.ConstructorError as error:
        tag = re.search(r"'tag:yaml.org,2002:(python/.*)'", str(error))
        if not tag:
            raise
        raise ValueError(
            f"line {error.problem_mark.line + 1} has the tag !!{tag.group(1)}, which runs code: YAML "
            "configs hold plain values, a Python config can hold expressions"
        ) from None
    if not isinstance(values, dict):
        raise ValueError("it has no keys with values")
    return values


def _parse_yaml(text: str) -> Any:
    """`yaml.safe_load`, which lets a few aliases of aliases stand for billions of values."""
    loader = yaml.SafeLoader(text)
    root = loader.get_single_node()
    nodes, count = [root] if root else [], 0
    while nodes:
        node = nodes.pop()
        if isinstance(node, yaml.CollectionNode):
            inner = [
                part for item in node.value for part in (item if type(item) is tuple else [item])
            ]
            count += len(inner)
            nodes += inner
        if count > _MAX_VALUES:
            raise ValueError(f"its aliases stand for more than {_MAX_VALUES} values")
    return loader.construct_document(root) if root else None


def _with_base_values(value: Any, base_value: Callable[[str], Any]) -> Any:
    """JSON or YAML with the values of `{{_base_.name}}`."""
    if isinstance(value, dict):
        return {key: _with_base_values(part, base_value) for key, part in value.items()}
    if isinstance(value, list):
        return [_with_base_values(part, base_value) for part in value]
    found = _BASE_VARIABLE.fullmatch(value) if isinstance(value, str) else None
    return base_value(found[1]) if found else value


def _unshared(value: Any) -> Any:
    """A copy in which no dict or list occurs twice: a change of one place must not show in another."""
    if isinstance(value, dict):
        return {key: _unshared(part) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_unshared(part) for part in value)
    return value if isinstance(value, (str, int, float, type(None))) else copy.deepcopy(value)

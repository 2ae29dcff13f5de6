"""Values of a config that were given on the command line or in a child file: they count, or are refused."""

from __future__ import annotations

import copy
import logging
import reprlib
from inspect import signature
from pathlib import Path
from typing import Any, Mapping

from mmcv import Config

from projects.bevformer.engine.config_files import ConfigFiles, merged
from projects.bevformer.engine.config_keys import (
    READ_KEYS,
    SECTIONS,
    SHORT_NAMES,
    UNREAD_ARGUMENTS,
    UNREAD_KEYS,
    nearest_key,
    places_of,
    registered,
)
from projects.bevformer.engine.distributed import launched_as_first
from projects.bevformer.messages import did_you_mean, listed, look_alike

_logger = logging.getLogger(__name__)
_KINDS = ((list, tuple), (dict,), (int, float), (str,))
_CHOICES = {
    "log_level": ("INFO", "DEBUG", "WARNING", "ERROR", "CRITICAL"),
    "mp_start_method": ("fork", "spawn", "forkserver"),
}


def read_config(path: str | Path, options: Mapping[str, Any]) -> Config:
    """Evaluate config files with options.

    Args:
        path: a config file.
        options: dotted key -> value, in the order in which they were given.

    Raises:
        FileNotFoundError: a base is missing.
        ValueError: a file raises an error, an option is not known or does not fit the config, or a
            variable that an option or a child file overrides reaches nothing that is read.
    """
    files = ConfigFiles(path)
    plain = files.evaluate({})
    options = _known(path, options, plain)
    changes = _nested(options)
    _check_fit(options, changes, plain)
    typed = {key.split(".")[0]: key for key in options}
    variables = [name for name in changes if name not in READ_KEYS]
    try:
        tree = files.evaluate(changes)
        final = merged(changes, tree)
    except (ValueError, KeyError) as error:  # the files alone are right
        named = " ".join(typed[name] for name in variables or changes)
        raise ValueError(f"--cfg-options {named}: {error.args[0]}") from error
    for file in list(files.new_names):
        _check_file(files, file)
    for name in variables:
        without = _without(files, {key: part for key, part in changes.items() if key != name})
        if without is None or without[name] == tree[name]:
            continue
        if _read_part(without) != _read_part(tree):
            _check_not_overruled(typed[name], options, changes, without, tree)
            continue
        if name not in SHORT_NAMES or not _has(plain, SHORT_NAMES[name]):
            remedy = _remedy(name, plain)
            raise ValueError(
                f"--cfg-options {typed[name]}: nothing in {path} depends on {name}{remedy}"
            )
        final = merged(_nested({SHORT_NAMES[name]: changes[name]}), final)
    tree = final
    for name in SECTIONS:
        if tree.get(name) and not isinstance(tree[name], dict):
            raise ValueError(f"{name} is {tree[name]!r} in {path}: it must be a dict")
    for name, choices in _CHOICES.items():
        if tree.get(name, choices[0]) not in choices:
            raise ValueError(
                f"{name} is {tree[name]!r} in {path}: it must be one of {', '.join(choices)}"
            )
    if launched_as_first():
        for line in _suspicious_names(files, tree):
            _logger.warning(line)
    return Config(tree, cfg_text=files.text, filename=str(path))


def _without(
    files: ConfigFiles, changes: Mapping[str, Any], path: str | None = None, name: str | None = None
) -> dict[str, Any] | None:
    """The config without a variable; None where the files need it, as one of two that belong together."""
    try:
        return files.evaluate(changes, path, name)
    except ValueError:
        return None


def _read_part(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _read_values(value) for key, value in tree.items() if key in READ_KEYS}


def _read_values(value: Any) -> Any:
    if isinstance(value, dict):
        read = value.keys() - UNREAD_ARGUMENTS
        return {key: _read_values(part) for key, part in value.items() if key in read}
    return [_read_values(part) for part in value] if isinstance(value, list) else value


def _check_not_overruled(
    typed: str,
    options: Mapping[str, Any],
    changes: Mapping[str, Any],
    without: Mapping[str, Any],
    tree: Mapping[str, Any],
) -> None:
    """Refuse a variable if other options give another value to all that depends on it."""
    final = merged(changes, tree)
    if _read_part(final) != _read_part(merged(changes, without)):
        return
    for key in options:
        if key.split(".")[0] in READ_KEYS and _at(tree, key) not in (
            _at(without, key),
            _at(final, key),
        ):
            raise ValueError(
                f"--cfg-options {key} and {typed} contradict each other: {key} is {reprlib.repr(_at(final, key))}, "
                f"{reprlib.repr(_at(tree, key))} by {typed}; give one of them"
            )


def _at(tree: Any, dotted_key: str) -> Any:
    for part in dotted_key.split("."):
        if isinstance(tree, list):
            tree = {str(index): item for index, item in enumerate(tree)}
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def _known(
    path: str | Path, options: Mapping[str, Any], plain: Mapping[str, Any]
) -> dict[str, Any]:
    """The options, each once; short names that are not variables of the files are written out.

    Raises:
        ValueError: an option whose key is neither read nor a variable, or looks misspelt.
    """
    known: dict[str, Any] = {}
    for key, value in options.items():
        first = key.split(".")[0]
        if key in SHORT_NAMES and key not in plain and _has(plain, SHORT_NAMES[key]):
            key = SHORT_NAMES[key]
        elif first not in plain and first not in READ_KEYS:
            raise ValueError(
                f"--cfg-options {key}: nothing reads {first!r}, and no variable of {path} has this "
                f"name; did you mean {nearest_key(first, plain)!r}?"
            )
        _check_spelling(plain, key)
        for short, dotted in SHORT_NAMES.items():  # the last of the two counts
            if key in (short, dotted):
                known.pop(short, None), known.pop(dotted, None)
        known[key] = value
    return known


def _check_spelling(plain: Mapping[str, Any], dotted_key: str) -> None:
    """Refuse a new key that looks like an existing one and that its part does not read."""
    node: Any = plain
    before = ""
    for part in dotted_key.split("."):
        if not isinstance(node, dict) or before == "custom_keys":  # those are patterns
            return
        if part not in node:
            for cls in registered(node.get("type")):
                if part in (*signature(cls).parameters, *getattr(cls, "__published__", ())):
                    return
            hint = did_you_mean(part, node)
            if hint:
                raise ValueError(f"--cfg-options {dotted_key}: the config has no {part!r}{hint}")
            return
        node, before = node[part], part


def _has(plain: Mapping[str, Any], dotted_key: str) -> bool:
    """Whether the config has the dict that a dotted key of two parts belongs to."""
    return bool(plain.get(dotted_key.split(".")[0]))


def _nested(options: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys -> values as dicts in dicts; of two values for one place the last counts."""
    changes: dict[str, Any] = {}
    for key, value in options.items():
        *parents, last = key.split(".")
        node = changes
        for part in parents:
            if not isinstance(node.get(part), dict):
                node[part] = {}
            node = node[part]
        node[last] = copy.deepcopy(value)
    return changes


def _check_fit(
    options: Mapping[str, Any], changes: Mapping[str, Any], plain: Mapping[str, Any]
) -> None:
    """Refuse values of another kind than those of the config: text for a number, one name for a list."""
    for name, change in changes.items():
        typed = " ".join(key for key in options if key.split(".")[0] == name)
        old = plain.get(name)
        try:
            new = merged(change, old, name)
        except (TypeError, KeyError) as error:
            raise ValueError(
                f"--cfg-options {typed} does not fit the config: {error.args[0]}"
            ) from error
        kinds: Any = next((kind for kind in _KINDS if isinstance(old, kind)), object)
        if not (new is None or isinstance(new, kinds)):
            shown = f"[{new}]" if kinds == (list, tuple) else ""
            raise ValueError(
                f"--cfg-options {typed}: {name} is a {type(old).__name__}, and {new!r} is not"
                + (f": write {name}={shown}" if shown else "")
            )


def _check_file(files: ConfigFiles, path: str) -> None:
    """Refuse a variable of the bases that a file gives another value, and on which nothing depends."""
    tree = files.evaluate({}, path)
    for name in files.overrides(path):
        if name in READ_KEYS or name in UNREAD_KEYS:
            continue
        without = _without(files, {}, path, name)
        if without is None:
            continue
        idle = without[name] != tree[name] and _read_part(without) == _read_part(tree)
        # The sections of the file may hold the same value, written out.
        if idle and tree[name] not in places_of(name, tree[name], tree).values():
            raise ValueError(
                f"config {path}: {name} differs from its bases, but nothing depends on it"
                f"{_remedy(name, without)}"
            )


def _remedy(name: str, config: Mapping[str, Any]) -> str:
    places = list(places_of(name, config[name], config))
    if places:
        return f": set {listed(places, 8)}"
    return ", and no key that is read has this name or value"


def _suspicious_names(files: ConfigFiles, tree: Mapping[str, Any]) -> list[str]:
    """A line for each name of a file that no file uses and that may be meant for something else."""
    lines = []
    for path, (new, of_bases) in files.new_names.items():
        for name in new:
            if name in READ_KEYS or name in UNREAD_KEYS or name in files.used:
                continue
            near = look_alike(name, {*READ_KEYS, *of_bases})
            places = places_of(name, tree[name], tree)
            if near:
                lines.append(f"config {path}: nothing reads {name}, did you mean {near}?")
            elif places and tree[name] not in places.values():
                held = ", ".join(f"{key} is {value!r}" for key, value in list(places.items())[:4])
                lines.append(f"config {path}: nothing reads {name} = {tree[name]!r}; {held}")
    return lines

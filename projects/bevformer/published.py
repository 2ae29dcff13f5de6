"""Handling of published configs: arguments without effect, and types that are replaced."""

from __future__ import annotations

import functools
import logging
from typing import Any, Callable, Mapping, Sequence


def published(
    ignores: Sequence[str] = (),
    only: Mapping[str, Any] | None = None,
    unweighted: Sequence[str] = (),
) -> Callable[[type], type]:
    """Class decorator: accept arguments of published configs that have no effect here.

    They must be passed by keyword. Constructor and docstring of the class hold the other arguments only.

    Args:
        ignores: names of arguments that are dropped.
        only: name -> the one supported value.
        unweighted: names of losses or costs that are not computed; their weight must be 0.

    Raises (on construction):
        ValueError: an argument of `only` has another value, one of `unweighted` has a weight.
    """

    def decorate(cls: type) -> type:
        build = cls.__init__  # type: ignore[misc]

        @functools.wraps(build)
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            for name in ignores:
                kwargs.pop(name, None)
            for name, value in (only or {}).items():
                given = kwargs.pop(name, value)
                if (tuple(given) if isinstance(given, list) else given) != value:
                    raise ValueError(
                        f"{name}={given!r} of {cls.__name__} is not supported: set {name}={value!r}"
                    )
            for name in unweighted:
                cfg = kwargs.pop(name, None)
                if cfg and cfg.get("loss_weight", cfg.get("weight", 1.0)) != 0:
                    raise ValueError(f"{cls.__name__} does not compute {name}: set its weight to 0")
            build(self, *args, **kwargs)

        # For the search for keys of a config that nothing reads; a base may have some too.
        names = {*ignores, *(only or {}), *unweighted, *getattr(build, "published_arguments", ())}
        __init__.published_arguments = frozenset(names)  # type: ignore[attr-defined]
        cls.__init__ = __init__  # type: ignore[misc]
        return cls

    return decorate


def translate(
    cfg: Any, replace: Callable[[dict[str, Any]], dict[str, Any]], logger: logging.Logger
) -> Any:
    """Replace parts of a config by this project's, and log each kind of replacement once.

    Args:
        cfg: a config, or any part of it: dicts and lists. It is not modified.
        replace: called with a copy of each dict that has a `type`, innermost first; returns the dict to
            use instead.
        logger: receives a line "type A -> B" per kind of replacement.

    Returns:
        The config to build.
    """
    swapped: dict[str, None] = {}

    def walk(part: Any) -> Any:
        if isinstance(part, (list, tuple)):
            return type(part)([walk(item) for item in part])
        if not isinstance(part, dict):
            return part
        walked = type(part)({key: walk(value) for key, value in part.items()})
        if not isinstance(walked.get("type"), str):
            return walked
        replaced = replace(type(part)(walked))
        if replaced["type"] != walked["type"]:
            swapped[f"{walked['type']} -> {replaced['type']}"] = None
        return replaced

    result = walk(cfg)
    if swapped:
        logger.info("replaced types: %s", ", ".join(swapped))
    return result

"""Handling of published configs: arguments without effect, and types that are replaced."""

from __future__ import annotations

import functools
import logging
from typing import Any, Callable, Mapping, Sequence

# Types that parts of the user have registered in place of OpenMMLab's or this project's: `translate`
# leaves them as they are. `engine.plugins` keeps it.
REPLACED_TYPES: set[str] = set()


def published(
    ignores: Sequence[str] = (),
    only: Mapping[str, Any] | None = None,
    unweighted: Sequence[str] = (),
    why: str = "",
) -> Callable[[type], type]:
    """Class decorator: accept arguments of published configs that have no effect here.

    They must be passed by keyword. Constructor and docstring of the class hold the other arguments only;
    `__published__` of the class is the frozenset of the names given here.

    Args:
        ignores: names of arguments that are dropped: no value of theirs changes a number.
        only: name -> the one supported value. An empty value (None, False, {}) is as good as another.
        unweighted: names of losses or costs that are not computed; their weight must be 0.
        why: reason for `only`, for the message.

    Raises (on construction):
        ValueError: an argument of `only` has another value, one of `unweighted` has a weight.
    """
    reason = f" ({why})" if why else ""

    def decorate(cls: type) -> type:
        build = cls.__init__  # type: ignore[misc]

        @functools.wraps(build)
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            for name in ignores:
                kwargs.pop(name, None)
            for name, value in (only or {}).items():
                given = kwargs.pop(name, value)
                if (tuple(given) if isinstance(given, list) else given) != value and (
                    given or value
                ):
                    raise ValueError(
                        f"{name}={given!r} of {cls.__name__} is not supported{reason}: "
                        f"set {name}={value!r}"
                    )
            for name in unweighted:
                cfg = kwargs.pop(name, None)
                if cfg and cfg.get("loss_weight", cfg.get("weight", 1.0)) != 0:
                    raise ValueError(f"{cls.__name__} does not compute {name}: set its weight to 0")
            build(self, *args, **kwargs)

        cls.__init__ = __init__  # type: ignore[misc]
        names = (*vars(cls).get("__published__", ()), *ignores, *(only or {}), *unweighted)
        cls.__published__ = frozenset(names)  # type: ignore[attr-defined]
        return cls

    return decorate


def merged_config(
    name: str, config: Mapping[str, Any], given: Mapping[str, tuple[str, Any]]
) -> dict[str, Any]:
    """A config, completed by arguments that are another way to write its entries.

    Args:
        name: argument that the config was given as, for messages.
        config: the config.
        given: key of the config -> name and value of the argument that means the same; None is not given.

    Raises:
        ValueError: both are given, with different values.
    """
    merged = dict(config)
    for key, (argument, value) in given.items():
        if value is not None and merged.setdefault(key, value) != value:
            raise ValueError(
                f"{argument}={value!r} and {name}.{key}={merged[key]!r} contradict each other: "
                "set one of the two"
            )
    return merged


def one_per_layer(config: Any, number: int) -> list[Any]:
    """The configs of `number` layers: one config, repeated, or a list of them.

    Raises:
        ValueError: the list has another length.
    """
    configs = [config] * number if isinstance(config, Mapping) else list(config)
    if len(configs) != number:
        raise ValueError(f"num_layers is {number}, transformerlayers is a list of {len(configs)}")
    return configs


def translate(
    cfg: Any, replace: Callable[[dict[str, Any]], dict[str, Any]], logger: logging.Logger
) -> Any:
    """Replace parts of a config by this project's, and log each kind of replacement once.

    Args:
        cfg: a config, or any part of it: dicts and lists. It is not modified.
        replace: called with a copy of each dict that has a `type`, innermost first; returns the dict to
            use instead. Not called for `REPLACED_TYPES`.
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
        if not isinstance(walked.get("type"), str) or walked["type"] in REPLACED_TYPES:
            return walked
        replaced = replace(type(part)(walked))
        if replaced["type"] != walked["type"]:
            swapped[f"{walked['type']} -> {replaced['type']}"] = None
        return replaced

    result = walk(cfg)
    if swapped:
        logger.info("replaced types: %s", ", ".join(swapped))
    return result

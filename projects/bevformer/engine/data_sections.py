"""Sections of a config's `data`: one data set, a list of them, or wrappers around them."""

from __future__ import annotations

from typing import Any, Iterator

# What mmdet3d's build_dataset reads of a wrapper, besides `type`; the rest it drops.
_WRAPPERS = {
    "RepeatDataset": ("dataset", "times"),
    "ClassBalancedDataset": ("dataset", "oversample_thr"),
    "CBGSDataset": ("dataset",),
    "ConcatDataset": ("datasets", "separate_eval"),
}


def inner_sections(section: Any, key: str) -> Iterator[tuple[str, dict]]:
    """The data sets of a section.

    Args:
        section: `cfg.data.train`, for example.
        key: its dotted key.

    Yields:
        Dotted key and options of each data set inside, such as "data.train.datasets.0"; the options are
        the config's own dicts.

    Raises:
        ValueError: a section that is neither a dict nor a list, or a wrapper with keys that it drops.
    """
    if isinstance(section, (list, tuple)) and section:
        for i, inner in enumerate(section):
            yield from inner_sections(inner, f"{key}.{i}")
        return
    if not isinstance(section, dict):
        raise ValueError(
            f"{key} is {section!r}: it must be the dict of a data set, or a list of them"
        )
    name = next((name for name in ("datasets", "dataset") if name in section), None)
    if name is None:
        yield key, section
        return
    wrapper = section.get("type")
    known = _WRAPPERS.get(wrapper)
    dropped = sorted(set(section) - {"type", *known}) if known else ()
    if dropped:
        raise ValueError(
            f"{key} is a {wrapper}, which does not read {', '.join(dropped)}: they belong into "
            f"{key}.{name} (in a child config `_delete_=True` drops the keys of the base)"
        )
    yield from inner_sections(section[name], f"{key}.{name}")


def info_files(options: dict) -> list[str]:
    """Paths of `ann_file`, which may be a list, as mmdet allows; none without one."""
    files = options.get("ann_file") or []
    files = list(files) if isinstance(files, (list, tuple)) else [files]
    if not all(isinstance(file, str) for file in files):
        raise ValueError(
            f"ann_file is {options['ann_file']!r}: it must be a path, or a list of them"
        )
    return files


def one_file_each(section: Any) -> Any:
    """A copy of a section in which a data set with several info files is a list of data sets."""
    if isinstance(section, (list, tuple)):
        return [one_file_each(inner) for inner in section]
    section = section.copy()
    for name in ("datasets", "dataset"):
        if name in section:
            section[name] = one_file_each(section[name])
            return section
    if isinstance(section.get("ann_file"), (list, tuple)):
        parts = [{**section, "ann_file": path} for path in info_files(section)]
        return parts[0] if len(parts) == 1 else parts
    return section

"""Names in messages: long lists cut short, and what a misspelt name may mean."""

from __future__ import annotations

import difflib
from typing import Iterable


def listed(names: Iterable[object], most: int) -> str:
    """`a, b, c`, or `a, b, ...` of more than `most` names."""
    texts = [str(name) for name in names]
    return ", ".join([*texts[:most], "..."] if len(texts) > most else texts)


def look_alike(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` probably is a misspelling of."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.8)), None)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`, did you mean 'x'?`, or nothing where no known name is near."""
    near = look_alike(name, known)
    return f", did you mean {near!r}?" if near else ""

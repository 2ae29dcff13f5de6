"""Names in messages and as files: lists cut short, misspelt names, and names that come from data."""

from __future__ import annotations

import difflib
import hashlib
import re
from typing import Iterable

# Of file systems: separators, what Windows refuses, and the mark of a name that was changed.
_UNSAFE = re.compile(r'[/\\:*?"<>|~]')
_LONGEST = 150  # bytes; file systems take 255, temporary files of `atomic_write` have longer names


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


def printable(text: object, keep: str = "") -> str:
    r"""A text without control characters, such as those that move the cursor: they become `\x1b`.

    Args:
        text: with names from a file.
        keep: characters that stay, such as line ends.
    """
    return "".join(
        char if char.isprintable() or char in keep else char.encode("unicode_escape").decode()
        for char in str(text)
    )


def file_name(name: str, end: str = "") -> str:
    """The name of a file for a name that comes from data, such as a sample token.

    Usual names stay as they are. In others, such as `../a`, separators and control characters become
    `_`, and a hash of the name keeps different ones apart.

    Args:
        name: any text.
        end: what follows it, such as "_bev.png".

    Returns:
        a name without folder.
    """
    safe = _UNSAFE.sub("_", "".join(char if char.isprintable() else "_" for char in name))
    short = safe.encode()[:_LONGEST].decode(errors="ignore")
    if short != name or name.startswith(("-", ".")) or not name.strip(". "):
        short += f"~{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
        short = "_" + short.lstrip("-.")
    return short + end

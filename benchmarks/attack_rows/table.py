"""The table of attacks: one function per row, and what a row that is wrong says."""

import fnmatch
import re
import time
import traceback
from dataclasses import dataclass
from typing import Callable

ROWS = []
# torch.load's own advice about a file that it refuses.
RECOMMENDS = re.compile(r"weights_only(=|`? set to `?)False")


class WrongRow(Exception):
    """A row whose outcome is not the right one; the text says what happened."""


class NotHere(Exception):
    """This machine lacks what a row needs; the text names it."""


@dataclass(frozen=True)
class Row:
    """One attack.

    Attributes:
        name: `table.attack`, or `table.attack[case]`.
        right: what has to happen, in one line.
        attack: called with the `World`; raises WrongRow.
        quick: part of the smaller count in the test suite.
    """

    name: str
    right: str
    attack: Callable
    quick: bool


def row(table, right, cases=None, quick=()):
    """Register a function as one row, or as one row per case.

    Args:
        table: name of the table.
        right: what has to happen; `{case}` stands for the case.
        cases: None, or name -> further arguments of the function.
        quick: True, or the names of the cases that take a second or less.
    """

    def register(function):
        if cases is None:
            ROWS.append(Row(f"{table}.{function.__name__}", right, function, bool(quick)))
        for case, arguments in (cases or {}).items():
            arguments = arguments if isinstance(arguments, tuple) else (arguments,)

            def attack(world, arguments=arguments):
                function(world, *arguments)

            name = f"{table}.{function.__name__}[{case}]"
            ROWS.append(Row(name, right.format(case=case), attack, quick is True or case in quick))
        return function

    return register


def chosen(patterns=()):
    """Rows whose name is, starts with or matches one of the patterns; all rows without patterns.

    Raises:
        ValueError: a pattern that matches nothing.
    """
    found = []
    for pattern in patterns:
        glob = re.sub(r"\[", "[[]", pattern)
        hits = [one for one in ROWS if fnmatch.fnmatch(one.name, f"{glob}*")]
        if not hits:
            raise ValueError(f"--only {pattern}: no row has this name, --list shows all of them")
        found += [one for one in hits if one not in found]
    return found if patterns else list(ROWS)


def judge(one, world):
    """Run a row.

    Returns:
        (verdict, what happened, seconds): the verdict is "right", "WRONG" or "not here".
    """
    start = time.monotonic()
    verdict, what = "right", one.right
    try:
        one.attack(world)
    except WrongRow as error:
        verdict, what = "WRONG", f"{' '.join(str(error).split())} (right: {one.right})"
    except NotHere as error:
        verdict, what = "not here", f"needs {error}"
    except Exception:
        verdict, what = "WRONG", f"the row itself failed:\n{traceback.format_exc()}"
    finally:
        world.clean_up()
    return verdict, what, time.monotonic() - start


def expect(condition, what):
    """Raise WrongRow with `what` unless the condition holds."""
    if not condition:
        raise WrongRow(what)


def end_of(result, lines=3):
    """The last lines of what a process printed, for a message."""
    return " / ".join(result.lines[-lines:])[-600:] or "no output"


def expect_success(result, what="the tool"):
    """Raise WrongRow unless a process ended with exit code 0."""
    expect(result.code == 0, f"{what} ended with {result.code}: {end_of(result)}")


def expect_refusal(result, *words, what=""):
    """Raise WrongRow unless a process ended with an error in one line.

    Args:
        result: of a process.
        words: regular expressions that the last line must contain, in any case.
        what: which try this was, for the message.
    """
    what = f"{what}: " if what else ""
    expect(result.code is not None, f"{what}not at an end after {result.seconds:.0f} s")
    expect(result.code != 0, f"{what}accepted: {end_of(result)}")
    expect(result.code > 0, f"{what}died of signal {-result.code}: {end_of(result)}")
    expect("Traceback" not in result.text, f"{what}traceback: {end_of(result)}")
    last = result.lines[-1] if result.lines else ""
    expect(re.search(r"error|ERROR", last), f"{what}the last line names no error: {end_of(result)}")
    expect(len(last) < 2000, f"{what}the last line has {len(last)} characters: {last[:200]}")
    expect(not RECOMMENDS.search(result.text), f"{what}recommends unsafe loading: {end_of(result)}")
    missing = [word for word in words if not re.search(word, last, re.IGNORECASE)]
    expect(not missing, f"{what}the last line lacks {', '.join(missing)}: {last[:600]}")

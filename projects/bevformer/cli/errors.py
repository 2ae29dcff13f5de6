"""A quiet start of a tool, and errors without a traceback."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import re
import signal
import sys
import warnings
from typing import Any, Iterator

from projects.bevformer.cli.remedies import remedy
from projects.bevformer.interruption import (
    Interrupted,
    kill_children,
    on_ending_signals,
    raise_interrupted,
    tell_torchrun,
)
from projects.bevformer.messages import printable

_CPP_EXTENSION = "torch.utils.cpp_extension"  # "No CUDA runtime is found, using CUDA_HOME="


def silence_notices() -> None:
    """Filter what torch, mmcv and setuptools report whenever they are imported."""
    warnings.filterwarnings("ignore", message="On January 1, 2023, MMCV will release")
    # Of setuptools, which torch imports, on an editable installation of this project.
    warnings.filterwarnings("ignore", message="Module projects was already imported")
    logging.getLogger(_CPP_EXTENSION).setLevel(logging.ERROR)


def quiet_start() -> None:
    """Import torch without its notice about CUDA_HOME, and silence mmcv's about version 2."""
    silence_notices()
    # torch 1.10 prints it. A missing torch is reported by `compat`, with the remedy.
    with contextlib.suppress(ImportError), contextlib.redirect_stdout(io.StringIO()):
        importlib.import_module(_CPP_EXTENSION)


@contextlib.contextmanager
def tool_errors(debug: bool) -> Iterator[None]:
    """End the tool with one line for an error that a user can fix; always leave the process group.

    Args:
        debug: let the traceback through.

    Raises:
        SystemExit: for a ValueError, OSError, FloatingPointError or Ctrl-C without `debug`, and for
            a RuntimeError or MemoryError for which there is a `remedy`.
    """
    try:
        with on_ending_signals(raise_interrupted):
            yield
    except BaseException as error:
        with on_ending_signals(lambda number: None):  # torchrun ends the others when one has ended
            ending = _ending(error, debug)
        if ending is None:
            raise
        raise ending from None
    finally:
        with on_ending_signals(lambda number: None):  # the program ends already
            if _distributed() is not None:
                _distributed().shut_down()
            kill_children()


def _ending(error: BaseException, debug: bool) -> SystemExit | None:
    """How the tool ends for an error; None for an error that shows its traceback."""
    if isinstance(error, KeyboardInterrupt):
        if debug:
            return None
        if not isinstance(error, Interrupted):
            error = Interrupted(signal.SIGINT)
        line = printable(" ".join(str(error).split()))
        if _rank() == 0:  # at once: torchrun may kill this process while it shuts down
            print(line, file=sys.stderr, flush=True)
        _say_end(line, line)
        return SystemExit(128 + error.number)  # the exit code of shells
    if not isinstance(error, Exception):
        return None
    lost = None if _distributed() is None else _distributed().lost_rank(error)
    message = lost or _message(error)
    if debug or message is None:
        line = f"{type(error).__name__}: {' '.join(str(error).split())}"
        _say_end("" if lost else line, line)
        return None
    line = _one_line(message)
    if getattr(error, "of_first_rank", False):  # which reports it
        _say_end("", line)
        return SystemExit(1)
    first = _say_end("" if lost else message, line, "lost rank" if lost else None)
    if _distributed() is None or not _distributed().is_distributed():
        return SystemExit(line if first else 1)
    if first:  # at once: torchrun may kill this process while it shuts down
        print(line, file=sys.stderr, flush=True)
    return SystemExit(1)


def _message(error: Exception) -> str | None:
    """One line for an error that a user can fix."""
    if isinstance(error, (OSError, RuntimeError, MemoryError)):
        loading = sys.modules.get("projects.bevformer.engine.sample_loader")
        # A worker that is killed can show as a broken connection, which is an OSError.
        message = remedy(error, loading.lost_samples() if loading else "")
        if message is not None:
            return message
    if isinstance(error, (ValueError, OSError, FloatingPointError)):
        return _own_message(str(error))
    return None


def _say_end(error: str, line: str, claim: str | None = None) -> bool:
    """See `distributed.say_end`."""
    if _distributed() is None:
        return tell_torchrun(line)
    return _distributed().say_end(error, line, claim)


def _distributed() -> Any:
    """`engine.distributed`, or None: without it this process is in no process group."""
    return sys.modules.get("projects.bevformer.engine.distributed")


def _rank() -> int:
    return 0 if _distributed() is None else _distributed().get_rank()


def _one_line(message: str) -> str:
    return f"error (rank {_rank()}): {printable(' '.join(message.split()))} [--debug shows where]"


def _own_message(text: str) -> str:
    """The error itself; torch puts the traceback of a data loading process in front of it."""
    in_worker = re.search(r"\nOriginal Traceback .*\n[\w.]+: (.*)", text, re.DOTALL)
    return in_worker.group(1) if in_worker else text

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
    """End the tool with one line for an error that a user can mend; always leave the process group.

    Args:
        debug: let the traceback through.

    Raises:
        SystemExit: for a ValueError, OSError, FloatingPointError or Ctrl-C without `debug`, and for
            a RuntimeError or MemoryError for which there is a `remedy`.
    """
    try:
        with on_ending_signals(raise_interrupted):
            yield
    except (ValueError, OSError, FloatingPointError) as error:
        if debug:
            raise
        if getattr(error, "of_first_rank", False):  # which reports it
            sys.exit(1)
        # A worker that is killed can show as a broken connection, which is an OSError.
        message = remedy(error) if isinstance(error, OSError) else None
        raise SystemExit(_one_line(message or _own_message(str(error)))) from None
    except (RuntimeError, MemoryError) as error:
        message = remedy(error)
        if debug or message is None:
            raise
        raise SystemExit(_one_line(message)) from None
    except KeyboardInterrupt as error:
        if debug:
            raise
        if not isinstance(error, Interrupted):
            error = Interrupted(signal.SIGINT)
        if _rank() == 0:  # at once: torchrun may kill this process while it shuts down
            print(printable(" ".join(str(error).split())), file=sys.stderr, flush=True)
        sys.exit(128 + error.number)  # the exit code of shells
    finally:
        with on_ending_signals(lambda number: None):  # the program ends already
            if _distributed() is not None:
                _distributed().shut_down()
            kill_children()


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

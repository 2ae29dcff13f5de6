"""Signals that end a program, its data workers, and the command that goes on. Imports nothing but Python."""

from __future__ import annotations

import contextlib
import ctypes
import json
import multiprocessing
import os
import shlex
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, Iterator

_ENDING = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")  # SLURM warns with the last one
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux's prctl
# Variable with the number of processes that a launcher started, and how it is given to it.
_COMMANDS = {"SLURM_STEP_NUM_TASKS": ("srun", "-n"), "OMPI_COMM_WORLD_SIZE": ("mpirun", "-np")}


class Interrupted(KeyboardInterrupt):
    """A signal ended the program. The text says what was saved and how to go on, or is empty.

    Args:
        number: of the signal; the exit code is 128 + number.
        text: for the user.
    """

    def __init__(self, number: int, text: str = "") -> None:
        super().__init__(text or f"ended by {signal.Signals(number).name}")
        self.number = number


@contextlib.contextmanager
def on_ending_signals(handle: Callable[[int], None]) -> Iterator[None]:
    """Run a block in which `handle(number)` is called when a signal asks the program to end.

    Signals that are ignored, as `nohup` does with SIGHUP, stay ignored; outside of the main thread nothing
    changes.
    """
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for name in _ENDING:
            number = getattr(signal, name, None)  # Windows lacks some
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, lambda number, frame: handle(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def raise_interrupted(number: int) -> None:
    """A handler that ends the block at once."""
    raise Interrupted(number)


def end_at_once(number: int) -> None:
    """End this process and its data workers without finishing anything."""
    kill_children()
    os._exit(128 + number)


def kill_children() -> None:
    """Kill the processes that this one started through multiprocessing, at the end of a program."""
    children = multiprocessing.active_children()
    in_main_thread = threading.current_thread() is threading.main_thread()
    if children and hasattr(signal, "SIGCHLD") and in_main_thread:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would call that an error
    for child in children:
        child.kill()
        child.join()


def leave_to_parent() -> None:
    """In a process of a pool: only the parent ends it, and where that is killed, Linux kills it too.

    A signal that asks the program to end often goes to all its processes (Ctrl-C, SLURM).
    """
    for name in ("SIGINT", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    # The parent's handler is inherited by a fork, and can wait forever for a lock.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        parent = multiprocessing.parent_process()
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
        if parent is not None and os.getppid() != parent.pid:  # it died before
            os._exit(1)


def protect_worker(worker: int = 0) -> None:
    """`leave_to_parent` of a data worker, which lives on after a SIGTERM of others: `worker_init_fn`.

    The parent needs its workers to finish the iteration.
    """
    leave_to_parent()
    if sys.platform != "linux":
        return
    parent = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def end_with_parent() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=end_with_parent, daemon=True).start()


def command_to_go_on(checkpoint: str | Path | None = None) -> str:
    """The command line of this program, with what resumes the run.

    Args:
        checkpoint: of the run; None leaves the choice to --auto-resume.
    """
    resume = ["--auto-resume"] if checkpoint is None else ["--resume-from", str(checkpoint)]
    if Path(sys.argv[0]).name != "train.py":  # called from a program
        return f"resume_from={checkpoint}" if checkpoint else "auto_resume=True"
    arguments, rest = [], iter(sys.argv[1:])
    for argument in rest:
        if argument.startswith("--r"):  # argparse takes abbreviations of --resume-from
            if "=" not in argument:
                next(rest, None)
        elif argument.startswith("resume_from="):  # an option, which --auto-resume would follow
            arguments.append("resume_from=None")
        elif argument != "--auto-resume":
            arguments.append(argument)
    # After the config: an option with several values before it would take the rest.
    return shlex.join([*_launcher(), sys.argv[0], *arguments, *resume])


def tell_torchrun(text: str) -> bool:
    """Leave the reason of this process's end where torchrun looks for it; it prints that at its end.

    The file is read only if the process fails, so that it can be written before.

    Returns:
        Whether this process should print it too; torchrun shows those of all its processes.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path is None:
        return True
    reason = {"py_callstack": text, "timestamp": str(int(time.time()))}
    hidden = f"{path}.{os.getpid()}.tmp"
    with contextlib.suppress(OSError):  # it is said on stderr as well
        with open(hidden, "w") as file:
            json.dump({"message": {"message": text, "extraInfo": reason}}, file)
        os.replace(hidden, path)
    return os.environ.get("LOCAL_RANK") == "0"


def is_launched() -> bool:
    """Whether torchrun, srun or mpirun started this process; they pass signals on to it."""
    several = any(os.environ.get(name, "1") != "1" for name in _COMMANDS)
    return several or "TORCHELASTIC_RUN_ID" in os.environ


def _launcher() -> list[str]:
    if "TORCHELASTIC_RUN_ID" in os.environ:
        processes, port = (os.environ.get(name) for name in ("LOCAL_WORLD_SIZE", "MASTER_PORT"))
        nodes = os.environ.get("GROUP_WORLD_SIZE", "1")
        several = [
            f"--nnodes={nodes}",
            f"--node_rank={os.environ.get('GROUP_RANK')}",
            f"--master_addr={os.environ.get('MASTER_ADDR')}",
        ]
        place = [f"--nproc_per_node={processes}", f"--master_port={port}"]
        return ["torchrun", *(several if nodes != "1" else []), *place]
    for name, command in _COMMANDS.items():
        if os.environ.get(name, "1") != "1":
            return [*command, os.environ[name], "python"]
    return ["python"]

"""The tools in processes of their own: forked from this one, or started anew."""

import atexit
import contextlib
import logging
import multiprocessing.util
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import uuid
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HELPERS = ROOT / "tests" / "helpers"
PARTS = Path(__file__).resolve().parent / "parts"
_MARK = "ATTACKS_PROCESS"


@dataclass
class Result:
    """What became of a process.

    Attributes:
        code: exit code; negative for a signal, None where it was killed for lack of time.
        text: what it and its children printed.
        seconds: wall clock.
        grown: bytes of resident memory at its peak, beyond those of the process it was forked from.
    """

    code: int
    text: str
    seconds: float
    grown: int = 0
    lines: list = field(init=False)

    def __post_init__(self):
        self.lines = [line for line in self.text.splitlines() if line.strip()]


def environment(**variables):
    """Environment of a started process: one thread, this checkout, and the parts of the attacks."""
    path = os.pathsep.join(map(str, (ROOT, HELPERS, PARTS)))
    names = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **names, **{key: str(value) for key, value in variables.items()}}


def command(script, *arguments, processes=1, launcher=()):
    """Words of a command that runs a script of this repository.

    Args:
        script: from the repository root.
        arguments: of the script.
        processes: more than one starts it under torchrun.
        launcher: further options of torchrun, which is then used also for one process.
    """
    words = [str(ROOT / script), *map(str, arguments)]
    if processes == 1 and not launcher:
        return [sys.executable, *words]
    torchrun = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
    if not any(str(word).startswith("--rdzv") for word in launcher):
        torchrun.append(f"--master_port={free_port()}")
    return [sys.executable, *torchrun, *map(str, launcher), *words, "--launcher", "pytorch"]


def free_port():
    """A TCP port that nobody listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


class Started:
    """A process started anew, in a session of its own, whose output goes to a file."""

    def __init__(self, words, log, **variables):
        self.mark = uuid.uuid4().hex
        self.log = Path(log)
        self.start = time.monotonic()
        with open(self.log, "wb") as output:
            self.process = subprocess.Popen(
                words, cwd=ROOT, env=environment(**{_MARK: self.mark, **variables}),
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip

    @property
    def text(self):
        """What has been printed so far."""
        return self.log.read_text(errors="replace")

    def alive(self):
        """Process ids of it and its descendants, also of those that left its session."""
        return [pid for pid in _pids() if self.mark.encode() in _read(f"/proc/{pid}/environ")]

    def wait_for(self, text, seconds=60):
        """Wait until the output contains a text; says whether it did before the end."""
        limit = time.monotonic() + seconds
        while text not in self.text:
            if self.process.poll() is not None or time.monotonic() > limit:
                return text in self.text
            time.sleep(0.02)
        return True

    def finish(self, seconds=120):
        """Wait for the end; kills everything after `seconds`.

        Returns:
            Result.
        """
        try:
            code = self.process.wait(timeout=max(0.0, seconds))
        except subprocess.TimeoutExpired:
            code = None
            self.kill()
        return Result(code, self.text, time.monotonic() - self.start)

    def left_over(self, seconds=1.0):
        """Descendants that are alive so long after the end of the process."""
        limit = time.monotonic() + seconds
        while self.alive() and time.monotonic() < limit:
            time.sleep(0.05)
        return self.alive()

    def kill(self):
        """End it and its descendants."""
        for pid in self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def workers_of(pid):
    """Process ids of the children of a process."""
    return [child for child in _pids() if _parent(child) == pid]


def rank_pid(started, rank):
    """Process id of a rank under torchrun."""
    wanted = f"\0RANK={rank}\0".encode()
    for pid in started.alive():
        ours = wanted in b"\0" + _read(f"/proc/{pid}/environ") + b"\0"
        if ours and _parent(pid) == started.process.pid:
            return pid
    raise LookupError(f"no rank {rank}")


def _pids():
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _read(path):
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def _parent(pid):
    fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    return int(fields[1]) if len(fields) > 1 and fields[0] != b"Z" else None


def _session(pid):
    fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    return int(fields[3]) if len(fields) > 3 and fields[0] != b"Z" else None


def resident_bytes():
    """Resident memory of this process."""
    return int(_read("/proc/self/statm").split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Forked:
    """A script in a fork of this process, which has imported everything: it starts in milliseconds.

    Args:
        script: from the repository root.
        arguments: of the script.
        log: file of its output.
        before: called in the fork before the script, to break a system call for example.
        variables: of the environment.
    """

    def __init__(self, script, arguments, log, before=None, **variables):
        self.log = Path(log)
        self.start = time.monotonic()
        self.memory = resident_bytes()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(script, arguments, before, variables)

    def _run(self, script, arguments, before, variables):
        code = 1
        try:
            os.setsid()
            output = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.stdout, sys.stderr = (os.fdopen(fd, "w", 1, closefd=False) for fd in (1, 2))
            for logger in map(logging.getLogger, logging.root.manager.loggerDict):
                for handler in logger.handlers:
                    if type(handler) is logging.StreamHandler:  # of a run before the fork
                        handler.setStream(sys.stderr)
            os.chdir(ROOT)
            os.environ.update(environment(**variables))
            path = ROOT / script
            sys.argv = [str(path), *map(str, arguments)]
            sys.path[:0] = [str(path.parent), str(HELPERS), str(PARTS)]
            if before is not None:
                before()
            code = _exit_code(path)
        finally:
            threading._shutdown()
            sys.stdout.flush()
            os._exit(code)

    def finish(self, seconds=120):
        """Wait for the end; kills its session after `seconds`.

        Returns:
            Result.
        """
        limit = time.monotonic() + seconds
        code, usage = None, None
        while code is None:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
            elif time.monotonic() > limit:
                self.kill()
                break
            else:
                time.sleep(0.01)
        peak = usage.ru_maxrss * 1024 if usage else 0
        text = self.log.read_text(errors="replace")
        elapsed = time.monotonic() - self.start
        return Result(code, text, elapsed, max(0, peak - self.memory))

    def left_over(self, seconds=1.0):
        """Processes of its session that are alive so long after its end."""
        limit = time.monotonic() + seconds
        while True:
            alive = [pid for pid in _pids() if _session(pid) == self.pid and pid != self.pid]
            if not alive or time.monotonic() > limit:
                return alive
            time.sleep(0.02)

    def kill(self):
        """End it and its session."""
        for pid in {self.pid, *(pid for pid in _pids() if _session(pid) == self.pid)}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def _exit_code(path):
    """Run a script as the interpreter would.

    Returns:
        Its exit code.
    """
    code = 0
    atexit._clear()  # what this process was to do at its end is not the fork's to do
    atexit.register(logging.shutdown)
    atexit.register(multiprocessing.util._exit_function)
    try:
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit as end:
        code = end.code
        if code is None:
            code = 0
        elif not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    return code

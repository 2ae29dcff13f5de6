"""Process groups for torchrun, slurm and mpi, with or without CUDA."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import socket
import subprocess
import sys
import time
import uuid
from typing import Any, Callable, Iterator, NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from projects.bevformer import compat
from projects.bevformer.engine.device import describe_device, select_device
from projects.bevformer.engine.signs_of_life import LostRankError, SignsOfLife, connect
from projects.bevformer.interruption import command_to_go_on, kill_children, tell_torchrun

TIMEOUT_MINUTES = 10
# NCCL ends a process in which a collective timed out without a word: it gets later than the signs of life.
_NCCL_LATER_S = 60
# What gloo, NCCL and the store say when another process is gone.
_LOST = (
    r"Connection (closed by peer|reset by peer|refused)|Broken pipe|Timed out waiting|Socket Timeout|"
    r"NCCL (communicator|error|operation)|[Gg]loo.*(imed out|onnect)|failed to recv|Socket closed|"
    r"onnectFullMesh|Connection was likely closed"
)
_signs: SignsOfLife | None = None


# Launcher -> variables that it sets: rank, world size, local rank, and where rank 0 is.
_VARIABLES = {
    "pytorch": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"),
    "slurm": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NODELIST"),
    "mpi": (
        *("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
        "MASTER_ADDR",
    ),
}


class _Place(NamedTuple):
    rank: int
    world_size: int
    local_rank: int
    init_method: str


def _place_of_this_process(launcher: str) -> _Place:
    """Rank, world size, local rank and rendezvous address that the launcher set."""
    missing = [name for name in _VARIABLES[launcher] if name not in os.environ]
    if missing:
        raise ValueError(
            f"--launcher {launcher}: the environment lacks {', '.join(missing)}; start with "
            "`torchrun --nproc_per_node=N tools/...` for pytorch, `srun` for slurm, `mpirun` for "
            "mpi (with MASTER_ADDR set), or leave --launcher out for one process"
        )
    *numbers, address = (os.environ[name] for name in _VARIABLES[launcher][:4])
    if launcher == "pytorch":
        return _Place(*map(int, numbers), "env://")
    if launcher == "slurm":
        address = os.environ.get("MASTER_ADDR") or _first_host(address)
    port = os.environ.get("MASTER_PORT", "29500")
    return _Place(*map(int, numbers), f"tcp://{address}:{port}")


def _first_host(nodes: str) -> str:
    command = ["scontrol", "show", "hostnames", nodes]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.split()[0]


def _gpu_of_this_process(launcher: str, local_rank: int) -> int:
    """Index among the visible GPUs.

    Slurm and MPI can give each task a GPU of its own (`srun --gpus-per-task=1`); the task then sees
    only that one, as GPU 0, for any local rank. torchrun never does, so there a local rank
    without a GPU means too many processes. Slurm tasks that share the only GPU of a node look the
    same from inside: NCCL stops them with "Duplicate GPU detected".
    """
    one_per_task = launcher in ("slurm", "mpi") and torch.cuda.device_count() == 1
    return 0 if one_per_task else local_rank


def timeout_minutes(cfg: Any) -> float:
    """`dist_params.timeout_minutes` of a config: how long a process waits for the others."""
    return (cfg.get("dist_params") or {}).get("timeout_minutes", TIMEOUT_MINUTES)


def init_process(
    launcher: str = "none",
    device: str | None = None,
    gpu_id: int = 0,
    timeout_minutes: float = TIMEOUT_MINUTES,
) -> torch.device:
    """Choose the device of this process and, with a launcher, join the process group.

    Args:
        launcher: one of `cli.arguments.LAUNCHERS`.
        device: "cpu", "cuda", or None for CUDA where there is one; nccl on CUDA, gloo on CPU.
        gpu_id: index of the GPU without a launcher.
        timeout_minutes: how long a process waits for the others before it ends the run.

    Returns:
        torch.device of this process.

    Raises:
        ValueError: the launcher's environment is missing, there are more processes than GPUs, or a
            GPU is present and PyTorch cannot use it.
    """
    if launcher == "none":
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise ValueError(
                f"torchrun started {os.environ['WORLD_SIZE']} processes: add --launcher pytorch, "
                "otherwise each of them runs on its own and overwrites the others' files"
            )
        chosen = select_device(device, gpu_id)
        if gpu_id and chosen.type == "cpu":
            raise ValueError(
                f"--gpu-id {gpu_id}: the run is on the CPU, {describe_device(chosen)}; leave it out"
            )
        return chosen
    if gpu_id:
        raise ValueError(f"--gpu-id {gpu_id}: the launcher says which GPU, leave it out")
    place = _place_of_this_process(launcher)
    chosen = select_device(device, _gpu_of_this_process(launcher, place.local_rank))
    on_gpu = chosen.type == "cuda"
    if on_gpu:
        os.environ.setdefault(compat.NCCL_TIME_OUTS, "1")
    timeout_s = 60 * timeout_minutes
    dist.init_process_group(
        backend="nccl" if on_gpu else "gloo",
        rank=place.rank,
        world_size=place.world_size,
        timeout=datetime.timedelta(seconds=timeout_s + _NCCL_LATER_S * on_gpu),
        **_meeting_point(place),
        **compat.device_of_process_group(chosen),
    )
    if get_world_size() > 1:
        _start_signs(place, timeout_s)
    return chosen


def _meeting_point(place: _Place) -> dict[str, Any]:
    """Where the processes find each other.

    torchrun's store of one node outlives a restart, and torch 2 would find the addresses of the processes
    before it in there, and wait for them.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    one_agent = os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE")
    uses_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if attempt == "0" or not (one_agent and uses_agent and place.init_method == "env://"):
        return {"init_method": place.init_method}
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(host, port, place.world_size, False)
    return {"store": dist.PrefixStore(f"attempt {attempt}", store)}


def _start_signs(place: _Place, timeout_s: float) -> None:
    global _signs
    address = (os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT"))
    if place.init_method != "env://":
        address = tuple(place.init_method.partition("//")[2].split(":"))
    prefix = f"signs of life {broadcast(uuid.uuid4().hex)}"
    host = socket.gethostname()

    def prepare_error(doing: str) -> None:
        tell_torchrun(
            f"rank {place.rank} (host {host}) was killed (SIGKILL) or crashed at {doing}: if nobody killed it, "
            f"its host was probably out of memory (dmesg names the process); {_how_to_go_on()}"
        )

    def end() -> None:
        message = lost_rank(LostRankError("another process does not answer"))
        line = f"error (rank {place.rank}): {message}"
        if say_end("", line, "lost rank"):
            print(line, file=sys.stderr, flush=True)
        kill_children()
        os._exit(1)

    _signs = connect(
        (address[0], int(address[1])), prefix, place.rank, place.world_size, timeout_s,
        end=end, on_sign=prepare_error,
    )  # fmt: skip


def note(doing: str, bounded: bool = False) -> None:
    """Say what this process does from now on, for the others' message if it ends or stops there.

    Args:
        doing: for example "iteration 7".
        bounded: it takes less than the time-out of collectives.
    """
    if _signs is not None:
        _signs.note(doing, bounded)


def someone_stops(here: bool) -> bool:
    """Whether this process or another one was asked to stop; takes no collective.

    Args:
        here: whether this one was. The others notice it within about a second.
    """
    if _signs is None:
        return here
    if here:
        _signs.stop_all()
    return _signs.is_stopped


def wait_for_all() -> None:
    """Wait for every process as long as all live, however long one of them takes."""
    if _signs is not None:
        _signs.meet(arrived=True, needed=get_world_size())


@contextlib.contextmanager
def _waiting() -> Iterator[None]:
    if _signs is not None:
        _signs.note_wait(True)
    yield
    if _signs is not None:
        _signs.note_wait(False)


def lost_rank(error: BaseException) -> str | None:
    """One line for an error of a collective: which rank is why, and how to go on; None for other errors."""
    if _signs is None or not isinstance(error, RuntimeError):
        return None
    if not isinstance(error, LostRankError) and not re.search(_LOST, str(error)):
        return None
    return f"{_signs.reason()}; {_how_to_go_on()}"


def _how_to_go_on() -> str:
    if os.path.basename(sys.argv[0]) == "eval.py":
        return "an evaluation has to be started again"
    return f"go on with: {command_to_go_on()}"


def say_end(error: str, line: str, claim: str | None = None) -> bool:
    """Leave the reason of an end to the other processes and to torchrun.

    Args:
        error: of this process, one line; empty if it ends because another one did.
        line: what torchrun shows.
        claim: see `SignsOfLife.finish`.

    Returns:
        Whether this process should print the line: not if another one has printed the same.
    """
    prints = tell_torchrun(line)
    if _signs is None:
        return prints
    _signs.claim_end()
    first = _signs.finish(error, claim)
    if error and "go on with" not in error:
        line = f"{line} (host {socket.gethostname()}); when that is fixed, {_how_to_go_on()}"
    tell_torchrun(line)  # the thread may have written its own in between
    return first


def is_distributed() -> bool:
    """Whether this process belongs to a process group."""
    return dist.is_available() and dist.is_initialized()


def launched_as_first() -> bool:
    """Whether a launcher started this process as rank 0, or none did; before a process group exists."""
    return all(os.environ.get(names[0], "0") == "0" for names in _VARIABLES.values())


def get_rank() -> int:
    """Rank of this process, 0 without a process group."""
    return dist.get_rank() if is_distributed() else 0


def get_world_size() -> int:
    """Number of processes, 1 without a process group."""
    return dist.get_world_size() if is_distributed() else 1


def all_gather(obj: Any) -> list:
    """Objects of all ranks, in rank order, on every rank. CPU tensors only: they are pickled."""
    if not is_distributed():
        return [obj]
    gathered = [None] * get_world_size()
    with _waiting():
        dist.all_gather_object(gathered, obj)
    return gathered


def add_up(values: torch.Tensor) -> None:
    """Sum a tensor over all processes, in place."""
    if is_distributed():
        with _waiting():
            dist.all_reduce(values)


def broadcast(obj: Any) -> Any:
    """Rank 0's object, on every rank."""
    return all_gather(obj)[0]


class FirstRankError(OSError):
    """Ends another rank than the first, which reports the error."""

    of_first_rank = True


def on_first_rank(work: Callable[[], Any]) -> Any:
    """Call a function on rank 0 while the others wait.

    Returns:
        What it returned, on every rank.

    Raises:
        Exception: what it raised, on every rank; the attribute `of_first_rank` of the others' copy is
            True, so that it is reported once.
    """
    result, error = None, None
    note("work of rank 0 for all, such as scoring and saving")
    if get_rank() == 0:
        try:
            result = work()
        except Exception as caught:
            error = caught
    if _signs is not None:  # a collective would time out while rank 0 scores for long
        _signs.meet(arrived=get_rank() == 0, needed=1)
    is_plain = error is None or isinstance(error, (OSError, ValueError, RuntimeError))
    result, copy = broadcast((result, error if is_plain else RuntimeError(str(error))))
    if error is not None:
        raise error
    if copy is not None:
        copy.of_first_rank = True
        raise copy
    return result


def average_buffers(module: nn.Module) -> None:
    """Set the floating-point buffers (BatchNorm statistics) of all ranks to their mean."""
    if is_distributed():
        for buffer in module.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer /= get_world_size()


@contextlib.contextmanager
def buffers_of_first_rank(module: nn.Module) -> Iterator[None]:
    """Run a block in which every rank has the buffers (BatchNorm statistics) of rank 0."""
    if not is_distributed():
        yield
        return
    own = [buffer.clone() for buffer in module.buffers()]
    for buffer in module.buffers():
        dist.broadcast(buffer, src=0)
    try:
        yield
    finally:
        for buffer, value in zip(module.buffers(), own):
            buffer.copy_(value)


def shut_down() -> None:
    """Leave the process group, if there is one."""
    global _signs
    if is_distributed():
        # A store's thread of torch 1.10 is woken by the end of a pipe, of which forked workers have a copy.
        kill_children()
    if _signs is not None:
        _signs.leave()
        _signs = None
    if is_distributed():
        if dist.get_backend() == "gloo":
            # In torch 1.10 gloo's threads need the GIL to free the tensors of their last
            # collective, and the group's destructor holds it while it joins them: they go first, or
            # both hang.
            time.sleep(1)
        dist.destroy_process_group()

"""Process groups for torchrun, slurm and mpi, with or without CUDA."""

from __future__ import annotations

import datetime
import os
import subprocess
import time
from typing import Any, Callable, NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from projects.bevformer import compat
from projects.bevformer.engine.device import describe_device, select_device

# The other ranks wait while rank 0 scores the full validation set during training: half a minute.
_TIMEOUT = datetime.timedelta(hours=1)


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


def init_process(
    launcher: str = "none", device: str | None = None, gpu_id: int = 0
) -> torch.device:
    """Choose the device of this process and, with a launcher, join the process group.

    Args:
        launcher: one of `cli.arguments.LAUNCHERS`.
        device: "cpu", "cuda", or None for CUDA where there is one; nccl on CUDA, gloo on CPU.
        gpu_id: index of the GPU without a launcher.

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
    dist.init_process_group(
        backend="nccl" if chosen.type == "cuda" else "gloo",
        init_method=place.init_method,
        rank=place.rank,
        world_size=place.world_size,
        timeout=_TIMEOUT,
        **compat.device_of_process_group(chosen),
    )
    return chosen


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


def barrier() -> None:
    """Wait for every process."""
    if is_distributed():
        dist.barrier()


def all_gather(obj: Any) -> list:
    """Objects of all ranks, in rank order, on every rank. CPU tensors only: they are pickled."""
    if not is_distributed():
        return [obj]
    gathered = [None] * get_world_size()
    dist.all_gather_object(gathered, obj)
    return gathered


def broadcast(obj: Any) -> Any:
    """Rank 0's object, on every rank."""
    return all_gather(obj)[0]


class FirstRankError(OSError):
    """Rank 0 met an error, which it reports itself."""


def on_first_rank(work: Callable[[], Any]) -> Any:
    """Call a function on rank 0 while the others wait.

    Returns:
        What it returned, on every rank.

    Raises:
        OSError, ValueError: what it raised, on rank 0; FirstRankError on the others.
    """
    result, error = None, None
    if get_rank() == 0:
        try:
            result = work()
        except (OSError, ValueError) as caught:
            error = caught
    result, text = broadcast((result, None if error is None else str(error)))
    if error is not None:
        raise error
    if text is not None:
        raise FirstRankError(text)
    return result


def average_buffers(module: nn.Module) -> None:
    """Set the floating-point buffers (BatchNorm statistics) of all ranks to their mean."""
    if is_distributed():
        for buffer in module.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer /= get_world_size()


def broadcast_buffers(module: nn.Module) -> None:
    """Copy the buffers (BatchNorm statistics) of rank 0 to every rank."""
    if is_distributed():
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def shut_down() -> None:
    """Leave the process group, if there is one."""
    if is_distributed():
        if dist.get_backend() == "gloo":
            # In torch 1.10 gloo's threads need the GIL to free the tensors of their last
            # collective, and the group's destructor holds it while it joins them: they go first, or
            # both hang.
            time.sleep(1)
        dist.destroy_process_group()

"""One-line remedies for PyTorch errors about the machine: memory, shared memory, the GPU."""

from __future__ import annotations

import re

_MEMORY_TABLE = "docs/performance.md#training-memory"


def _for_gpu_memory() -> str:
    """What to do about a GPU whose memory is too small, with the recipes that fit into it."""
    import torch

    recipes = "bevformer_low_memory.py or bevformer_bf16.py of configs/bevformer"
    if torch.cuda.is_available():
        from projects.bevformer.engine.memory import fitting_recipes

        device = torch.cuda.get_device_properties(torch.cuda.current_device())
        mib = device.total_memory / 2**20
        named = [f"{name} ({need / 1024:.1f} GiB)" for name, need in fitting_recipes(mib).items()]
        recipes = f"one of configs/bevformer that fits into the {mib / 1024:.0f} GiB of this GPU: "
        recipes += ", ".join(named) or "none does"
    return (
        f"to train, use {recipes}, or their keys ({_MEMORY_TABLE}), or a lower data.samples_per_gpu; "
        "to evaluate, --cfg-options fp16.dtype=bfloat16; see in `nvidia-smi` whether another process "
        "holds memory"
    )


# Part of PyTorch's message, what happened, how to mend it. The first that is found counts.
_REMEDIES = (
    (
        r"CUDA out of memory|CUDA error: out of memory|CU[A-Z]+_STATUS_ALLOC_FAILED",
        "the GPU is out of memory",
        _for_gpu_memory,
    ),
    (
        r"signal: Bus error|\(SIGBUS\)|[Uu]nable to (open|mmap|resize|write).*(shared memory|torch_|/dev/shm)",
        "the data workers are out of shared memory (/dev/shm)",
        "start the container with --ipc=host or --shm-size=16g, or lower data.workers_per_gpu (0 "
        "needs none)",
    ),
    (
        r"DefaultCPUAllocator|signal: Killed|\(SIGKILL\)|Cannot allocate memory",
        "the host is out of memory",
        "lower data.workers_per_gpu or data.samples_per_gpu, or start fewer processes",
    ),
    (
        r"signal: (Segmentation fault|Aborted|Illegal)|\(SIG(SEGV|ABRT|ILL|FPE)\)",
        "a data worker crashed in a library, probably on a broken file",
        "look at the samples that it had, with data.workers_per_gpu=0 or tools/browse_dataset.py",
    ),
    (
        r"no kernel image is available",
        "this build of PyTorch has no kernels for this GPU",
        "install one that has, see docs/install.md, or run with --device cpu; `python "
        "tools/doctor.py` names the GPUs that this build is for",
    ),
    (
        r"connectFullMesh failed|client socket has (failed|timed out)|EADDRINUSE",
        "the processes of this run did not find each other",
        "start all of them within the time-out (dist_params.timeout_minutes), with a port that no other run "
        "uses; after a restart torchrun tries again as often as --max_restarts says",
    ),
    (
        r"Duplicate GPU detected",
        "two processes use the same GPU",
        "start as many processes per node as it has GPUs (slurm: one per task, --gpus-per-task=1)",
    ),
    (
        r"Expected to have finished reduction in the prior iteration",
        "weights that are trained took no part in the loss",
        "set find_unused_parameters=True (--cfg-options), or requires_grad of what is switched off to "
        'False; custom_hooks = [dict(type="GradChecker")] in a run of one process names them',
    ),
    (
        r"DataLoader worker \(pid\(s\) [\d, ]+\) exited unexpectedly",
        "a data worker was killed, probably for lack of shared memory (/dev/shm) or host memory",
        "start the container with --ipc=host or --shm-size=16g, or lower data.workers_per_gpu; "
        "with data.workers_per_gpu=0 the error of the worker shows",
    ),
)


def remedy(error: BaseException | None, workers: str = "") -> str | None:
    """One line for a PyTorch error that a user can mend, or None.

    Args:
        error: an exception; what it was raised from counts too, since a DataLoader names the signal
            that killed a worker there.
        workers: what is known of data workers that died, for the end of the line.
    """
    messages = []
    while error is not None:
        # Python's own MemoryError has no text.
        messages.append("DefaultCPUAllocator" if isinstance(error, MemoryError) else str(error))
        error = error.__cause__ or error.__context__
    text = "\n".join(messages)
    for pattern, what, how in _REMEDIES:
        found = re.search(pattern, text)
        if found or re.search(pattern, workers):
            detail = _detail(text, found) if found else ""
            return f"{what}: {how() if callable(how) else how}{detail}{workers}"
    return f"a data worker has died{workers}" if workers else None


def _detail(text: str, found: re.Match) -> str:
    """PyTorch's own message from the matched words to the end of the line."""
    line = text[found.start() :].splitlines()[0].strip()
    return f" ({line[:200].rstrip('. ')})" if " " in line else ""

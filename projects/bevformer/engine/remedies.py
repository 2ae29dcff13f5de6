"""One line for what PyTorch reports of a machine that is too small or of another kind."""

import re

_MEMORY_TABLE = "docs/performance.md#training-memory"

# Part of PyTorch's message, what happened, how to mend it. The first that is found counts.
_REMEDIES = (
    (
        r"CUDA out of memory|CUDA error: out of memory|CU[A-Z]+_STATUS_ALLOC_FAILED",
        "the GPU is out of memory",
        "to train, use configs/config_low_memory.py or configs/config_bf16.py, or their keys "
        f"({_MEMORY_TABLE}), or a lower data.samples_per_gpu; to evaluate, "
        "--cfg-options fp16.dtype=bfloat16; see in `nvidia-smi` whether another process holds memory",
    ),
    (
        r"signal: Bus error|[Uu]nable to (open|mmap|resize|write).*(shared memory|torch_|/dev/shm)",
        "the data workers are out of shared memory (/dev/shm)",
        "start the container with --ipc=host or --shm-size=16g, or lower data.workers_per_gpu (0 needs none)",
    ),
    (
        r"DefaultCPUAllocator|signal: Killed",
        "the host is out of memory",
        "lower data.workers_per_gpu or data.samples_per_gpu, or start fewer processes",
    ),
    (
        r"no kernel image is available",
        "this build of PyTorch has no kernels for this GPU",
        "install one that has, see docs/install.md, or run with --device cpu; `python tools/doctor.py` "
        "names the GPUs that this build is for",
    ),
    (
        r"Duplicate GPU detected",
        "two processes use the same GPU",
        "start as many processes per node as it has GPUs (slurm: a GPU per task, --gpus-per-task=1)",
    ),
)


def remedy(error):
    """One line for an error of PyTorch that a user can mend, or None.

    Args:
        error: a RuntimeError or MemoryError.
    """
    text = str(error)
    if isinstance(error, MemoryError):
        text = "DefaultCPUAllocator"  # Python's own, of the same kind
    for pattern, what, how in _REMEDIES:
        found = re.search(pattern, text)
        if found:
            return f"{what}: {how}{_detail(text, found)}"
    return None


def _detail(text, found):
    """What PyTorch says around the words that were found, from there to the end of the line."""
    line = text[found.start() :].splitlines()[0].strip()
    return f" ({line[:200].rstrip('. ')})" if " " in line else ""

"""Which device a process computes on, and why it is not a GPU."""

from __future__ import annotations

import glob
import os

import torch

# Oldest driver for the CUDA version that torch was built with, by its major number.
# Source: CUDA Toolkit release notes, minor version compatibility.
_DRIVERS = {"11": 450, "12": 525, "13": 580}
_REMEDY = (
    "`make setup TORCH=auto` installs a torch that fits (docs/install.md); to compute on the CPU "
    "pass --device cpu or set CUDA_VISIBLE_DEVICES= (as for `make demo`)"
)


def select_device(device: str | None = None, gpu_id: int = 0) -> torch.device:
    """Device of a single process.

    Args:
        device: "cpu", "cuda", or None for CUDA where there is one.
        gpu_id: index of the GPU.

    Raises:
        ValueError: that GPU is not visible, or there is a GPU that PyTorch cannot use and `device`
            does not ask for the CPU.
    """
    if device is None:
        device = _default_device()
    if device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():  # device_count() asks NVML, which an old driver answers too
        raise ValueError(f"GPU {gpu_id} was requested, but {_unusable(_cuda_error())}")
    count = torch.cuda.device_count()
    if gpu_id >= count:
        raise ValueError(
            f"GPU {gpu_id} was requested, but only {count} are visible: check `nvidia-smi` "
            "and CUDA_VISIBLE_DEVICES, or run with --device cpu"
        )
    torch.cuda.set_device(gpu_id)
    return torch.device("cuda", gpu_id)


def describe_device(device: torch.device) -> str:
    """One line for the log: the device and, for a CPU, why it is not a GPU."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    if torch.cuda.is_available():
        return "cpu (as asked for; a GPU is available)"
    if _gpus_are_hidden():
        return "cpu (CUDA_VISIBLE_DEVICES hides all GPUs)"
    return f"cpu ({_cuda_error()})"


def _default_device() -> str:
    """Return "cuda" if PyTorch can use a GPU, "cpu" if there is none.

    Raises:
        ValueError: there is one, but its driver is too old or broken, or torch has no CUDA:
            training on the CPU instead would take weeks, so it has to be asked for.
    """
    if torch.cuda.is_available():
        return "cuda"
    if _gpus_are_hidden():
        return "cpu"
    error = _cuda_error()
    no_cuda = "not compiled with CUDA" in error or "no NVIDIA driver" in error
    if no_cuda and not _gpu_files():
        return "cpu"
    if "No CUDA GPUs are available" in error and not _gpus_are_expected():
        return "cpu"
    raise ValueError(_unusable(error))


def _unusable(error: str) -> str:
    return f"PyTorch cannot use the GPU: {error}{_needed_driver()}; {_REMEDY}"


def _gpus_are_hidden() -> bool:
    """Whether CUDA_VISIBLE_DEVICES hides all GPUs, as "" and "-1" do."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible is not None and visible.strip() in ("", "-1", "NoDevFiles")


def _gpus_are_expected() -> bool:
    return bool(os.environ.get("CUDA_VISIBLE_DEVICES") or _gpu_files())


def _gpu_files() -> list[str]:
    """Device files that the NVIDIA driver creates, one per card."""
    return glob.glob("/dev/nvidia[0-9]*")


def _cuda_error() -> str:
    """PyTorch's own reason why CUDA does not start, in one line."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return " ".join(str(error).split()).rstrip(".")
    return "PyTorch finds no GPU"


def _needed_driver() -> str:
    version = torch.version.cuda or ""
    driver = _DRIVERS.get(version.split(".")[0])
    if driver is None:
        return ""
    needs = f"is built for CUDA {version}, which needs driver {driver} or newer"
    return f". torch {torch.__version__} {needs}"

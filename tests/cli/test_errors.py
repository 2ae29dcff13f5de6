"""Errors of a tool end in one line, also those of data loading processes."""

import os
import re
import signal
import time
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from projects.bevformer.cli.errors import tool_errors
from projects.bevformer.engine import distributed, sample_loader


class Broken:
    """A data set that fails while it handles another error, as readers do."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        try:
            [][index]
        except IndexError as error:
            raise ValueError("image a.jpg: is cut off\nand torn") from error


@pytest.fixture
def broken_batches():
    """Batches of a worker that fails."""
    batches = iter(DataLoader(Broken(), num_workers=1))
    yield batches
    batches._shutdown_workers()  # the garbage collector takes five seconds for it


def test_errors_of_workers_are_one_line(broken_batches):
    with pytest.raises(SystemExit) as stop, tool_errors(debug=False):
        next(broken_batches)
    assert stop.value.code == (
        "error (rank 0): image a.jpg: is cut off and torn [--debug shows where]"
    )


def test_debug_lets_the_error_through(broken_batches):
    with pytest.raises(ValueError, match="Original Traceback"), tool_errors(debug=True):
        next(broken_batches)


def test_an_error_of_the_first_rank_is_reported_by_that_alone():
    error = OSError("a.pth cannot be written")
    error.of_first_rank = True
    with pytest.raises(SystemExit) as stop, tool_errors(debug=False):
        raise error
    assert stop.value.code == 1


def test_a_rank_reports_before_it_leaves_the_group(monkeypatch, capsys):
    reported = []
    monkeypatch.setattr(distributed, "is_distributed", lambda: True)
    monkeypatch.setattr(distributed, "get_rank", lambda: 3)
    monkeypatch.setattr(distributed, "shut_down", lambda: reported.append(capsys.readouterr().err))
    with pytest.raises(SystemExit) as stop, tool_errors(debug=False):
        raise ValueError("a.pth is broken")
    assert stop.value.code == 1
    assert reported == ["error (rank 3): a.pth is broken [--debug shows where]\n"]


def test_non_finite_loss_is_one_line():
    with pytest.raises(SystemExit, match="loss is not finite"), tool_errors(debug=False):
        raise FloatingPointError("loss is not finite at epoch 1")


def test_ctrl_c_prints_no_traceback():
    with pytest.raises(SystemExit) as stop, tool_errors(debug=False):
        raise KeyboardInterrupt
    assert stop.value.code == 130
    with pytest.raises(KeyboardInterrupt), tool_errors(debug=True):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("message", "named"),
    [
        (
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB",
            [
                "bevformer_low_memory.py",
                "bevformer_bf16.py",
                "data.samples_per_gpu",
                "Tried to allocate",
            ],
        ),
        (
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
            ["GPU is out"],
        ),
        (
            "[enforce fail at alloc_cpu.cpp:114] err == 0. DefaultCPUAllocator: can't allocate memory: "
            "you tried to allocate 4096 bytes. Error code 12 (Cannot allocate memory)",
            ["the host is out of memory", "workers_per_gpu", "4096 bytes"],
        ),
        (
            "DataLoader worker (pid 17) is killed by signal: Bus error. It is possible that "
            "dataloader's workers are out of shared memory.",
            ["--shm-size", "--ipc=host", "workers_per_gpu"],
        ),
        (
            "unable to write to file </torch_17_3>: No space left on device (28)",
            ["--shm-size", "--ipc=host"],
        ),
        ("DataLoader worker (pid 17) is killed by signal: Killed. ", ["the host is out of memory"]),
        (
            "CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors",
            ["docs/install.md", "--device cpu", "doctor"],
        ),
        (
            "Gloo connectFullMesh failed with [pair.cc:152] timed out connecting: SO_ERROR",
            ["did not find each other", "timeout_minutes", "--max_restarts"],
        ),
        (
            "NCCL error in: ProcessGroupNCCL.cpp, invalid usage\nLast error:\nDuplicate GPU detected : "
            "rank 1 and rank 0 both on CUDA device 1a000",
            ["same GPU", "--gpus-per-task", "rank 1 and rank 0"],
        ),
        (
            "Expected to have finished reduction in the prior iteration before starting a new one. ",
            ["took no part in the loss", "find_unused_parameters=True", "GradChecker"],
        ),
    ],
)
def test_errors_about_the_machine_are_one_line(message, named):
    with pytest.raises(SystemExit) as stop, tool_errors(debug=False):
        raise RuntimeError(message)
    line = stop.value.code
    assert "\n" not in line
    assert all(name in line for name in named), line
    with pytest.raises(RuntimeError, match=re.escape(message[:20])), tool_errors(debug=True):
        raise RuntimeError(message)


def test_memory_errors_are_one_line():
    with pytest.raises(SystemExit, match="the host is out of memory"), tool_errors(debug=False):
        raise MemoryError
    with pytest.raises(SystemExit, match="GPU is out of memory"), tool_errors(debug=False):
        raise getattr(torch.cuda, "OutOfMemoryError", RuntimeError)(
            "CUDA out of memory. Tried to allocate 20.00 MiB"
        )


@pytest.mark.parametrize(
    ("gib", "named"),
    [
        (1, "fits into the 1 GiB of this GPU: none does,"),
        (6, "of this GPU: bevformer_bf16.py (5.6 GiB), bevformer_tiny.py (4.2 GiB), "),
        (24, "of this GPU: bevformer_base.py (17.5 GiB), "),
    ],
)
def test_out_of_gpu_memory_names_the_recipes_that_fit(monkeypatch, gib, named):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    total = SimpleNamespace(total_memory=gib * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: total)
    with pytest.raises(SystemExit) as stop, tool_errors(debug=False):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
    assert named in stop.value.code
    assert ("bevformer_base.py" in stop.value.code) == (gib == 24)


def test_names_in_errors_have_no_control_characters():
    with pytest.raises(SystemExit) as stop, tool_errors(debug=False):
        raise ValueError("sample a\x1b[2J\rb\nc \u202e\udc80 is missing")
    assert stop.value.code.startswith(
        r"error (rank 0): sample a\x1b[2J b c \u202e\udc80 is missing ["
    )


def test_other_runtime_errors_keep_their_traceback():
    with pytest.raises(RuntimeError, match="sizes of tensors"), tool_errors(debug=False):
        raise RuntimeError("The sizes of tensors must match")


class DyingWorker(Dataset):
    """Samples with tokens; a worker is killed by one of them."""

    def __init__(self, fatal, number):
        self.fatal, self.number = fatal, number
        self.data_infos = [{"token": f"s{index}"} for index in range(12)]

    def __len__(self):
        return len(self.data_infos)

    def __getitem__(self, index):
        if self.data_infos[index]["token"] == self.fatal:
            time.sleep(0.2)  # what came before is read
            os.kill(os.getpid(), self.number)
        return index


@pytest.mark.parametrize(
    ("workers", "number", "reason"),
    [
        (1, signal.SIGKILL, "host is out of memory"),
        (2, signal.SIGSEGV, "broken file"),
    ],
)
def test_a_dead_worker_names_its_samples(workers, number, reason, monkeypatch):
    monkeypatch.setattr(sample_loader, "_loaders", weakref.WeakSet())
    loader = sample_loader.SampleLoader(
        DyingWorker("s6", number),
        batch_size=2,
        num_workers=workers,
        persistent_workers=workers == 2,
    )
    with pytest.raises(SystemExit) as stop, tool_errors(debug=False):
        list(loader)
    line = stop.value.code
    assert reason in line
    # Batch 3, with s6, and the one that this worker was to read next.
    following = "s8, s9" if workers == 1 else "s10, s11"
    assert f"({signal.Signals(number).name}) had the samples s6, s7, {following} [" in line, line

"""Choice of the device on machines that are pretended: none of these tests needs a GPU."""

import os

import pytest
import torch
from mmcv import Config

from projects.bevformer import compat
from projects.bevformer.engine import device as module
from projects.bevformer.engine import distributed
from projects.bevformer.engine.device import describe_device, select_device

TOO_OLD = "The NVIDIA driver on your system is too old (found version 12020).\nPlease update it."
NO_DRIVER = "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU"
NO_GPU = "No CUDA GPUs are available"
CPU_BUILD = "Torch not compiled with CUDA enabled"


@pytest.fixture(autouse=True)
def _no_gpu_variables(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def broken_cuda(monkeypatch):
    """Pretend that CUDA does not start, for a reason and with some device files."""

    def pretend(message, cards=(), version="13.0"):
        def init():
            raise (AssertionError if message == CPU_BUILD else RuntimeError)(message)

        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
        monkeypatch.setattr(torch.cuda, "init", init)
        monkeypatch.setattr(torch.version, "cuda", version)
        monkeypatch.setattr(module.glob, "glob", lambda pattern: list(cards))

    return pretend


@pytest.fixture
def gpus(monkeypatch):
    """Pretend a number of working GPUs."""

    def pretend(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100")

    return pretend


@pytest.mark.parametrize(("version", "driver"), [("13.0", 580), ("12.4", 525), ("11.3", 450)])
def test_old_driver_is_an_error_unless_cpu_is_requested(broken_cuda, version, driver):
    broken_cuda(TOO_OLD, cards=["/dev/nvidia0"], version=version)
    with pytest.raises(ValueError, match=f"too old.*CUDA {version}, which needs driver {driver}"):
        select_device()
    with pytest.raises(ValueError, match="make setup.*--device cpu"):
        select_device()
    with pytest.raises(ValueError, match="GPU 0 was requested, but .*too old"):
        select_device("cuda")
    assert select_device("cpu") == torch.device("cpu")


def test_gpus_that_pytorch_does_not_find_are_an_error(broken_cuda, monkeypatch):
    broken_cuda(NO_GPU, cards=["/dev/nvidia0"])
    with pytest.raises(ValueError, match=NO_GPU):
        select_device()
    broken_cuda(NO_GPU)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    with pytest.raises(ValueError, match=NO_GPU):
        select_device()


@pytest.mark.parametrize("message", [NO_DRIVER, CPU_BUILD, NO_GPU])
def test_no_gpu_falls_back_to_cpu_and_logs_why(broken_cuda, message):
    broken_cuda(message)
    device = select_device()
    assert device == torch.device("cpu")
    assert describe_device(device) == f"cpu ({message})"


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_hidden_gpus_fall_back_to_cpu(broken_cuda, monkeypatch, hidden):
    broken_cuda(TOO_OLD, cards=["/dev/nvidia0"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert describe_device(select_device()) == "cpu (CUDA_VISIBLE_DEVICES hides all GPUs)"


def test_the_log_names_the_gpu_and_a_choice_of_the_cpu(gpus):
    gpus(2)
    assert describe_device(select_device(gpu_id=1)) == "cuda:1 (H100)"
    assert describe_device(select_device("cpu")) == "cpu (as asked for; a GPU is available)"


@pytest.fixture
def join(monkeypatch):
    """Join a pretended process group; returns device and arguments of the group."""

    def join(launcher, local_rank, device=None, **options):
        arguments = {}
        place = distributed._Place(local_rank, 4, local_rank, "env://")
        monkeypatch.setattr(distributed, "_place_of_this_process", lambda launcher: place)
        monkeypatch.setattr(
            distributed.dist, "init_process_group", lambda **options: arguments.update(options)
        )
        return distributed.init_process(launcher, device, **options), arguments

    return join


@pytest.mark.parametrize("launcher", ["slurm", "mpi"])
def test_tasks_with_a_gpu_each_take_gpu_0(gpus, join, launcher):
    gpus(1)
    assert join(launcher, 3)[0] == torch.device("cuda", 0)
    gpus(4)
    assert join(launcher, 3)[0] == torch.device("cuda", 3)
    gpus(2)
    with pytest.raises(ValueError, match="GPU 3 was requested, but only 2 are visible"):
        join(launcher, 3)


def test_more_torchrun_processes_than_gpus_is_an_error(gpus, join):
    gpus(1)
    with pytest.raises(ValueError, match="GPU 3 was requested, but only 1 are visible"):
        join("pytorch", 3)


def test_process_group_is_bound_to_its_gpu(gpus, join, monkeypatch):
    gpus(4)
    monkeypatch.setattr(compat, "_GROUPS_TAKE_A_DEVICE", True)
    assert join("pytorch", 3)[1]["device_id"] == torch.device("cuda", 3)
    assert "device_id" not in join("pytorch", 3, "cpu")[1]
    monkeypatch.setattr(compat, "_GROUPS_TAKE_A_DEVICE", False)
    assert "device_id" not in join("pytorch", 3)[1]


@pytest.mark.parametrize(
    ("options", "seconds"),
    [({}, 600), ({"dist_params": {"backend": "nccl", "timeout_minutes": 0.5}}, 30)],
)
def test_time_out_of_collectives(gpus, join, monkeypatch, options, seconds):
    gpus(4)
    monkeypatch.delenv(compat.NCCL_TIME_OUTS, raising=False)
    minutes = distributed.timeout_minutes(Config(options))
    assert join("pytorch", 3, "cpu", timeout_minutes=minutes)[1]["timeout"].seconds == seconds
    assert compat.NCCL_TIME_OUTS not in os.environ
    # NCCL's own time-out ends a process without a word: the thread of signs of life comes before it.
    assert join("pytorch", 3, timeout_minutes=minutes)[1]["timeout"].seconds == seconds + 60
    assert os.environ[compat.NCCL_TIME_OUTS] == "1"
    monkeypatch.setenv(compat.NCCL_TIME_OUTS, "0")
    join("pytorch", 3)
    assert os.environ[compat.NCCL_TIME_OUTS] == "0"


@pytest.mark.parametrize("message", [CPU_BUILD, NO_DRIVER])
def test_gpu_that_this_torch_cannot_use_is_an_error(broken_cuda, message):
    """A CPU build of torch, or a container that lacks the driver's libraries."""
    broken_cuda(message, cards=["/dev/nvidia0"], version=None)
    with pytest.raises(ValueError, match="PyTorch cannot use the GPU.*--device cpu"):
        select_device()

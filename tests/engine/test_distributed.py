import json
import os
import subprocess
import sys

import pytest
import torch
from dummy_task import REPOSITORY, DummyDetector
from test_tools import load_tool
from tiny_bevformer import build_detector
from tool_runs import free_port

from projects.bevformer import compat
from projects.bevformer.engine import distributed, training_model
from projects.bevformer.engine.distributed import init_process, select_device
from projects.bevformer.engine.training_model import TrainingModel

LAUNCHER_VARIABLES = [
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT",
    "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NODELIST",
    "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for name in LAUNCHER_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("launcher", "variable"),
    [("pytorch", "RANK"), ("slurm", "SLURM_PROCID"), ("mpi", "OMPI_COMM_WORLD_RANK")],
)
def test_launcher_without_its_environment_is_an_error(launcher, variable):
    with pytest.raises(
        ValueError, match=f"--launcher {launcher}: the environment lacks {variable}"
    ):
        init_process(launcher)


def test_torchrun_without_the_flag_is_an_error(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="add --launcher pytorch"):
        init_process("none")


def test_slurm_and_mpi_places(monkeypatch):
    for name, value in {
        "MASTER_ADDR": "node1", "MASTER_PORT": "1234", "SLURM_PROCID": "5", "SLURM_NTASKS": "8",
        "SLURM_LOCALID": "1", "SLURM_NODELIST": "node[1-2]", "OMPI_COMM_WORLD_RANK": "2",
        "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    assert distributed._place_of_this_process("slurm") == (5, 8, 1, "tcp://node1:1234")
    assert distributed._place_of_this_process("mpi") == (2, 4, 0, "tcp://node1:1234")


def test_a_gpu_that_is_not_used_is_an_error(monkeypatch):
    assert distributed.init_process("none", "cpu", 0).type == "cpu"
    with pytest.raises(ValueError, match="--gpu-id 5: the run is on the CPU, cpu .*; leave it out"):
        distributed.init_process("none", "cpu", 5)
    with pytest.raises(ValueError, match="--gpu-id 5: the launcher says which GPU, leave it out"):
        distributed.init_process("pytorch", "cpu", 5)


def test_missing_gpu_is_an_error():
    with pytest.raises(ValueError, match="GPU 99 was requested"):
        select_device("cuda", 99)
    assert select_device("cpu") == torch.device("cpu")


def test_single_process_is_rank_zero():
    assert (distributed.get_rank(), distributed.get_world_size()) == (0, 1)
    assert distributed.all_gather("a") == ["a"]
    assert distributed.broadcast("a") == "a"


def torchrun(arguments, environment, timeout=240):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}",
        *map(str, arguments),
    ]  # fmt: skip
    done = subprocess.run(
        command, env=environment, timeout=timeout, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


@pytest.mark.slow
def test_two_processes_stay_bit_equal(tmp_path, tool_environment):
    here = os.path.dirname(os.path.abspath(__file__))
    script = os.path.join(here, "two_process_training.py")
    torchrun([script, tmp_path / "report.json"], tool_environment)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["backend"] == "gloo"
    assert report["gradients_equal"] == [True] * 20
    assert report["losses_differ_by_rank"]
    assert report["parameters_equal"]
    assert report["gradient_is_the_mean_over_ranks"]
    # What only rank 1 has read ends both ranks, or both leave it out and go on.
    for what, problem in (
        ("loss", "the loss is nan (loss_cls is nan"),
        ("gradient", "6 of 6 grad"),
    ):
        for message in report["non_finite"][f"{what}, stop"]:
            assert message.startswith(f"iteration 7 (epoch 1): {problem}")
            assert message.endswith("; samples s0f1 of rank 1")
        after = [[True, True, True], [False, False, True]]
        assert report["non_finite"][f"{what}, skip"] == [after, after]
    # Both read what only the folder of rank 0 has, and both name its broken file.
    for rank, (found, epoch, same, files, message) in enumerate(report["resumed"]):
        assert (found, epoch, same) == ("work/epoch_1.pth", 1, True)
        assert files == ([] if rank else ["epoch_1.pth"])
        assert "broken.pth" in message
        assert "truncated or not a torch file" in message
    # An error of rank 0 ends both, and a result of rank 0 is what both get.
    assert report["full_disk"] == [["PermissionError", copied, 0] for copied in (False, True)]
    assert report["mean_statistics"] == [[0.5, 0], [0.5, 1]]


@pytest.mark.slow
def test_activation_checkpoints_work_with_two_processes(tmp_path, tool_environment):
    here = os.path.dirname(os.path.abspath(__file__))
    script = os.path.join(here, "two_process_checkpoints.py")
    torchrun([script, tmp_path / "report.json"], tool_environment)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["parameters"] > 100
    assert report["same_on_both_ranks"]
    assert report["named_alike"]
    assert report["largest_difference"] < 1e-3


def test_gradients_are_views_of_the_buckets(monkeypatch):
    options = {}

    def wrap(module, **given):
        options.update(given)
        return module

    monkeypatch.setattr(training_model, "is_distributed", lambda: True)
    monkeypatch.setattr(training_model, "DistributedDataParallel", wrap)
    TrainingModel(DummyDetector(), torch.device("cpu"))
    assert options["gradient_as_bucket_view"] is True


def test_reentrant_checkpoints_with_find_unused_parameters_are_refused(monkeypatch):
    monkeypatch.setattr(training_model, "is_distributed", lambda: True)
    monkeypatch.setattr(compat, "NON_REENTRANT_CHECKPOINTS", False)
    detector = build_detector(with_cp=True)
    with pytest.raises(ValueError, match="img_backbone has with_cp=True"):
        TrainingModel(detector, torch.device("cpu"), find_unused_parameters=True)


@pytest.mark.slow
def test_tools_in_two_processes_give_the_result_file_of_one(
    tmp_path, config_path, tool_environment, monkeypatch, quick
):
    train, evaluate = (str(REPOSITORY / "tools" / name) for name in ("train.py", "eval.py"))
    launcher, cpu = ["--launcher", "pytorch"], ["--device", "cpu"]  # a machine may have one GPU
    one_epoch = ["--cfg-options", "total_epochs=1", "runner.max_epochs=1"]
    arguments = [config_path, *launcher, *cpu, "--seed", 0, *one_epoch]
    torchrun([train, *arguments], tool_environment)

    flags = [config_path, tmp_path / "work" / "epoch_1.pth", *cpu, "--work-dir"]
    torchrun([evaluate, *flags, tmp_path / "two", *launcher], tool_environment)
    monkeypatch.setattr("sys.argv", [evaluate, *map(str, flags), str(tmp_path / "one")])
    load_tool("eval").main()
    files = [
        tmp_path / "one" / "results_nusc.json",
        tmp_path / "two" / "results_nusc.json",
        tmp_path / "work" / "eval" / "epoch_1" / "results_nusc.json",
    ]
    assert len({path.read_bytes() for path in files}) == 1

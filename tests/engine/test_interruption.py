"""Signals end a training run after its iteration, and the run that goes on is equal to one that was not ended."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mmcv.runner import HOOKS, Hook
from resume_cases import plain
from tool_runs import free_port

from projects.bevformer import interruption
from projects.bevformer.cli.errors import tool_errors
from projects.bevformer.engine import interruption as engine_interruption
from projects.bevformer.engine.checkpoint import load_checkpoint
from projects.bevformer.interruption import Interrupted, command_to_go_on, on_ending_signals

SCRIPT = Path(__file__).with_name("signal_run.py")
NUMBERS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1]


class SendSignal(Hook):
    """Sends a signal to this process, as a scheduler does."""

    def __init__(self, number, stage, iteration=0):
        self.number, self.iteration = number, iteration
        setattr(self, stage, self.send)

    def send(self, runner):
        if runner.iter >= self.iteration:
            os.kill(os.getpid(), self.number)
            self.number = 0  # a signal that tests only whether the process is there


@pytest.fixture(autouse=True)
def _hook(monkeypatch):
    monkeypatch.setitem(HOOKS.module_dict, "SendSignal", SendSignal)


@pytest.fixture(autouse=True)
def _no_signal_is_ignored():
    """As a shell ignores SIGINT, and nohup SIGHUP, for what runs in the background."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in NUMBERS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def sends(number, stage, iteration=0):
    hook = {"type": "SendSignal", "number": int(number), "stage": stage, "iteration": iteration}
    return {"custom_hooks": [hook]}


def final(work_dir, name="epoch_2.pth"):
    return plain(load_checkpoint(work_dir / name))


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("runner", ["epoch", "iter"])
def test_iteration_is_finished_and_saved(run, number, runner):
    """Within the second iteration of the second epoch of five."""
    options, name = {"lr_config": None}, "epoch_2.pth"
    if runner == "iter":
        options["runner"] = {"type": "IterBasedRunner", "max_iters": 10, "_delete_": True}
        options.update({"total_epochs": None, "evaluation": None})
        name = "iter_10.pth"
    with pytest.raises(Interrupted) as ended:
        run({**options, **sends(number, "before_train_iter", 6)})
    work_dir = run(options, work_dir="whole")
    stopped = work_dir.with_name("work")
    meta = load_checkpoint(stopped / "interrupted.pth")["meta"]
    assert (meta["epoch"], meta["iter"], meta["iter_in_epoch"]) == (1, 7, 2)
    assert meta["interrupted"] == signal.Signals(number).name
    assert ended.value.number == number
    assert f"after iteration 7, saved in {stopped}/interrupted.pth" in str(ended.value)
    log = next(stopped.glob("*.log")).read_text()
    assert "[2/5]" in log.split("Epoch [2]")[-1] if runner == "epoch" else "Iter [7/10]" in log
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
    run(options, auto_resume=True)
    assert final(stopped, name) == final(work_dir, name)


def test_end_of_an_epoch_is_saved_and_its_evaluation_made_later(run):
    with pytest.raises(Interrupted):
        run(sends(signal.SIGTERM, "before_train_iter", 4))
    whole = run(work_dir="whole")
    stopped = whole.with_name("work")
    assert (stopped / "epoch_1.pth").is_file()
    assert not (stopped / "eval").exists()
    assert load_checkpoint(stopped / "interrupted.pth")["meta"]["evaluation_due"] == "epoch_1"
    run(auto_resume=True)
    assert (stopped / "eval" / "epoch_1" / "metrics_summary.json").is_file()
    assert final(stopped) == final(whole)


def test_evaluation_stops_between_frames(run, monkeypatch):
    """A signal within the first evaluation."""
    from dummy_task import DummyDetector

    predicted, original = [], DummyDetector._test

    def test(self, img, metas):
        predicted.append(metas)
        if len(predicted) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, img, metas)

    monkeypatch.setattr(DummyDetector, "_test", test)
    with pytest.raises(Interrupted):
        run()
    assert len(predicted) == 2
    monkeypatch.setattr(DummyDetector, "_test", original)
    whole = run(work_dir="whole")
    stopped = run(auto_resume=True)
    assert (stopped / "eval" / "epoch_1" / "metrics_summary.json").is_file()
    assert final(stopped) == final(whole)


@pytest.mark.parametrize("stage", ["before_run", "before_train_epoch"])
def test_before_the_first_iteration(run, tmp_path, stage):
    with pytest.raises(Interrupted):
        run(sends(signal.SIGTERM, stage))
    assert load_checkpoint(tmp_path / "work" / "interrupted.pth")["meta"]["iter"] == 1


def test_state_that_cannot_be_saved_is_said(run, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError("disk full")

    monkeypatch.setattr("projects.bevformer.engine.runner.save_checkpoint", full)
    with pytest.raises(Interrupted, match="SIGHUP: the state is NOT saved: disk full; go on with"):
        run(sends(signal.SIGHUP, "before_train_iter"))


def test_ignored_signals_stay_ignored():
    """Under `nohup`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with on_ending_signals(interruption.raise_interrupted):
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", NUMBERS)
def test_tools_end_with_the_code_of_the_signal(number, capsys):
    with pytest.raises(SystemExit) as ended, tool_errors(debug=False):
        signal.raise_signal(number)
    assert ended.value.code == 128 + number
    assert capsys.readouterr().err == f"ended by {signal.Signals(number).name}\n"


def test_command_to_go_on(monkeypatch):
    arguments = ["tools/train.py", "a b.py", "--resume-from", "old.pth", "--seed", "1"]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    expected = "python tools/train.py 'a b.py' --seed 1 --resume-from w/interrupted.pth"
    assert command_to_go_on("w/interrupted.pth") == expected
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert command_to_go_on() == (
        "torchrun --nproc_per_node=2 --master_port=29500 tools/train.py 'a b.py' --seed 1 --auto-resume"
    )


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["--resume-from=old.pth"], ""),
        (["--resume", "old.pth", "--seed", "1"], " --seed 1"),
        (["--cfg-options", "resume_from=old.pth"], " --cfg-options resume_from=None"),
    ],
)
def test_command_names_one_checkpoint(monkeypatch, given, kept):
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "argv", ["tools/train.py", "a.py", *given])
    assert command_to_go_on() == f"python tools/train.py a.py{kept} --auto-resume"


@pytest.mark.parametrize(
    ("variable", "launcher"),
    [("SLURM_STEP_NUM_TASKS", "srun -n 4 python"), ("OMPI_COMM_WORLD_SIZE", "mpirun -np 4 python")],
)
def test_command_of_other_launchers(monkeypatch, variable, launcher):
    monkeypatch.setattr(sys, "argv", ["tools/train.py", "a.py"])
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv(variable, "4")
    assert command_to_go_on() == f"{launcher} tools/train.py a.py --auto-resume"


def test_command_of_several_nodes(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tools/train.py", "a.py"])
    names = ("TORCHELASTIC_RUN_ID", "GROUP_WORLD_SIZE", "GROUP_RANK", "LOCAL_WORLD_SIZE")
    for name, value in zip(names, ("x", "2", "1", "8")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "n1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert command_to_go_on().startswith(
        "torchrun --nnodes=2 --node_rank=1 --master_addr=n1 --nproc_per_node=8 --master_port=29500 "
    )


@pytest.mark.parametrize(
    ("launched", "seconds", "ends"), [(True, 0.1, False), (True, 5.0, True), (False, 0.1, True)]
)
def test_signal_that_a_launcher_passes_on_is_not_a_second_one(monkeypatch, launched, seconds, ends):
    """Ctrl-C in a terminal reaches the launcher and its processes."""
    ended, now = [], [100.0]
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS", raising=False)
    monkeypatch.delenv("OMPI_COMM_WORLD_SIZE", raising=False)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if launched:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setattr(engine_interruption, "end_at_once", ended.append)
    monkeypatch.setattr(engine_interruption.time, "monotonic", lambda: now[0])
    noted = engine_interruption.Interruption()
    noted.note(signal.SIGINT)
    now[0] += seconds
    noted.note(signal.SIGTERM)
    assert ended == ([signal.SIGTERM] if ends else [])


def wait_for(condition, seconds=60.0):
    deadline = time.time() + seconds
    while not condition() and time.time() < deadline:
        time.sleep(0.05)
    assert condition()


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children(pid):
    """Processes that a process started, on Linux."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return found


def start(command, environment):
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
@pytest.mark.parametrize(
    "how",
    ["whole group", *(pytest.param(how, marks=pytest.mark.long) for how in ("twice", "killed"))],
)
def test_workers_live_as_long_as_the_run(how, config_path, tool_environment, tmp_path):
    """A signal to the whole process group, as Ctrl-C and schedulers send; a second one; and SIGKILL."""
    work_dir = tmp_path / "work"
    work_dir.mkdir()
    run = start([SCRIPT, config_path, work_dir, "none", "--wait"], tool_environment)
    wait_for((work_dir / "pid_0").exists)
    workers = children(run.pid)
    assert len(workers) == 2
    if how == "killed":
        run.kill()
    else:
        os.killpg(run.pid, signal.SIGTERM)
        time.sleep(0.3)
        assert all(map(alive, workers))
        if how == "twice":
            os.kill(run.pid, signal.SIGUSR1)
        else:
            (work_dir / "go").touch()
    output, _ = run.communicate(timeout=60)
    ended = time.time()
    wait_for(lambda: not any(map(alive, workers)), seconds=1.0)
    assert time.time() - ended < 1
    assert "Traceback" not in output
    if how == "whole group":
        assert run.returncode == 128 + signal.SIGTERM
        assert f"saved in {work_dir}/interrupted.pth; go on with: " in output.splitlines()[-1]
    elif how == "twice":
        assert run.returncode == 128 + signal.SIGUSR1
        assert not (work_dir / "interrupted.pth").exists()


def test_one_of_two_processes_gets_the_signal(config_path, tool_environment, tmp_path):
    """Both end after the same iteration, in one file with the states of both."""
    work_dir = tmp_path / "work"
    work_dir.mkdir()
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    run = start([*launcher, SCRIPT, config_path, work_dir, "pytorch", "--wait"], tool_environment)
    wait_for(lambda: (work_dir / "pid_0").exists() and (work_dir / "pid_1").exists())
    os.kill(int((work_dir / "pid_1").read_text()), signal.SIGUSR1)
    time.sleep(0.2)
    (work_dir / "go").touch()
    output, _ = run.communicate(timeout=120)
    lines = output.splitlines()  # torchrun repeats it at the end, for each process
    ended = [line for line in lines if line.startswith("SIGUSR1: ended after iteration ")]
    assert len(ended) == 1
    assert f"exitcode  : {128 + signal.SIGUSR1}" in output
    assert "Traceback" not in output.split("ChildFailedError")[0].rpartition("SIGUSR1: ended")[0]
    checkpoint = load_checkpoint(work_dir / "interrupted.pth")
    assert len(checkpoint["ranks"]) == checkpoint["meta"]["world_size"] == 2
    assert checkpoint["meta"]["interrupted"] == "SIGUSR1"

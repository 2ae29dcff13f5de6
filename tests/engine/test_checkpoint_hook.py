"""Which checkpoints a run keeps, and what happens when one cannot be written."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from dummy_task import REPOSITORY, DummyDetector
from tool_runs import free_port

from projects.bevformer.engine import checkpoint_hook as module
from projects.bevformer.engine.best import BestCheckpoint
from projects.bevformer.engine.checkpoint import load_checkpoint, save_checkpoint
from projects.bevformer.engine.checkpoint_hook import CheckpointHook
from projects.bevformer.files import writing


def epochs(number):
    return {"total_epochs": number, "runner.max_epochs": number}


def names(folder, pattern="*_*.pth"):
    return sorted(path.name for path in Path(folder).glob(pattern))


class Logger:
    def __init__(self):
        self.lines = []

    def info(self, text, *values):
        self.lines.append(text % values)

    warning = info


class Runner:
    """What the hook needs of a runner; its network is saved at once."""

    def __init__(self, work_dir, run="a", resumed=None):
        self.work_dir, self.resumed = str(work_dir), resumed
        self.model = SimpleNamespace(module=DummyDetector())
        self.meta, self.logger, self.links = {"run": run}, Logger(), True
        self.epoch, self.iter, self._max_epochs, self._max_iters = 0, 0, 99, 99
        self.full, self.on_save_error = False, "stop"

    def save_on_all_ranks(self, out_dir, filename_tmpl, create_symlink=True, **options):
        path = Path(out_dir, filename_tmpl)
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        save_checkpoint(path, self.model.module, meta=self.meta)
        if create_symlink:
            writing.link_to(path, path.with_name("latest.pth"))


def save_all(hook, runner, numbers):
    hook.before_run(runner)
    for number in numbers:
        hook._save(runner, number)


def test_numbers_with_gaps_are_kept_as_if_without(tmp_path):
    """The last save falls between intervals, and a file that was removed by hand leaves a gap."""
    runner, hook = Runner(tmp_path), CheckpointHook(by_epoch=False, max_keep_ckpts=2)
    save_all(hook, runner, [4, 8])
    os.remove(tmp_path / "iter_8.pth")
    save_all(hook, runner, [12, 13])
    assert names(tmp_path) == ["iter_12.pth", "iter_13.pth"]


def test_what_is_not_of_this_run_stays(tmp_path):
    other = [f"epoch_{number}.pth" for number in (1, 2, 9)] + ["best_NDS_epoch_1.pth"]
    for name in other:
        save_checkpoint(tmp_path / name, DummyDetector(), meta={"run": "b"})
    (tmp_path / "epoch_3.pth").write_text("broken")
    save_all(CheckpointHook(max_keep_ckpts=1), Runner(tmp_path), [4, 5])
    assert names(tmp_path) == sorted([*other, "epoch_3.pth", "epoch_5.pth"])


def test_a_resumed_run_counts_what_it_saved_before(tmp_path):
    for number, run in ((1, "a"), (2, "b"), (3, "a"), (4, "a"), (8, "a")):
        save_checkpoint(tmp_path / f"epoch_{number}.pth", DummyDetector(), meta={"run": run})
    (tmp_path / "epoch_3.pth").write_text("broken")
    runner = Runner(tmp_path, resumed=(tmp_path / "epoch_4.pth", {}))
    save_all(CheckpointHook(max_keep_ckpts=2), runner, [5])
    assert names(tmp_path) == [f"epoch_{number}.pth" for number in (2, 3, 4, 5, 8)]


def no_links(*names):
    raise PermissionError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize("links", [True, False])
def test_what_latest_names_stays(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "symlink", no_links)
    save_all(CheckpointHook(max_keep_ckpts=2), Runner(tmp_path), [1])
    save_all(CheckpointHook(max_keep_ckpts=1, create_symlink=False), Runner(tmp_path), [2, 3])
    assert names(tmp_path) == ["epoch_1.pth", "epoch_3.pth"]
    runner = Runner(tmp_path, resumed=(tmp_path / "epoch_3.pth", {}))
    save_all(CheckpointHook(max_keep_ckpts=1, create_symlink=False), runner, [4])
    assert names(tmp_path) == ["epoch_1.pth", "epoch_4.pth"]


def test_a_checkpoint_that_is_not_written_costs_no_earlier_one(tmp_path):
    runner = Runner(tmp_path)
    hook = CheckpointHook(max_keep_ckpts=1, on_error="continue")
    save_all(hook, runner, [1])
    runner.full = True
    hook._save(runner, 2)
    assert names(tmp_path) == ["epoch_1.pth"]
    assert "NO CHECKPOINT was saved" in runner.logger.lines[-1]
    runner.full = False
    hook._save(runner, 3)
    assert names(tmp_path) == ["epoch_3.pth"]
    runner.full, runner.on_save_error = True, "stop"
    with pytest.raises(OSError, match="No space"):
        hook._save(runner, 4)


def test_an_old_checkpoint_that_cannot_be_removed_is_a_warning(tmp_path, monkeypatch):
    runner, hook = Runner(tmp_path), CheckpointHook(max_keep_ckpts=1)
    save_all(hook, runner, [1])

    def refuse(path):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(module.os, "remove", refuse)
    hook._save(runner, 2)
    assert "epoch_1.pth cannot be removed" in runner.logger.lines[-1]


@pytest.mark.parametrize("name", ["epoch_3.pth", "latest.pth", "interrupted.pth", "best_x.pth"])
def test_a_folder_in_the_place_of_a_checkpoint_is_found_before_the_start(tmp_path, name):
    (tmp_path / name).mkdir()
    runner = Runner(tmp_path)
    with pytest.raises(ValueError, match=rf"{name} is a folder, .*: rename it"):
        CheckpointHook().before_run(runner)
    (tmp_path / name).rename(tmp_path / "epoch_1.pth")
    runner.epoch = 1
    CheckpointHook().before_run(runner)


def test_a_disk_that_is_nearly_full_is_said_at_the_start(tmp_path, monkeypatch):
    runner = Runner(tmp_path)
    CheckpointHook().before_run(runner)
    assert runner.logger.lines == []
    monkeypatch.setattr(module, "free_bytes", lambda folder: 100)
    CheckpointHook().before_run(runner)
    assert f"{tmp_path} has 100 bytes free, and a checkpoint needs about " in runner.logger.lines[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out_dir": "s3://bucket"}, "written to disks only"),
        ({"file_client_args": {"backend": "petrel"}}, "written to disks only"),
        ({"file_client_args": "petrel"}, "written to disks only"),
        ({"filename_tmpl": "a/{}.pth"}, "filename_tmpl is 'a/{}.pth'"),
        ({"filename_tmpl": "{epoch}.pth"}, "filename_tmpl is '{epoch}.pth'"),
        ({"filename_tmpl": 3}, "filename_tmpl is 3"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CheckpointHook(**options)


def test_buffers_are_averaged_before_saving(tmp_path, monkeypatch):
    calls, runner = [], Runner(tmp_path)
    monkeypatch.setattr(module, "average_buffers", calls.append)
    save_all(CheckpointHook(), runner, [1])
    assert calls == []
    save_all(CheckpointHook(sync_buffer=True, file_client_args={"backend": "disk"}), runner, [1])
    assert calls == [runner.model.module]


def test_the_best_checkpoint_stays_the_one_that_could_be_written(tmp_path):
    runner, best = Runner(tmp_path), BestCheckpoint("NDS")
    runner.on_save_error = "continue"
    best.keep(runner, 0.5, "epoch_1")
    runner.full = True
    best.keep(runner, 0.7, "epoch_2")
    assert names(tmp_path) == ["best_NDS_epoch_1.pth"]
    messages = {"best_score": 0.5, "best_ckpt": "best_NDS_epoch_1.pth"}
    assert runner.meta["hook_msgs"] == messages
    runner.full = False
    best.keep(runner, 0.6, "epoch_3")
    assert names(tmp_path) == ["best_NDS_epoch_3.pth"]


def test_a_score_of_nan_is_not_left_out_in_silence(tmp_path):
    runner, best = Runner(tmp_path), BestCheckpoint("NDS")
    best.keep(runner, float("nan"), "epoch_1")
    assert names(tmp_path) == []
    assert runner.logger.lines == ["NDS is NaN after epoch_1: not compared"]


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"interval": 2, "max_keep_ckpts": 2}, ["epoch_4.pth", "epoch_5.pth"]),
        (
            {
                "interval": 3,
                "by_epoch": False,
                "max_keep_ckpts": 2,
                "filename_tmpl": "at_{:03d}.pth",
            },
            ["at_024.pth", "at_025.pth"],
        ),
        ({"interval": 2, "max_keep_ckpts": 2, "save_last": False}, ["epoch_2.pth", "epoch_4.pth"]),
    ],
)
def test_a_run_keeps_the_newest(run, options, kept):
    """Five iterations an epoch."""
    work_dir = run({"checkpoint_config": options, **epochs(5)}, validate=False)
    assert names(work_dir) == kept
    assert os.readlink(work_dir / "latest.pth") == kept[-1]


def test_left_over_files_are_removed_at_the_start(run, tmp_path):
    folders = [
        tmp_path / "work",
        tmp_path / "disk" / "work",
        tmp_path / "work" / "eval" / "epoch_9",
    ]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / ".epoch_9.pth.999999999.tmp").write_text("half a checkpoint")
    options = {"checkpoint_config.out_dir": str(tmp_path / "disk"), **epochs(1)}
    work_dir = run(options, validate=False)
    assert [path for folder in folders for path in folder.glob(".*")] == []
    log = next(work_dir.glob("*.log")).read_text()
    assert log.count("removed 1 temporary file(s) of killed runs, 17 bytes") == 3


def test_a_run_goes_on_without_saving_if_it_is_told_to(run, monkeypatch):
    options = {"evaluation.save_best": "NDS", "checkpoint_config.on_error": "continue"}
    original = torch.save

    def full(obj, file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    work_dir = run(options)
    log = next(work_dir.glob("*.log")).read_text()
    text = r"epoch_1.pth cannot be written (No space left on device): the file needs"
    assert "NO CHECKPOINT was saved" in log
    assert text in log
    assert "Epoch [2][5/5]" in log
    assert names(work_dir, "*.pth") == names(work_dir, ".*") == []
    monkeypatch.setattr(torch, "save", original)
    assert names(run(options), "*.pth")


def test_an_evaluation_that_cannot_be_written_ends_the_run_or_not(run, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("projects.bevformer.engine.hooks.write_metrics", full)
    with pytest.raises(OSError, match="No space"):
        run()
    work_dir = run({"checkpoint_config.on_error": "continue"}, work_dir="b")
    assert "the evaluation of epoch_2 was NOT saved" in next(work_dir.glob("*.log")).read_text()
    assert load_checkpoint(work_dir / "epoch_2.pth")["meta"]["epoch"] == 2


@pytest.mark.long
@pytest.mark.parametrize("on_error", ["stop", "continue"])
def test_two_processes_on_a_full_disk(config_path, tool_environment, tmp_path, on_error):
    limit_bytes = 50_000  # of a file: the logs are shorter, checkpoints longer
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"),
        *(f"--master_port={free_port()}", REPOSITORY / "tools" / "train.py", config_path),
        *("--launcher", "pytorch", "--device", "cpu", "--cfg-options", "model.width=10000"),
        f"checkpoint_config.on_error={on_error}",
    ]
    done = subprocess.run(
        list(map(str, command)), env=tool_environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes)),
        text=True, timeout=240,
    )  # fmt: skip
    message = "epoch_1.pth cannot be written (File too large)"
    assert (done.returncode == 0) == (on_error == "continue"), done.stdout[-4000:]
    assert done.stdout.count(message) == 1
    assert done.stdout.count("error (rank") == (on_error == "stop")
    assert done.stdout.count("NO CHECKPOINT was saved") == 2 * (on_error == "continue")
    assert list((tmp_path / "work").glob("*.pth")) == []

"""Whole runs of `train`, in this process."""

import json
import logging
import os
import weakref
from functools import partial
from io import StringIO

import pytest
import torch
from dummy_task import DummyDataset
from mmcv.runner import HOOKS, Hook
from mmdet.datasets import DATASETS

from projects.bevformer.datasets import EpochShuffleSampler
from projects.bevformer.engine.checkpoint import load_checkpoint
from projects.bevformer.engine.hooks import DataWaitHook
from projects.bevformer.engine.log import get_run_logger


def log_records(work_dir):
    (path,) = work_dir.glob("*.log.json")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_run_writes_checkpoints_logs_config_and_metrics(run):
    work_dir = run()
    assert os.readlink(work_dir / "latest.pth") == "epoch_2.pth"
    meta = load_checkpoint(work_dir / "epoch_2.pth")["meta"]
    assert (meta["epoch"], meta["iter"], meta["seed"], meta["world_size"]) == (2, 10, 0, 1)
    assert meta["CLASSES"][0] == "car"
    assert (work_dir / "dummy.py").exists()
    assert list((work_dir / "tf_logs").iterdir())
    for epoch in (1, 2):
        assert (work_dir / "eval" / f"epoch_{epoch}" / "results_nusc.json").exists()
    last = work_dir / "eval" / "epoch_2" / "metrics_summary.json"
    assert (work_dir / "metrics_summary.json").read_text() == last.read_text()

    records = log_records(work_dir)
    training = [r for r in records if r.get("mode") == "train"]
    validation = [r for r in records if r.get("mode") == "val"]
    assert [r["iter"] for r in training] == [1, 2, 3, 4, 5] * 2
    assert {"loss", "loss_cls", "grad_norm", "lr"} <= training[0].keys()
    assert [r["epoch"] for r in validation] == [1, 2]
    assert validation[1]["NDS"] == pytest.approx(json.loads(last.read_text())["nd_score"], abs=1e-5)


def test_a_run_starts_with_a_summary(run, monkeypatch):
    handler = next(h for h in get_run_logger().handlers if type(h) is logging.StreamHandler)
    monkeypatch.setattr(handler, "stream", StringIO())
    work_dir = run(max_iters=3, validate=False)
    console = handler.stream.getvalue()
    (log,) = work_dir.glob("*.log")
    for text in (console, log.read_text()):
        summary = text.split("INFO - training\n")[1].split("\n20")[0].splitlines()
        rows = {line[:12].strip(): line[13:] for line in summary}
        assert len(rows) == len(summary) == 15
        assert "DummyDataset: 9 samples in 3 scenes; validation DummyDataset" in rows["data"]
        assert "10: car, truck" in rows["classes"]
        assert "6: CAM_FRONT, " in rows["cameras"]
        assert "2 samples x 1 process x 1 accumulated = 2; 0 data workers" in rows["batch"]
        assert (
            "AdamW, lr 0.01 (img_backbone x 0.1), CosineAnnealing after 2 warm-up iterations"
            in rows["optimizer"]
        )
        assert "3 iterations (5 are an epoch)" in rows["length"]
        assert "checkpoint every 3 iterations, no evaluation, log every 1 it" in rows["intervals"]
        assert "float32, TF32 on" in rows["precision"]
        assert str(work_dir) in rows["work dir"]
    assert len(console.splitlines()) < 35
    assert "checkpoint_config = " not in console
    assert "checkpoint_config = " in log.read_text()


def test_the_backbone_has_its_own_learning_rate(run):
    work_dir = run({"total_epochs": 1, "runner.max_epochs": 1}, validate=False)
    groups = load_checkpoint(work_dir / "epoch_1.pth")["optimizer"]["param_groups"]
    assert {round(group["initial_lr"], 6) for group in groups} == {1e-2, 1e-3}
    assert not (work_dir / "eval").exists()


def test_autoscale_lr_scales_by_samples_and_accumulation(run):
    options = {
        "auto_scale_lr.base_batch_size": 24,
        "optimizer_config.type": "GradientCumulativeOptimizerHook",
        "optimizer_config.cumulative_iters": 3,
    }
    work_dir = run(options, validate=False, autoscale_lr=True, max_iters=1)
    groups = load_checkpoint(work_dir / "iter_1.pth")["optimizer"]["param_groups"]
    assert max(group["initial_lr"] for group in groups) == pytest.approx(1e-2 * 2 * 3 / 24)


def test_autoscale_lr_without_an_optimizer_is_a_config_error(run):
    with pytest.raises(ValueError, match="config section `optimizer`"):
        run({"optimizer": None}, autoscale_lr=True)


def test_the_same_seed_gives_the_same_weights(run):
    weights = [
        load_checkpoint(run(work_dir=name, seed=seed, validate=False) / "epoch_2.pth")["state_dict"]
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    ]
    assert torch.equal(weights[0]["head.weight"], weights[1]["head.weight"])
    assert not torch.equal(weights[0]["head.weight"], weights[2]["head.weight"])


def test_auto_resume_uses_the_newest_loadable_checkpoint(run):
    work_dir = run(validate=False)
    (work_dir / "epoch_2.pth").write_bytes(b"broken")
    for path in work_dir.glob("*.log.json"):
        path.unlink()
    run(validate=False, auto_resume=True)
    records = log_records(work_dir)
    assert {r["epoch"] for r in records if r.get("mode") == "train"} == {2}
    assert load_checkpoint(work_dir / "epoch_2.pth")["meta"]["iter"] == 10


def test_resume_does_not_execute_the_config_in_a_checkpoint(run, tmp_path):
    work_dir = run(validate=False)
    checkpoint = torch.load(str(work_dir / "epoch_1.pth"))
    checkpoint["meta"]["config"] = f"import os; os.mkdir({str(tmp_path / 'trap')!r})"
    torch.save(checkpoint, str(tmp_path / "evil.pth"))
    run({"resume_from": str(tmp_path / "evil.pth")}, work_dir="b", validate=False)
    assert (tmp_path / "b" / "epoch_2.pth").exists()
    assert not (tmp_path / "trap").exists()


def test_resume_refuses_files_without_training_state(run, tmp_path):
    work_dir = run(validate=False)
    checkpoint = torch.load(str(work_dir / "epoch_1.pth"))
    torch.save({"state_dict": checkpoint["state_dict"]}, str(tmp_path / "weights.pth"))
    with pytest.raises(ValueError, match="holds no training state"):
        run({"resume_from": str(tmp_path / "weights.pth")}, work_dir="b")
    run({"load_from": str(tmp_path / "weights.pth")}, work_dir="c", validate=False)


def test_iterations_are_rescaled_for_another_number_of_processes(run, tmp_path):
    work_dir = run(validate=False)
    checkpoint = torch.load(str(work_dir / "epoch_1.pth"))
    checkpoint["meta"].update(world_size=2, iter=3)
    torch.save(checkpoint, str(tmp_path / "two.pth"))
    run({"resume_from": str(tmp_path / "two.pth")}, work_dir="b", validate=False)
    assert load_checkpoint(tmp_path / "b" / "epoch_2.pth")["meta"]["iter"] == 5 + 5


def test_resume_from_a_checkpoint_with_per_tensor_groups(run, tmp_path):
    """The layout of mmcv's own constructor, which older checkpoints have."""
    single = {"optimizer.constructor": "DefaultOptimizerConstructor"}
    whole, old = run(validate=False), run(single, work_dir="old", validate=False)
    new_layout, old_layout = (
        load_checkpoint(work_dir / "epoch_1.pth")["optimizer"]["param_groups"]
        for work_dir in (whole, old)
    )
    assert (len(new_layout), len(old_layout)) == (2, 6)
    resume = {"resume_from": str(old / "epoch_1.pth")}
    resumed = run(resume, work_dir="resumed", validate=False)
    final = [
        load_checkpoint(work_dir / "epoch_2.pth")["state_dict"]
        for work_dir in (whole, old, resumed)
    ]
    for name, weight in final[0].items():
        assert torch.equal(final[1][name], weight)
        assert torch.equal(final[2][name], weight)
    rates = [
        [r["lr"] for r in log_records(work_dir) if r.get("mode") == "train"]
        for work_dir in (whole, old, resumed)
    ]
    assert rates[0] == rates[1] == rates[0][:5] + rates[2]

    resume = {"resume_from": str(whole / "epoch_1.pth")}
    run({**resume, **single}, work_dir="reverse", validate=False)
    reverse = load_checkpoint(whole.parent / "reverse" / "epoch_2.pth")
    for name, weight in final[0].items():
        assert torch.equal(reverse["state_dict"][name], weight)


def test_slow_data_is_reported_with_a_remedy(run, monkeypatch, caplog):
    hook = partial(DataWaitHook, interval=2, share=-1, skip=0)
    monkeypatch.setattr("projects.bevformer.engine.train.DataWaitHook", hook)
    logger = logging.getLogger("mmdet3d")  # it hands nothing on to the root logger
    logger.addHandler(caplog.handler)
    try:
        run(validate=False, max_iters=6)
    finally:
        logger.removeHandler(caplog.handler)
    (line,) = [line for line in caplog.messages if line.startswith("training waits for data")]
    assert "Raise data.workers_per_gpu (now 0), or let the model prepare" in line


class CheckpointMetaHook(Hook):
    """Writes how often it was asked into checkpoints."""

    asked = 0

    def checkpoint_meta(self):
        self.asked += 1
        return {"asked": self.asked}


def test_checkpoint_meta_of_hooks_is_saved(run, monkeypatch):
    monkeypatch.setitem(HOOKS.module_dict, "CheckpointMetaHook", CheckpointMetaHook)
    work_dir = run({"custom_hooks": [dict(type="CheckpointMetaHook")]}, validate=False)
    for epoch in (1, 2):
        assert load_checkpoint(work_dir / f"epoch_{epoch}.pth")["meta"]["asked"] == epoch


def test_load_from_tensors_are_freed_before_training(run, monkeypatch):
    work_dir = run(validate=False)
    loaded, alive = [], []

    def spy(path):
        checkpoint = load_checkpoint(path)
        tensor = checkpoint["state_dict"]["head.weight"]
        loaded.append(weakref.ref(tensor))
        return checkpoint

    class LookAround(Hook):
        def before_train_iter(self, runner):
            alive.extend(reference() is not None for reference in loaded)

    monkeypatch.setattr("projects.bevformer.engine.runner.load_checkpoint", spy)
    monkeypatch.setitem(HOOKS.module_dict, "LookAround", LookAround)
    hooks = [dict(type="LookAround")]
    run(
        {"load_from": str(work_dir / "epoch_1.pth"), "custom_hooks": hooks},
        work_dir="b", validate=False, max_iters=1,
    )  # fmt: skip
    assert alive == [False]


def test_a_short_run_saves_and_evaluates_at_its_end(run):
    work_dir = run(max_iters=3)
    assert os.readlink(work_dir / "latest.pth") == "iter_3.pth"
    assert load_checkpoint(work_dir / "iter_3.pth")["meta"]["iter"] == 3
    assert (work_dir / "eval" / "iter_3" / "metrics_summary.json").exists()
    assert {r["mode"] for r in log_records(work_dir)[1:]} == {"train", "val"}


@pytest.mark.parametrize(
    ("options", "given", "saved", "evaluated"),
    [
        ({}, (), [3], [3]),
        ({"checkpoint_config.interval": 2, "evaluation.interval": 2}, "all", [2, 3], [2]),
        ({"checkpoint_config.interval": 2, "checkpoint_config.by_epoch": False}, (), [2, 3], [3]),
        ({"evaluation.interval": 1, "evaluation.by_epoch": True}, "all", [3], [3]),
    ],
)
def test_max_iters_keeps_intervals_that_count_iterations(run, options, given, saved, evaluated):
    work_dir = run(options, max_iters=3, given=options if given == "all" else given)
    assert sorted(path.name for path in work_dir.glob("iter_*.pth")) == [
        f"iter_{number}.pth" for number in saved
    ]
    assert sorted(path.name for path in (work_dir / "eval").iterdir()) == [
        f"iter_{number}" for number in evaluated
    ]


def test_max_iters_drops_what_counts_epochs_and_says_so(run):
    schedule = dict(
        _delete_=True, policy="step", step=[1], warmup="linear", warmup_iters=1, warmup_ratio=0.5
    )
    options = {"lr_config": schedule, "log_config.interval": 1}
    work_dir = run(options, max_iters=3, given=["total_epochs"])
    rates = [record["lr"] for record in log_records(work_dir) if record.get("mode") == "train"]
    assert rates == [0.0005, 0.001, 0.001]  # of the backbone
    (log,) = work_dir.glob("*.log")
    assert (
        "--max-iters 3: what counts epochs does not apply: total_epochs (now 3 iterations), "
        "checkpoint_config.interval = 1 (now at the end), evaluation.interval = 1 (now at the end), lr_config.step = [1] (now constant)."
        in log.read_text()
    )


def test_evaluation_may_count_iterations_in_a_run_of_epochs(run):
    work_dir = run({"evaluation.by_epoch": False, "evaluation.interval": 4})
    assert {path.name for path in (work_dir / "eval").iterdir()} == {"iter_4", "iter_8"}


@pytest.mark.parametrize("what", ["CLASSES", "cameras"])
def test_other_classes_or_cameras_in_validation_are_refused_before_training(run, monkeypatch, what):
    swapped = type("Swapped", (DummyDataset,), {what: getattr(DummyDataset, what)[::-1]})
    monkeypatch.setitem(DATASETS.module_dict, "Swapped", swapped)
    with pytest.raises(ValueError, match=f"data.train has the {what.lower()} .*, data.val "):
        run({"data.val.type": "Swapped"})


def test_max_iters_saves_with_an_epoch_based_config(run):
    work_dir = run({"checkpoint_config.by_epoch": True}, max_iters=3, validate=False)
    assert (work_dir / "iter_3.pth").exists()


def test_iteration_runs_resume_where_they_stopped(run):
    work_dir = run(max_iters=3, validate=False)
    for path in work_dir.glob("*.log.json"):
        path.unlink()
    run(max_iters=5, validate=False, auto_resume=True)
    assert load_checkpoint(work_dir / "iter_5.pth")["meta"]["iter"] == 5


def test_iteration_runs_resume_within_their_epoch(run, monkeypatch):
    starts = []
    monkeypatch.setattr(
        EpochShuffleSampler, "start_at", lambda sampler, *where: starts.append(where)
    )
    run(max_iters=7, validate=False)  # five batches of two samples, and two of the next epoch
    assert starts == []
    run(max_iters=8, validate=False, auto_resume=True)
    assert starts == [(1, 4)]


def test_save_best_keeps_one_file(run):
    work_dir = run({"evaluation.save_best": "NDS", "total_epochs": 3, "runner.max_epochs": 3})
    (best,) = work_dir.glob("best_NDS_epoch_*.pth")
    figures = {
        epoch: json.loads(
            (work_dir / "eval" / f"epoch_{epoch}" / "metrics_summary.json").read_text()
        )
        for epoch in (1, 2, 3)
    }
    highest = max(figures, key=lambda epoch: figures[epoch]["nd_score"])
    assert best.name == f"best_NDS_epoch_{highest}.pth"
    assert os.readlink(work_dir / "latest.pth") == "epoch_3.pth"


def test_the_interval_of_the_config_counts(run):
    work_dir = run({"evaluation.interval": 2})
    assert [path.name for path in (work_dir / "eval").iterdir()] == ["epoch_2"]


def test_nan_loss_stops_the_run_and_names_the_sample(run):
    with pytest.raises(
        FloatingPointError,
        match=r"iteration \d \(epoch 1\): the loss is nan .*; samples s1f1; the last",
    ):
        run({"data.train.nan_sample": "s1f1", "data.samples_per_gpu": 1})


def test_mixed_precision_trains_and_evaluates(run):
    work_dir = run({"fp16.loss_scale": 512.0})
    assert (work_dir / "eval" / "epoch_2" / "metrics_summary.json").exists()


def test_a_runner_of_the_user_is_not_used_in_silence(run, monkeypatch):
    monkeypatch.setattr("projects.bevformer.engine.train.REPLACED_TYPES", {"EpochBasedRunner"})
    with pytest.raises(ValueError, match="'EpochBasedRunner': .* of this project, others are not"):
        run()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runner.type": "EpochRunner"}, "runner.type is 'EpochRunner'"),
        ({"model.type": "BEVFormr"}, "config section `model`.*BEVFormr"),
        ({"data.train.type": "NoDataset"}, r"config section `data\.train`.*NoDataset"),
        ({"data.train.colour": 1}, r"data\.train\.colour is not read by DummyDataset"),
        ({"data.train.frames_per_scene": []}, "data.train has no samples"),
        ({"data.val.frames_per_scene": []}, "data.val has no samples"),
        ({"data.shuffler_sampler.type": "Odd"}, "shuffler_sampler.type is 'Odd'"),
        ({"optimizer.type": "Adamm"}, "config section `optimizer`.*Adamm"),
        ({"optimizer.betas": [0.9]}, "optimizer.betas is .*two numbers from 0 to 1"),
        ({"evaluation.metrics": "x"}, r"evaluation\.metrics is not read .*'metric'"),
        ({"evaluation.interval": 0}, "evaluation.interval is 0"),
        ({"evaluation.save_best": "loss"}, "save_best is 'loss'"),
        ({"workflow": [("train", 1), ("val", 1)]}, "only .*train.* is supported"),
        ({"resume_from": "no.pth"}, r"no\.pth does not exist"),
        ({"load_from": "no.pth"}, r"no\.pth does not exist"),
        ({"model": None}, "model is None: a config must have it"),
        (
            {"model.pts_bbox_head": dict(bev_h=1, bev_w=1, transformer={}, num_classes=9)},
            "num_classes is 9, but the data set has 10 classes",
        ),
        (
            {"checkpoint_config": {"interwal": 1}},
            "checkpoint_config.interwal is not read .*'interval'",
        ),
    ],
)
def test_config_errors_say_what_and_where(run, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(options)

"""Averages of the weights: what is scored is what is saved, and training goes on with the raw ones."""

import json
import os

import pytest
import torch
from dummy_task import DummyDataset, DummyDetector
from mmcv.runner import HOOKS, Hook
from mmcv.runner.hooks import EMAHook as MmcvEMAHook

from projects.bevformer.engine import ema
from projects.bevformer.engine.checkpoint import load_checkpoint, publish_weights
from projects.bevformer.engine.checkpoint_summary import describe
from projects.bevformer.engine.evaluate import predict

SMOOTH = dict(type="EMAHook", momentum=0.3, warm_up=1)


def averaging(**options):
    return {"custom_hooks": [{**SMOOTH, **options}]}


def scored_by(path):
    """Scores that the weights of a checkpoint give."""
    detector = DummyDetector()
    detector.load_state_dict(load_checkpoint(path)["state_dict"])
    results = predict(detector, DummyDataset(test_mode=True), torch.device("cpu"), workers=0)
    return [result["pts_bbox"]["scores_3d"].tolist() for result in results]


def scores_in(folder):
    return list(json.loads((folder / "results_nusc.json").read_text())["results"].values())


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(torch.as_tensor(other[name]), torch.as_tensor(value)), name


class Watch(Hook):
    """Keeps the raw weights after each iteration."""

    seen = None

    def before_run(self, runner):
        Watch.seen = [runner.model.module.head.weight.detach().clone()]

    def after_train_iter(self, runner):
        Watch.seen.append(runner.model.module.head.weight.detach().clone())


@pytest.mark.parametrize(
    ("counted_in", "priority"),
    [("epochs", "HIGHEST"), ("epochs", "NORMAL"), ("iterations", "LOWEST")],
)
def test_the_checkpoint_is_what_was_scored(run, monkeypatch, counted_in, priority):
    monkeypatch.setitem(HOOKS.module_dict, "Watch", Watch)
    length = {} if counted_in == "epochs" else {"max_iters": 7}
    options = averaging(priority=priority)
    options["custom_hooks"].append(dict(type="Watch", priority="LOWEST"))
    work_dir = run(options, **length)
    name = "epoch_2" if counted_in == "epochs" else "iter_7"
    path = work_dir / f"{name}.pth"
    assert scored_by(path) == scores_in(work_dir / "eval" / name)

    average, *steps = Watch.seen
    for i, raw in enumerate(steps):
        share = min(0.3, (1 + i) / (1 + i))
        average = (1 - share) * average + share * raw
    checkpoint = load_checkpoint(path)
    torch.testing.assert_close(checkpoint["state_dict"]["head.weight"], average)
    assert torch.equal(checkpoint["raw_weights"]["head.weight"], steps[-1])
    assert not torch.equal(steps[-1], average)
    assert "grid" not in checkpoint["raw_weights"]
    assert not any(key.startswith("ema") for key in checkpoint["state_dict"])


@pytest.mark.parametrize(
    ("counted_in", "hook"),
    [
        ("epochs", dict(momentum=0.3, interval=2, warm_up=3)),
        ("iterations", dict(type="ExpMomentumEMAHook", momentum=0.3, total_iter=4)),
        ("epochs", dict(type="LinearMomentumEMAHook", momentum=0.3, warm_up=9)),
    ],
)
def test_a_resumed_run_equals_one_without_a_stop(run, hook, counted_in):
    options = {"custom_hooks": [{"type": "EMAHook", **hook}], "lr_config": None}
    if counted_in == "epochs":
        whole = run(options, work_dir="whole") / "epoch_2.pth"
        run({**options, "total_epochs": 1, "runner.max_epochs": 1}, work_dir="parts")
        resumed = run(options, work_dir="parts", auto_resume=True) / "epoch_2.pth"
    else:
        whole = run(options, work_dir="whole", max_iters=8) / "iter_8.pth"
        run(options, work_dir="parts", max_iters=4)
        resumed = run(options, work_dir="parts", max_iters=8, auto_resume=True) / "iter_8.pth"
    first, second = load_checkpoint(whole), load_checkpoint(resumed)
    assert_same(first["state_dict"], second["state_dict"])
    assert_same(first["raw_weights"], second["raw_weights"])
    for number, state in first["optimizer"]["state"].items():
        assert_same(state, second["optimizer"]["state"][number])


def test_buffers_are_averaged_where_mmdet_does(run):
    def raw_and_average(**hook):
        work_dir = run({"custom_hooks": [hook]}, validate=False)
        checkpoint = load_checkpoint(work_dir / "epoch_2.pth")
        return (checkpoint[key]["norm.running_mean"] for key in ("raw_weights", "state_dict"))

    assert torch.equal(*raw_and_average(type="EMAHook", momentum=0.3))
    assert torch.equal(*raw_and_average(type="ExpMomentumEMAHook", skip_buffers=True))
    assert not torch.equal(*raw_and_average(type="ExpMomentumEMAHook"))


def test_the_best_checkpoint_has_the_average_too(run, tmp_path):
    options = {"evaluation.save_best": "NDS", "checkpoint_config.max_keep_ckpts": 1}
    work_dir = run({**averaging(), **options, "total_epochs": 3, "runner.max_epochs": 3})
    assert [path.name for path in work_dir.glob("epoch_*.pth")] == ["epoch_3.pth"]
    assert os.readlink(work_dir / "latest.pth") == "epoch_3.pth"
    (best,) = work_dir.glob("best_NDS_epoch_*.pth")
    assert scored_by(best) == scores_in(work_dir / "eval" / best.stem[len("best_NDS_") :])
    assert "raw_weights" in load_checkpoint(best)
    assert "raw ones" in dict(describe(load_checkpoint(best), best))["average"]
    publish_weights(best, tmp_path / "published.pth")
    assert scored_by(tmp_path / "published.pth") == scored_by(best)
    assert "raw_weights" not in load_checkpoint(tmp_path / "published.pth")


def test_a_resume_with_or_without_the_average_says_so(run):
    log = lambda work_dir: "".join(path.read_text() for path in work_dir.glob("*.log"))  # noqa: E731
    first = run(averaging(), work_dir="with", validate=False) / "epoch_1.pth"
    resume = {"resume_from": str(first)}
    without = run(resume, work_dir="without", validate=False)
    assert "this config no EMAHook: training goes on with the raw weights" in log(without)
    plain = run(work_dir="plain", validate=False)
    assert_same(
        load_checkpoint(plain / "epoch_2.pth")["state_dict"],
        load_checkpoint(without / "epoch_2.pth")["state_dict"],
    )
    resume = {"resume_from": str(plain / "epoch_1.pth")}
    begun = run({**averaging(), **resume}, work_dir="begun", validate=False)
    assert "has no average of the weights: the one of EMAHook starts from its weights" in log(begun)


class OwnEMAHook(MmcvEMAHook):
    pass


@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        ([dict(SMOOTH, momentum=1.5)], "EMAHook: momentum 1.5 must be between 0 and 1"),
        ([dict(SMOOTH, interval=0)], "interval 0 at least 1"),
        ([dict(SMOOTH, warm_up=0)], "warm_up is 0"),
        ([dict(SMOOTH, resume_from="a.pth")], "resume the run instead, with --resume-from"),
        ([SMOOTH, dict(type="LinearMomentumEMAHook")], "is a second average of the weights"),
        (
            [dict(type="OwnEMAHook")],
            "OwnEMAHook exchanges the weights .*derive it from AverageHook",
        ),
    ],
)
def test_what_cannot_be_averaged_is_refused(run, monkeypatch, hooks, message):
    monkeypatch.setitem(HOOKS.module_dict, "OwnEMAHook", OwnEMAHook)
    with pytest.raises(ValueError, match=message):
        run({"custom_hooks": hooks}, validate=False)


def test_weights_are_put_back_after_an_error():
    hook, detector = ema.EMAHook(), DummyDetector()
    hook.restart(detector)
    raw = detector.head.weight.detach().clone()
    with torch.no_grad():
        hook.averages["head.weight"].zero_()
    with pytest.raises(RuntimeError), hook.put(average=True):
        _look_and_fail(hook, detector, raw)
    assert torch.equal(detector.head.weight, raw)


def _look_and_fail(hook, detector, raw):
    with hook.put(average=True):
        assert not detector.head.weight.any()
        with hook.put(average=False):
            assert torch.equal(detector.head.weight, raw)
        assert not detector.head.weight.any()
        raise RuntimeError

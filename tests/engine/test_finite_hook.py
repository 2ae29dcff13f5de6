import json
import math
import re

import pytest
import torch
from dummy_task import DummyDetector
from mmcv.runner import HOOKS, Hook

from projects.bevformer.engine.checkpoint import load_checkpoint
from projects.bevformer.engine.non_finite import NonFiniteError, tensors_in

NAN = float("nan")


@pytest.fixture
def spoil(monkeypatch):
    """Lets the training iteration of a number, counted from 1, have a loss or a gradient that is not finite."""

    forward = DummyDetector.forward

    def spoil(what, *iterations):
        def spoilt(self, *args, return_loss=True, **kwargs):
            losses = forward(self, *args, return_loss=return_loss, **kwargs)
            self.calls = getattr(self, "calls", 0) + return_loss
            if return_loss and self.calls in iterations:
                if what == "loss":
                    losses["d0.loss_bbox"] = [losses["d0.loss_bbox"][0] * NAN]
                else:
                    losses["loss_cls"].register_hook(lambda gradient: gradient * float("inf"))
            return losses

        monkeypatch.setattr(DummyDetector, "forward", spoilt)

    return spoil


def equal(one, other):
    """Whether the tensors in nested dicts and lists are the same."""
    one, other = tensors_in(one), tensors_in(other)
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


ITER = {"runner": dict(_delete_=True, type="IterBasedRunner", max_iters=10), "total_epochs": None}
EMA = {"custom_hooks": [dict(type="EMAHook")]}
CYCLE = {
    "optimizer_config.type": "GradientCumulativeOptimizerHook",
    "optimizer_config.cumulative_iters": 4,  # iteration 7 is the third of a cycle
}
UNCLIPPED = {"optimizer_config.grad_clip": None}
EACH = {"checkpoint_config": dict(interval=1, by_epoch=False)}
PROBLEMS = {
    "loss": "the loss is nan (d0.loss_bbox of decoder layer 0 is nan)",
    "gradient": "6 of 6 gradients are not finite (of img_backbone.weight, img_backbone.bias, norm.weight, ...)",
}


@pytest.mark.parametrize("what", PROBLEMS)
@pytest.mark.parametrize(
    "options", [EMA, UNCLIPPED, ITER, CYCLE], ids=["ema", "unclipped", "iter", "cycle"]
)
def test_a_run_stops_with_the_state_before_the_iteration(run, spoil, tmp_path, what, options):
    spoil(what, 7)
    with pytest.raises(NonFiniteError) as stopped:
        run({**options, **EACH}, "each", validate=False)
    message = str(stopped.value)
    assert re.match(
        rf"iteration 7 \(epoch 2\): {re.escape(PROBLEMS[what])}; samples s\df\d, s\df\d; the",
        message,
    )
    saved = tmp_path / "each" / "iter_6.pth"
    assert f"the last good checkpoint is {saved} (6 iterations): look at the samples, " in message
    assert message.endswith(f"and go on with: resume_from={saved}")
    assert not (tmp_path / "each" / "interrupted.pth").exists()
    assert message[:60] in next((tmp_path / "each").glob("*.log")).read_text()

    with pytest.raises(
        NonFiniteError, match="good checkpoint is .*/epochs/interrupted.pth .6 iterations"
    ):
        run({**options, **{"checkpoint_config": dict(interval=4)}}, "epochs", validate=False)
    first, second = (
        load_checkpoint(tmp_path / name) for name in ("each/iter_6.pth", "epochs/interrupted.pth")
    )
    for key in {*first, *second} - {"meta"}:
        assert equal(first[key], second[key]), key
    assert first["meta"]["log_buffer"]["loss"] == second["meta"]["log_buffer"]["loss"]
    for key in ("iter", "iter_in_epoch", "counted_in", "epoch", "hooks"):
        assert first["meta"].get(key) == second["meta"].get(key), key
    assert second["meta"]["interrupted"] == "non-finite"


@pytest.mark.parametrize("what", PROBLEMS)
def test_a_skipped_iteration_leaves_no_trace_but_its_number(run, spoil, what):
    spoil(what, 7)
    work_dir = run({**EACH, **EMA, "non_finite.policy": "skip"}, validate=False)
    before, after, end = (load_checkpoint(work_dir / f"iter_{n}.pth") for n in (6, 7, 10))
    for key in ("state_dict", "raw_weights"):
        assert equal(before[key], after[key])
        assert not equal(after[key], end[key])
    assert equal(before["optimizer"]["state"], after["optimizer"]["state"])
    assert after["meta"]["iter"] == 7
    log = next(work_dir.glob("*.log")).read_text()
    assert f"iteration 7 (epoch 2): {PROBLEMS[what]}; samples" in log
    assert ": skipped, 1 of at most 10" in log
    records = [
        json.loads(line) for line in next(work_dir.glob("*.log.json")).read_text().splitlines()
    ]
    losses = [record.get("loss") for record in records if record.get("mode") == "train"]
    assert len(losses) == 10
    assert math.isnan(losses[6])
    assert all(loss > 0 for loss in losses[:6] + losses[7:])


def test_skipped_iterations_are_counted_over_all_processes_of_a_run(run, spoil, tmp_path):
    spoil("loss", 2, 7)
    options = {**EACH, "non_finite": dict(policy="skip", max_skipped=1)}
    with pytest.raises(NonFiniteError, match="iteration 7 .*: 1 iterations were skipped"):
        run(options, validate=False)
    spoil("loss", 1)
    options["resume_from"] = str(tmp_path / "work" / "iter_6.pth")
    with pytest.raises(NonFiniteError, match="iteration 7 .*: 1 iterations were skipped"):
        run(options, "resumed", validate=False)


def test_skipping_ends_at_its_bound(run, spoil, tmp_path):
    spoil("loss", 2, 3, 4)
    options = {"non_finite": dict(policy="skip", max_skipped=2)}
    with pytest.raises(
        NonFiniteError, match=r"iteration 4 .*: 2 iterations were skipped \(non_finite.max_sk"
    ):
        run(options, validate=False)
    assert load_checkpoint(tmp_path / "work" / "interrupted.pth")["meta"]["iter"] == 3


@pytest.fixture
def own_hook():
    """Registers a hook for a config, as users do with a plug-in."""

    def register(hook):
        HOOKS.register_module(hook.__name__, module=hook)
        names.append(hook.__name__)

    names = []
    yield register
    for name in names:
        del HOOKS._module_dict[name]


class OwnStep(Hook):
    """An optimizer hook of a user, which looks at nothing."""

    def after_train_iter(self, runner):
        runner.optimizer.zero_grad()
        runner.outputs["loss"].backward()
        runner.optimizer.step()


OWN_STEP = {"optimizer_config": dict(_delete_=True, type="OwnStep")}


@pytest.mark.parametrize(
    ("options", "number", "message"),
    [
        (EACH, 7, r"checkpoint .*/iter_7.pth is not written: \d+ of \d+ tensors .*; the last good checkpoint is .*iter_6.pth"),
        ({"evaluation": None}, 2, r"iteration 3 .*: the loss is nan .*; the state before it cannot be saved: .*; no checkpoint was saved"),
        ({"checkpoint_config.interval": 2}, 5, r"the evaluation of epoch_1 is not made: \d+ of \d+ tensors"),
        ({**EMA, "checkpoint_config": dict(interval=1)}, 5, r"checkpoint .*/epoch_1.pth is not written"),
    ],
    ids=["save", "loss", "evaluation", "average"],
)  # fmt: skip
def test_a_step_of_ones_own_is_found_out_before_anything_is_saved(
    run, spoil, own_hook, tmp_path, options, number, message
):
    own_hook(OwnStep)
    spoil("gradient", number)
    options = {"checkpoint_config": dict(interval=9), **options}
    with pytest.raises(NonFiniteError, match=message):
        run({**OWN_STEP, **options})
    for path in (tmp_path / "work").glob("*.pth"):
        load_checkpoint(path)


def test_a_step_of_ones_own_cannot_be_skipped(run, own_hook):
    own_hook(OwnStep)
    with pytest.raises(ValueError, match="policy is 'skip', which needs OptimizerHook or Gradient"):
        run({**OWN_STEP, "non_finite.policy": "skip"})


@pytest.mark.parametrize(("name", "value"), [("lr", NAN), ("lr", -0.1), ("betas", (math.inf, 0.9))])
def test_no_step_with_a_rate_that_is_not_finite(run, own_hook, tmp_path, name, value):
    class Schedule(Hook):
        def before_train_iter(self, runner):
            if runner.iter == 6:
                runner.optimizer.param_groups[1][name] = value

    own_hook(Schedule)
    options = {"custom_hooks": [dict(type="Schedule", priority="VERY_HIGH")]}
    with pytest.raises(
        NonFiniteError, match=rf"iteration 7 \(epoch 2\): the optimizer's {name} is .*; the last"
    ):
        run(options, validate=False)
    assert load_checkpoint(tmp_path / "work" / "interrupted.pth")["meta"]["iter"] == 6

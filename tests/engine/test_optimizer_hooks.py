import logging
from types import SimpleNamespace

import pytest
import torch
from mmcv.runner import LogBuffer
from mmcv.runner.hooks import optimizer as mmcvs
from torch import nn

from projects.bevformer.engine import optimizer_hooks
from projects.bevformer.engine.non_finite import NonFiniteError
from projects.bevformer.engine.optimizer_hooks import (
    GradientCumulativeOptimizerHook,
    LossScalingOptimizerHook,
    OptimizerHook,
)

INF, NAN = float("inf"), float("nan")


class Run:
    """Weights of 0 whose gradient in an iteration is a given number, and SGD with a rate of 1."""

    max_iters = _max_iters = None
    skipped = False
    logger = logging.getLogger("test")

    def __init__(self, hook, skips=True):
        network = nn.Linear(4, 1, bias=False)
        nn.init.zeros_(network.weight)
        network.module = SimpleNamespace(named_parameters=lambda: [("weight", network.weight)])
        self.model = network
        self.weight, self.hook, self.iter, self.meta = network.weight, hook, 0, {}
        self.optimizer = torch.optim.SGD([self.weight], lr=1.0)
        self.log_buffer, self.problems, self.skips = LogBuffer(), [], skips
        hook.on_refusal = self.on_gradients
        hook.before_run(self)

    def on_gradients(self, runner, problem, scale):
        self.problems.append((problem, scale))
        if not self.skips:
            raise NonFiniteError(problem)
        self.skipped = True

    def iteration(self, gradient):
        self.skipped = gradient == "loss"  # FiniteLossHook has left it out
        self.outputs = {"loss": self.weight.sum() * (NAN if self.skipped else gradient)}
        self.outputs["num_samples"] = 1
        self.hook.after_train_iter(self)
        self.iter += 1
        return self.weight[0, 0].item()

    def iterations(self, gradients):
        return [self.iteration(gradient) for gradient in gradients]


@pytest.mark.parametrize(
    "grad_clip", [None, {"max_norm": 2.0}, {"max_norm": 2.0, "norm_type": INF}]
)
@pytest.mark.parametrize("kind", ["OptimizerHook", "GradientCumulativeOptimizerHook"])
def test_steps_equal_those_of_mmcv(kind, grad_clip):
    options = {"cumulative_iters": 2} if kind != "OptimizerHook" else {}
    results = []
    for module in (mmcvs, optimizer_hooks):
        run = Run(getattr(module, kind)(grad_clip=grad_clip, **options))
        run.max_iters = run._max_iters = run.hook.max_iters = 5
        weights = run.iterations((0.3, 1e5, -7.1, 0.0, 3.3))
        results.append((weights, run.log_buffer.val_history.get("grad_norm")))
    assert results[0] == results[1]
    assert (results[1][1] is None) == (grad_clip is None)


@pytest.mark.parametrize("grad_clip", [None, {"max_norm": 35.0}])
@pytest.mark.parametrize(
    ("gradient", "problem"),
    [
        (NAN, "1 of 1 gradients are not finite (of weight)"),
        (-INF, "1 of 1 gradients are not finite (of weight)"),
        (3e38, "the norm of the gradients is infinite, the largest one is of weight"),
    ],
)
def test_no_step_with_a_gradient_that_is_not_finite(gradient, problem, grad_clip):
    run = Run(OptimizerHook(grad_clip=grad_clip))
    assert run.iterations((1.0, gradient, "loss", 1.0)) == [-1, -1, -1, -2]
    assert run.problems == [(problem, None)]
    run.hook.on_refusal = None
    with pytest.raises(NonFiniteError, match="gradients"):
        run.iteration(gradient)


@pytest.mark.parametrize("bad", [NAN, "loss"])
@pytest.mark.parametrize("zero_grad_keeps_tensors", [False, True])  # as torch 1.10 does
def test_a_skipped_iteration_adds_nothing_to_its_cycle(bad, zero_grad_keeps_tensors):
    run = Run(GradientCumulativeOptimizerHook(cumulative_iters=3))
    run.max_iters = run._max_iters = run.hook.max_iters = 99
    zero_grad = run.optimizer.zero_grad
    run.optimizer.zero_grad = lambda: zero_grad(set_to_none=not zero_grad_keeps_tensors)
    run.optimizer.param_groups[0]["weight_decay"] = 1e-9  # a step with a gradient of 0 would show
    ends = []
    for cycle in (
        (bad, 3.0, 6.0),
        (3.0, bad, 6.0),
        (3.0, 6.0, bad),
        (bad, bad, bad),
        (1.0, 1.0, 1.0),
    ):
        before = run.weight[0, 0].item()
        after = run.iterations(cycle)[-1]
        ends.append(round(before - after, 6))
        assert (after == before) == (cycle == (bad, bad, bad))
    assert ends == [3, 3, 3, 0, 1]
    assert [run.hook.holds_gradients(done) for done in (0, 1, 2, 3, 98, 99)] == [0, 1, 1, 0, 1, 0]


def test_a_stop_within_a_cycle_leaves_the_gradients_before_it():
    run = Run(GradientCumulativeOptimizerHook(cumulative_iters=4), skips=False)
    run.max_iters = run._max_iters = 99
    run.iterations((4.0, 8.0))
    with pytest.raises(NonFiniteError):
        run.iteration(NAN)
    assert run.weight.grad[0, 0].item() == 3


class Scaler:
    """Stands in for a GradScaler: gradients beyond float16 overflow."""

    def __init__(self, init_scale=65536.0):
        self.value = init_scale

    def scale(self, loss):
        return loss * self.value

    def unscale_(self, optimizer):
        for weight in optimizer.param_groups[0]["params"]:
            scaled = torch.where(weight.grad.abs() > 65504, torch.tensor(INF), weight.grad)
            weight.grad = scaled / self.value
            self.found = not bool(torch.isfinite(weight.grad).all())

    def step(self, optimizer):
        assert not self.found
        optimizer.step()

    def update(self, new_scale):
        self.value = new_scale or (self.value / 2 if self.found else self.value)

    def get_scale(self):
        return self.value


@pytest.mark.parametrize(("loss_scale", "overflows"), [("dynamic", 29), (512.0, 30)])
def test_overflows_lower_the_scale_and_only_endless_ones_end_the_run(
    monkeypatch, loss_scale, overflows
):
    monkeypatch.setattr(optimizer_hooks, "make_grad_scaler", Scaler)
    run = Run(LossScalingOptimizerHook(loss_scale, {"max_norm": 1e5}), skips=False)
    run.iterations((1e-3, 1e3, 1.0))  # the second overflows
    assert run.weight[0, 0].item() == pytest.approx(-1.001)
    assert run.hook.scaler.value == (512.0 if loss_scale == 512.0 else 32768.0)
    assert run.log_buffer.val_history["grad_norm"] == pytest.approx([2e-3, 2.0])
    run.iteration("loss")
    with pytest.raises(NonFiniteError):
        run.iterations([INF] * 99)
    assert run.iter == 4 + overflows - 1
    assert run.problems == [("1 of 1 gradients are not finite (of weight)", run.hook.scaler.value)]
    assert run.weight[0, 0].item() == pytest.approx(-1.001)


def test_a_scale_that_falls_to_nothing_by_and_by_ends_the_run(monkeypatch):
    monkeypatch.setattr(optimizer_hooks, "make_grad_scaler", Scaler)
    run = Run(LossScalingOptimizerHook({"init_scale": 1e-3}), skips=False)
    with pytest.raises(NonFiniteError):
        run.iterations([INF, 1.0] * 9)
    assert run.iter == 2 * 3

"""Hooks that make a step of the optimizer, under the names that mmcv gives them.

Between the backward pass and the step they look whether all gradients are finite, before clipping makes all of
them NaN. It costs a device sync; the norm that they look at is the one that clipping needs.
"""

from __future__ import annotations

import math
from typing import Any, Callable

import torch
from mmcv.runner import HOOKS, BaseRunner
from mmcv.runner.hooks import optimizer as _mmcv
from torch.nn.utils import clip_grad_norm_

from projects.bevformer.compat import make_grad_scaler
from projects.bevformer.engine.non_finite import NonFiniteError, non_finite_names
from projects.bevformer.messages import listed

_UNCLIPPED = {"max_norm": float("inf")}
# Halved so often, the first scale of a GradScaler is 6e-5, and gradients underflow.
_ENDLESS_OVERFLOWS, _LEAST_SCALE = 30, 1e-4


@HOOKS.register_module(force=True)
class OptimizerHook(_mmcv.OptimizerHook):
    """Backward, gradient clipping and step, in each iteration.

    Args:
        grad_clip: arguments of `clip_grad_norm_`; None does not clip.
        detect_anomalous_params: log the parameters that the loss does not depend on, in each iteration.
    """

    # Takes gradients that are not finite; see FiniteLossHook.on_gradients.
    on_refusal: Callable[[Any, str, float | None], None] | None = None

    def holds_gradients(self, iterations_done: int) -> bool:
        """Whether gradients that no step was made with yet are kept after so many iterations."""
        return False

    def after_train_iter(self, runner: BaseRunner) -> None:
        if runner.skipped:
            return
        runner.optimizer.zero_grad()
        if self.detect_anomalous_params:
            self.detect_anomalous_parameters(runner.outputs["loss"], runner)
        runner.outputs["loss"].backward()
        if self._clip(runner, self.grad_clip):
            runner.optimizer.step()
        else:
            self._refuse(runner)

    def _clip(self, runner: BaseRunner, grad_clip: dict | None) -> bool:
        """Clip the gradients and log their norm; False leaves them as they are: they are not finite."""
        gradients = _gradients(runner)
        if not gradients:
            return True
        options = {**(grad_clip or _UNCLIPPED), "error_if_nonfinite": True}
        try:
            norm = clip_grad_norm_([weight for weight, _ in gradients.values()], **options)
        except RuntimeError as error:
            if "non-finite" not in str(error):
                raise
            return False
        if grad_clip is not None:
            runner.log_buffer.update({"grad_norm": float(norm)}, runner.outputs["num_samples"])
        return True

    def _refuse(
        self,
        runner: BaseRunner,
        kept: dict[str, torch.Tensor] | None = None,
        scale: float | None = None,
    ) -> None:
        """Put gradients that are not finite back to those `kept` of earlier iterations, and report them.

        They are of a loss that was multiplied by `scale`; None: it was not.
        """
        gradients = _gradients(runner)
        problem = _problem({name: gradient for name, (_, gradient) in gradients.items()})
        for name, (weight, gradient) in gradients.items():
            weight.grad = gradient.copy_(kept[name]) if name in (kept or {}) else None
        if self.on_refusal is None:
            raise NonFiniteError(problem)
        self.on_refusal(runner, problem, scale)


def _gradients(runner: BaseRunner) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """name -> parameter and gradient, of those that have one."""
    return {
        name: (weight, weight.grad)
        for name, weight in runner.model.module.named_parameters()
        if weight.requires_grad and weight.grad is not None
    }


def _problem(gradients: dict[str, torch.Tensor]) -> str:
    names = non_finite_names(gradients)
    if names:
        return f"{len(names)} of {len(gradients)} gradients are not finite (of {listed(names, 3)})"
    largest = max(gradients, key=lambda name: float(gradients[name].abs().max()))
    return f"the norm of the gradients is infinite, the largest one is of {largest}"


@HOOKS.register_module(force=True)
class GradientCumulativeOptimizerHook(OptimizerHook):
    """A step with the mean gradient of several iterations.

    An iteration that is skipped adds nothing to that mean; where all of a cycle are, there is no step.
    Within a cycle the gradients so far are copied before each backward pass, so that one that is not finite
    does not spoil them: that takes the memory of the gradients once more.

    Args:
        cumulative_iters: iterations of a step.
        grad_clip, detect_anomalous_params: see `OptimizerHook`.
    """

    max_iters: int | None = None  # of the run, at whose end a shorter cycle ends

    def __init__(
        self,
        cumulative_iters: int = 1,
        grad_clip: dict | None = None,
        detect_anomalous_params: bool = False,
    ) -> None:
        super().__init__(grad_clip, detect_anomalous_params)
        self.cumulative_iters = cumulative_iters

    def before_run(self, runner: BaseRunner) -> None:
        self.max_iters = runner.max_iters
        if self.holds_gradients(runner.iter) and not _gradients(runner):
            runner.logger.warning(
                "iteration %d is within a cycle of %d (optimizer_config.cumulative_iters), and the "
                "checkpoint has no gradients: those of the cycle so far are lost",
                runner.iter, self.cumulative_iters,
            )  # fmt: skip

    def holds_gradients(self, iterations_done: int) -> bool:
        """See `OptimizerHook`."""
        return iterations_done % self.cumulative_iters != 0 and iterations_done != self.max_iters

    def after_train_iter(self, runner: BaseRunner) -> None:
        start = runner.iter // self.cumulative_iters * self.cumulative_iters
        length = min(self.cumulative_iters, (self.max_iters or math.inf) - start)
        ends = not self.holds_gradients(runner.iter + 1)
        if not runner.skipped:
            holds = self.holds_gradients(runner.iter)
            kept = {name: g.clone() for name, (_, g) in _gradients(runner).items()} if holds else {}
            (runner.outputs["loss"] / length).backward()
            if self._clip(runner, self.grad_clip if ends else None):
                if ends:
                    self._step(runner)
                return
            self._refuse(runner, kept)
        if ends and any(gradient.any() for _, gradient in _gradients(runner).values()):
            self._clip(runner, self.grad_clip)
            self._step(runner)

    def _step(self, runner: BaseRunner) -> None:
        runner.optimizer.step()
        runner.optimizer.zero_grad()


class LossScalingOptimizerHook(OptimizerHook):
    """Backward, gradient clipping and step under a GradScaler, for float16 on CUDA.

    A step whose gradients overflow is left out, and the scale lowered: that is how the scale is found. It only
    ends the run when no scale is low enough.

    Args:
        loss_scale: "dynamic", the fixed factor as a number, or arguments of GradScaler.
        grad_clip: arguments of `clip_grad_norm_`, applied to the unscaled gradients.
    """

    def __init__(
        self, loss_scale: str | float | dict = "dynamic", grad_clip: dict | None = None
    ) -> None:
        super().__init__(grad_clip=grad_clip)
        options = loss_scale if isinstance(loss_scale, dict) else {}
        self.fixed_scale = None
        if isinstance(loss_scale, (int, float)):
            self.fixed_scale = float(loss_scale)
            options = {"init_scale": self.fixed_scale}
        self.scaler = make_grad_scaler(**options)
        self.overflows = 0  # in a row

    def before_run(self, runner: BaseRunner) -> None:
        if "grad_scaler" in runner.meta:
            self.scaler.load_state_dict(runner.meta["grad_scaler"])

    def after_train_iter(self, runner: BaseRunner) -> None:
        if runner.skipped:
            return
        runner.optimizer.zero_grad()
        self.scaler.scale(runner.outputs["loss"]).backward()
        self.scaler.unscale_(runner.optimizer)
        is_finite = self._clip(runner, self.grad_clip)
        if is_finite:
            self.scaler.step(runner.optimizer)
        self.scaler.update(self.fixed_scale)
        self.overflows = 0 if is_finite else self.overflows + 1
        if not is_finite:
            self._end_if_endless(runner)

    def _end_if_endless(self, runner: BaseRunner) -> None:
        scale = self.scaler.get_scale()
        if self.overflows >= _ENDLESS_OVERFLOWS or scale < _LEAST_SCALE:
            self._refuse(runner, scale=scale)

    def checkpoint_meta(self) -> dict:
        """State of the scaler for a checkpoint; reading it forces a sync."""
        return {"grad_scaler": self.scaler.state_dict()}

    def state_of_run(self) -> dict[str, int]:
        """For checkpoints."""
        return {"overflows": self.overflows}

    def resume_state(self, state: dict[str, Any]) -> None:
        """Go on with what `state_of_run` of an earlier process returned."""
        self.overflows = state["overflows"]

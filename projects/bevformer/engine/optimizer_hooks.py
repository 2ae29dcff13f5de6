"""Hooks that make a step of the optimizer, under the names that mmcv gives them."""

from __future__ import annotations

from mmcv.runner import HOOKS, BaseRunner
from mmcv.runner.hooks import optimizer as _mmcv

from projects.bevformer.compat import make_grad_scaler


@HOOKS.register_module(force=True)
class OptimizerHook(_mmcv.OptimizerHook):
    """Backward, gradient clipping and step, in each iteration.

    Args:
        grad_clip: arguments of `clip_grad_norm_`; None does not clip.
        detect_anomalous_params: name the parameters without a gradient, in each iteration.
    """

    def holds_gradients(self, iterations_done: int) -> bool:
        """Whether gradients that no step was made with yet are kept after so many iterations."""
        return False


@HOOKS.register_module(force=True)
class GradientCumulativeOptimizerHook(_mmcv.GradientCumulativeOptimizerHook, OptimizerHook):
    """A step with the mean gradient of several iterations.

    Args:
        cumulative_iters: iterations of a step.
        grad_clip, detect_anomalous_params: see `OptimizerHook`.
    """

    max_iters: int | None = None  # of the run, at whose end a shorter cycle ends

    def before_run(self, runner: BaseRunner) -> None:
        self.max_iters = runner.max_iters

    def holds_gradients(self, iterations_done: int) -> bool:
        """See `OptimizerHook`."""
        return iterations_done % self.cumulative_iters != 0 and iterations_done != self.max_iters


class LossScalingOptimizerHook(OptimizerHook):
    """Backward, gradient clipping and step under a GradScaler, for float16 on CUDA.

    Args:
        loss_scale: "dynamic", or the fixed factor as a number.
        grad_clip: arguments of `clip_grad_norm_`, applied to the unscaled gradients.
    """

    def __init__(self, loss_scale="dynamic", grad_clip=None):
        super().__init__(grad_clip=grad_clip)
        self.fixed_scale = None if loss_scale == "dynamic" else float(loss_scale)
        initial = {} if self.fixed_scale is None else {"init_scale": self.fixed_scale}
        self.scaler = make_grad_scaler(**initial)

    def before_run(self, runner):
        if "grad_scaler" in runner.meta:
            self.scaler.load_state_dict(runner.meta["grad_scaler"])

    def after_train_iter(self, runner):
        runner.optimizer.zero_grad()
        self.scaler.scale(runner.outputs["loss"]).backward()
        self.scaler.unscale_(runner.optimizer)
        if self.grad_clip is not None:
            grad_norm = self.clip_grads(runner.model.parameters())
            if grad_norm is not None:
                runner.log_buffer.update(
                    {"grad_norm": float(grad_norm)}, runner.outputs["num_samples"]
                )
        self.scaler.step(runner.optimizer)
        self.scaler.update(self.fixed_scale)

    def checkpoint_meta(self):
        """State of the scaler for a checkpoint; reading it forces a sync."""
        return {"grad_scaler": self.scaler.state_dict()}

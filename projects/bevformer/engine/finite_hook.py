"""Keeps NaN and infinite numbers out of the weights of a training run."""

from __future__ import annotations

import contextlib
import math
import re
import warnings
from typing import Any, Iterator, Mapping

from mmcv.runner import HOOKS, BaseRunner, Hook

from projects.bevformer.engine.batch import to_device, train_sample_tokens
from projects.bevformer.engine.distributed import (
    FirstRankError,
    all_gather,
    broadcast,
    get_rank,
    is_distributed,
)
from projects.bevformer.engine.interruption import save_interrupted
from projects.bevformer.engine.log import log_to_file
from projects.bevformer.engine.non_finite import NonFiniteError, non_finite_names
from projects.bevformer.engine.optimizer_hooks import OptimizerHook
from projects.bevformer.engine.run_state import rank_state, restore_buffers, restore_rank_state
from projects.bevformer.engine.training_model import total_loss
from projects.bevformer.interruption import command_to_go_on


@contextlib.contextmanager
def named_ending(runner: BaseRunner) -> Iterator[None]:
    """A block in which NonFiniteError ends the run with the last good checkpoint in its message."""
    try:
        yield
    except NonFiniteError as error:
        if get_rank() != 0:
            raise FirstRankError(str(error)) from None
        text = f"{error}; no checkpoint was saved before"
        if runner.saved is not None:
            path, iterations = runner.saved
            text = (
                f"{error}; the last good checkpoint is {path} ({iterations} iterations): look at the samples, "
                "lower optimizer.lr or leave such iterations out (non_finite.policy=skip), and go on with: "
                f"{command_to_go_on(path)}"
            )
        log_to_file(runner.logger, "%s", text)
        raise NonFiniteError(text) from None


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Looks at the loss before the backward pass, and is handed gradients before the step.

    What it looks at is the same in all processes, so that all of them do the same. It costs a copy of the random
    states and of the statistics of batch norms in each iteration.

    Args:
        policy: what a loss or gradient that is not finite means. "stop": the run ends, with the state before
            that iteration in a checkpoint. "skip": no step is made in that iteration, and batch norms and
            averages of the weights are as if it had not been.
        max_skipped: iterations of the whole run, resumed or not, that "skip" leaves out before it stops.

    Raises:
        NonFiniteError: in the run, with the terms of the loss or the parameters, and the samples.
        ValueError: "skip" with an optimizer hook of one's own, which makes its step by itself.
    """

    def __init__(self, policy: str = "stop", max_skipped: int = 10) -> None:
        self.policy, self.max_skipped = policy, max_skipped
        self.skipped = 0

    def state_of_run(self) -> dict[str, int]:
        """For checkpoints."""
        return {"skipped": self.skipped}

    def resume_state(self, state: Mapping[str, Any]) -> None:
        """Go on with what `state_of_run` of an earlier process returned."""
        self.skipped = state["skipped"]

    def before_run(self, runner: BaseRunner) -> None:
        hooks = [hook for hook in runner.hooks if isinstance(hook, OptimizerHook)]
        for hook in hooks:
            hook.on_refusal = self.on_gradients
        if self.policy == "skip" and not hooks:
            raise ValueError(
                "non_finite.policy is 'skip', which needs OptimizerHook or GradientCumulativeOptimizerHook: "
                "optimizer_config.type names a hook that makes its step by itself"
            )

    def before_train_iter(self, runner: BaseRunner) -> None:
        runner.skipped = False
        self.before = rank_state(runner.model.module, runner.model.device)
        for group in runner.optimizer.param_groups:
            for name in ("lr", "momentum", "betas"):
                values = group.get(name, 0.0)
                for value in values if isinstance(values, tuple) else (values,):
                    if isinstance(value, (int, float)) and not 0 <= value < math.inf:
                        self._stop(runner, f"the optimizer's {name} is {values}", None)

    def after_train_iter(self, runner: BaseRunner) -> None:
        log_vars = runner.outputs["log_vars"]
        if math.isfinite(log_vars["loss"]):
            return
        terms = [_described(name, value) for name, value in log_vars.items() if name != "loss"]
        is_here = not math.isfinite(runner.outputs["loss"].item())
        problem = f"the loss is {log_vars['loss']:g} ({', '.join(filter(None, terms))})"
        self._skip_or_stop(runner, problem, _tokens(runner) if is_here else [])

    def on_gradients(self, runner: BaseRunner, problem: str, scale: float | None) -> None:
        """Take gradients that are not finite; they are dropped already.

        Args:
            runner: after the backward pass.
            problem: names the parameters.
            scale: float16 overflows with every scale of the loss, this is the last; None without one.
        """
        here = _tokens(runner)
        if is_distributed() and not self._begin_here(runner, scale):
            here = []
        if scale is None:
            self._skip_or_stop(runner, problem, here)
        else:
            what = f"float16 overflows, even with a loss scale of {scale:g}"
            self._stop(runner, f"{what} (fp16.dtype='bfloat16' has more range): {problem}", here)

    def _begin_here(self, runner: BaseRunner, scale: float | None) -> bool:
        """Whether the gradients of this process alone are not finite: DDP has averaged those of all."""
        restore_rank_state(self.before, runner.model.module, runner.model.device)
        weights = dict(runner.model.module.named_parameters())
        averaged = {name: weight.grad for name, weight in weights.items()}
        for weight in weights.values():
            weight.grad = None
        batch = to_device(runner.data_batch, runner.model.device)
        loss, _ = total_loss(runner.model.module(return_loss=True, **batch))
        (loss * (scale or 1.0)).backward()
        own = {name: weight.grad for name, weight in weights.items() if weight.grad is not None}
        found = bool(non_finite_names(own))
        for name, weight in weights.items():
            weight.grad = averaged[name]
        return found

    def _skip_or_stop(self, runner: BaseRunner, problem: str, tokens: list[str]) -> None:
        if self.policy == "stop":
            self._stop(runner, problem, tokens)
        if self.skipped == self.max_skipped:
            problem = (
                f"{self.skipped} iterations were skipped (non_finite.max_skipped), and {problem}"
            )
            self._stop(runner, problem, tokens)
        self.skipped += 1
        runner.skipped = True
        restore_buffers(self.before["buffers"], runner.model.module)
        _leave_out_of_means(runner)
        runner.logger.warning(
            "%s: skipped, %d of at most %d", _where(runner, problem, tokens), self.skipped,
            self.max_skipped,
        )  # fmt: skip

    def _stop(self, runner: BaseRunner, problem: str, tokens: list[str] | None) -> None:
        text = _where(runner, problem, tokens)
        restore_rank_state(self.before, runner.model.module, runner.model.device)
        saved = broadcast(runner.saved)
        if saved is None or saved[1] != runner.iter:
            if runner.stage == "after_train_iter":
                _forget_losses(runner)
            runner.stage = "before_train_iter"
            try:
                save_interrupted(runner, "non-finite")
            except (NonFiniteError, OSError) as error:
                text = f"{text}; the state before it cannot be saved: {error}"
        raise NonFiniteError(text)


def _tokens(runner: BaseRunner) -> list[str]:
    return train_sample_tokens(runner.data_batch["img_metas"].data[0])


def _described(name: str, value: float) -> str | None:
    """`d0.loss_cls of decoder layer 0 is nan`, or None for a finite one."""
    if math.isfinite(value):
        return None
    layer = re.search(r"(?:^|\.)d(\d+)\.", name)
    return f"{name}{f' of decoder layer {layer[1]}' if layer else ''} is {value:g}"


def _where(runner: BaseRunner, problem: str, tokens: list[str] | None) -> str:
    """The problem with its iteration, and the samples of the ranks that it began on; None: it is of no sample."""
    text = f"iteration {runner.iter + 1} (epoch {runner.epoch + 1}): {problem}"
    if tokens is None:
        return text
    of_ranks = all_gather(tokens)
    if not any(of_ranks):
        of_ranks = all_gather(_tokens(runner))
    several = len(of_ranks) > 1
    samples = [
        f"{', '.join(some)}{f' of rank {rank}' if several else ''}"
        for rank, some in enumerate(of_ranks)
        if some
    ]
    return f"{text}; samples {', '.join(samples)}"


def _leave_out_of_means(runner: BaseRunner) -> None:
    """Take the losses of this iteration out of the means that are logged; a mean of nothing is nan."""
    warnings.filterwarnings("ignore", "invalid value", RuntimeWarning, r"mmcv\.runner\.log_buffer")
    for name in runner.outputs["log_vars"]:
        runner.log_buffer.val_history[name][-1] = runner.log_buffer.n_history[name][-1] = 0


def _forget_losses(runner: BaseRunner) -> None:
    """Let the log be as before this iteration."""
    for name in runner.outputs["log_vars"]:
        for history in (runner.log_buffer.val_history, runner.log_buffer.n_history):
            history[name].pop()

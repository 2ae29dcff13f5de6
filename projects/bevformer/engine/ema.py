"""Exponential moving average (EMA) of the weights, under the names that mmcv and mmdet give it.

Their own hooks exchange the weights at the end of an epoch, so what is saved depends on the order
of the hooks. Here the network is trained with its raw weights throughout, and evaluation and
checkpoints ask for the average (`runner.py`).
"""

from __future__ import annotations

import contextlib
import math
from collections import OrderedDict
from typing import Iterator

import torch
from mmcv.runner import HOOKS, BaseRunner, Hook
from mmdet.core.hook import ema as _mmdet  # noqa: F401  (registers what is replaced here)
from torch import nn


class AverageHook(Hook):
    """Keeps an average of the weights, and puts it into the network where one asks for it.

    Its place among the hooks is fixed: after the step of the optimizer, before anything is saved or
    evaluated.

    Args:
        momentum: share of the present weights in each update.
        interval: iterations between two updates.
        resume_from: refused; runs are resumed with `--resume-from`.

    Raises:
        ValueError: an impossible momentum or interval, or `resume_from`.
    """

    averages_buffers = False

    def __init__(
        self, momentum: float = 0.0002, interval: int = 1, resume_from: str | None = None
    ) -> None:
        name = type(self).__name__
        if not 0 < momentum < 1 or interval < 1:
            raise ValueError(
                f"{name}: momentum {momentum} must be between 0 and 1, interval {interval} at least 1"
            )
        if resume_from is not None:
            raise ValueError(f"{name}.resume_from: resume the run instead, with --resume-from FILE")
        self.momentum, self.interval = momentum, interval
        self.averages: dict[str, torch.Tensor] | None = None
        self.in_network = False

    def momentum_at(self, iteration: int) -> float:
        """Momentum of the update after an iteration, counted from 0."""
        raise NotImplementedError

    def is_due(self, iteration: int) -> bool:
        """Whether the average is updated after an iteration, counted from 0."""
        return (iteration + 1) % self.interval == 0

    def restart(self, detector: nn.Module) -> None:
        """Let the average be the present weights of the bare model."""
        kept = detector.state_dict()
        self.weights = {name: value.detach() for name, value in detector.named_parameters()}
        if self.averages_buffers:
            self.weights.update(
                (name, value)
                for name, value in detector.named_buffers()
                if name in kept and value.is_floating_point()
            )
        self.averages = {name: value.clone() for name, value in self.weights.items()}

    def before_run(self, runner: BaseRunner) -> None:
        if self.averages is None:
            self.restart(runner.model.module)
        runner.logger.info(
            "%s: weights are averaged with momentum %g every %d iteration(s); evaluation and "
            "checkpoints have the average",
            type(self).__name__, self.momentum_at(runner.max_iters or runner.iter), self.interval,
        )  # fmt: skip

    @torch.no_grad()
    def after_train_iter(self, runner: BaseRunner) -> None:
        if self.is_due(runner.iter) and not runner.skipped:
            momentum = self.momentum_at(runner.iter)
            for name, average in self.averages.items():
                average.lerp_(self.weights[name], momentum)

    @contextlib.contextmanager
    def put(self, average: bool) -> Iterator[None]:
        """Run a block with the average (or the raw weights) in the network; blocks may be nested."""
        changes = average != self.in_network
        if changes:
            self._swap()
        try:
            yield
        finally:
            if changes:
                self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, weight in self.weights.items():
            other = weight.clone()
            weight.copy_(self.averages[name])
            self.averages[name].copy_(other)
        self.in_network = not self.in_network

    def raw_weights(self, detector: nn.Module) -> OrderedDict:
        """The raw `state_dict` of the model, copied to the CPU."""
        with self.put(average=False):
            state = detector.state_dict()
            return OrderedDict((name, value.to("cpu", copy=True)) for name, value in state.items())


@HOOKS.register_module(force=True)
class EMAHook(AverageHook):
    """The average of mmcv's EMAHook, of parameters only.

    Args:
        momentum, interval: the momentum of an update is `momentum ** interval`, as in mmcv.
        warm_up: momentum is at most (1 + i) / (warm_up + i) in iteration i, counted from 0.
        resume_from: refused, see `AverageHook`.

    Raises:
        ValueError: see `AverageHook`; warm_up below 1.
    """

    def __init__(
        self,
        momentum: float = 0.0002,
        interval: int = 1,
        warm_up: int = 100,
        resume_from: str | None = None,
    ) -> None:
        super().__init__(momentum, interval, resume_from)
        if warm_up < 1:
            raise ValueError(f"{type(self).__name__}: warm_up is {warm_up}, it must be at least 1")
        self.warm_up = warm_up

    def momentum_at(self, iteration: int) -> float:
        return min(self.momentum**self.interval, (1 + iteration) / (self.warm_up + iteration))

    def is_due(self, iteration: int) -> bool:
        return iteration % self.interval == 0


@HOOKS.register_module(force=True)
class ExpMomentumEMAHook(AverageHook):
    """The average of mmdet's ExpMomentumEMAHook: the momentum falls from 1 to `momentum`.

    Args:
        total_iter: iterations in which the difference falls to 1 / e.
        momentum, interval, resume_from: see `AverageHook`.
        skip_buffers: average parameters only, not the statistics of BatchNorm.
    """

    def __init__(
        self,
        total_iter: int = 2000,
        momentum: float = 0.0002,
        interval: int = 1,
        skip_buffers: bool = False,
        resume_from: str | None = None,
    ) -> None:
        super().__init__(momentum, interval, resume_from)
        self.total_iter, self.averages_buffers = total_iter, not skip_buffers

    def momentum_at(self, iteration: int) -> float:
        fall = math.exp(-(1 + iteration) / self.total_iter)
        return (1 - self.momentum) * fall + self.momentum


@HOOKS.register_module(force=True)
class LinearMomentumEMAHook(EMAHook):
    """The average of mmdet's LinearMomentumEMAHook: as EMAHook, with the buffers.

    Args:
        warm_up, momentum, interval, resume_from: see `EMAHook`.
        skip_buffers: average parameters only, not the statistics of BatchNorm.
    """

    def __init__(
        self,
        warm_up: int = 100,
        momentum: float = 0.0002,
        interval: int = 1,
        skip_buffers: bool = False,
        resume_from: str | None = None,
    ) -> None:
        super().__init__(momentum, interval, warm_up, resume_from)
        self.averages_buffers = not skip_buffers

    def is_due(self, iteration: int) -> bool:
        return (iteration + 1) % self.interval == 0

"""Runs that are stopped and resumed, over everything that could make a difference."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import random
from typing import NamedTuple

import numpy as np
import torch
from dummy_task import DummyDetector
from mmcv import Config
from mmcv.runner import HOOKS, Hook
from mmdet.models import DETECTORS
from torch import nn

from projects.bevformer.engine.checkpoint import load_checkpoint
from projects.bevformer.engine.optimizer_hooks import LossScalingOptimizerHook
from projects.bevformer.engine.train import train
from projects.bevformer.model.grid_mask import GridMask

LEVELS = {
    "runner": ("epoch", "iter"),
    "workers": ("none", "two", "persistent"),
    "processes": (1, 2),
    "draws": (False, True),  # dropout, grid mask, and draws from Python's generator
    "norm": ("frozen", "training"),
    "average": ("none", "EMAHook", "LinearMomentumEMAHook"),
    "accumulation": (1, 3),
    "saved": ("inside", "end"),  # of an epoch
    "scaler": (False, True),  # of the loss, one that overflows
}
# One hook does not do both.
IMPOSSIBLE = {frozenset({("accumulation", 3), ("scaler", True)})}


class Case(NamedTuple):
    runner: str
    workers: str
    processes: int
    draws: bool
    norm: str
    average: str
    accumulation: int
    saved: str
    scaler: bool

    @property
    def name(self):
        return "-".join(map(str, self))

    def pairs(self):
        return set(map(frozenset, itertools.combinations(self._asdict().items(), 2)))


CASES = [
    Case("iter", "two", 1, True, "training", "LinearMomentumEMAHook", 1, "end", False),
    Case("epoch", "two", 1, True, "frozen", "none", 3, "inside", False),
    Case("iter", "persistent", 1, True, "training", "EMAHook", 1, "end", True),
    Case("iter", "none", 1, True, "training", "none", 1, "end", True),
    Case("epoch", "two", 1, False, "training", "EMAHook", 3, "end", False),
    Case("epoch", "none", 2, False, "frozen", "EMAHook", 1, "inside", True),
    Case("iter", "persistent", 2, False, "frozen", "none", 3, "end", False),
    Case("epoch", "none", 2, False, "training", "LinearMomentumEMAHook", 3, "inside", False),
    Case("iter", "two", 2, False, "frozen", "LinearMomentumEMAHook", 1, "inside", True),
    Case("epoch", "persistent", 2, True, "training", "LinearMomentumEMAHook", 1, "inside", False),
]


def possible_pairs():
    """All pairs of levels of two factors."""
    pairs = set()
    for (a, levels_a), (b, levels_b) in itertools.combinations(LEVELS.items(), 2):
        pairs |= {frozenset({(a, x), (b, y)}) for x in levels_a for y in levels_b}
    return pairs - IMPOSSIBLE


@DETECTORS.register_module()
class DrawingDetector(DummyDetector):
    """The dummy detector with dropout, grid mask and another draw, or with a frozen batch norm."""

    def __init__(
        self, draws=False, frozen=False, pts_bbox_head=None, train_cfg=None, test_cfg=None
    ):
        super().__init__()
        self.frozen = frozen
        self.draws = draws
        self.mask, self.dropout = GridMask(), nn.Dropout(0.3)

    def train(self, mode=True):
        super().train(mode)
        if self.frozen:
            self.norm.eval()
        return self

    def _score(self, images):
        if self.draws and self.training:
            images = self.dropout(self.mask(images)) * (1 + random.random())
        return super()._score(images)


class StandInScaler:
    """As torch's GradScaler on a GPU: skips the step and halves the scale where gradients overflow."""

    def __init__(self):
        self.scale_now, self.good_steps, self.overflows = 64.0, 0, 0

    def scale(self, loss):
        return loss * self.scale_now

    def unscale_(self, optimizer):
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        self.overflowed = max(g.abs().max().item() for g in gradients) > 40
        self.overflows += self.overflowed
        for gradient in gradients:
            gradient.div_(self.scale_now)

    def step(self, optimizer):
        if not self.overflowed:
            optimizer.step()

    def update(self, fixed=None):
        self.good_steps = 0 if self.overflowed else self.good_steps + 1
        self.scale_now *= 0.5 if self.overflowed else 2.0 if self.good_steps % 2 == 0 else 1.0

    def get_scale(self):
        return self.scale_now

    def state_dict(self):
        return {"scale": self.scale_now, "good_steps": self.good_steps, "overflows": self.overflows}

    def load_state_dict(self, state):
        self.scale_now, self.good_steps = state["scale"], state["good_steps"]
        self.overflows = state["overflows"]


@HOOKS.register_module()
class OverflowingOptimizerHook(LossScalingOptimizerHook):
    def __init__(self, grad_clip=None):
        super().__init__(grad_clip=grad_clip)
        self.scaler = StandInScaler()


@HOOKS.register_module()
class DrawingHook(Hook):
    """A hook of a user that draws and counts, in each iteration and before a resumed run goes on."""

    def __init__(self):
        self.iterations = 0

    def before_run(self, runner):
        random.random(), np.random.rand(), torch.rand(1)

    before_epoch = before_run

    def after_train_iter(self, runner):
        self.iterations += 1
        for _ in range(self.iterations):
            random.random(), np.random.rand(), torch.rand(1)

    def state_of_run(self):
        return {"iterations": self.iterations}

    def resume_state(self, state):
        self.iterations = state["iterations"]


def options_of(case):
    """Overrides of the dummy config: two epochs of five iterations in one process, of three in two."""
    length = 2 * (5 if case.processes == 1 else 3)
    options = {
        "model": {"type": "DrawingDetector", "draws": case.draws, "frozen": case.norm == "frozen"},
        "data.workers_per_gpu": 0 if case.workers == "none" else 2,
        "data.persistent_workers": case.workers == "persistent",
        "checkpoint_config": {"interval": 1, "by_epoch": False},
        "log_config.interval": 2,
        "lr_config": None,
    }
    if case.runner == "iter":
        options["runner"] = {"type": "IterBasedRunner", "max_iters": length, "_delete_": True}
        options["total_epochs"] = None
    options["custom_hooks"] = [{"type": "DrawingHook"}]
    if case.average != "none":
        options["custom_hooks"].append({"type": case.average, "momentum": 0.1})
    if case.accumulation > 1:
        options["optimizer_config.type"] = "GradientCumulativeOptimizerHook"
        options["optimizer_config.cumulative_iters"] = case.accumulation
    if case.scaler:
        options["optimizer_config.type"] = "OverflowingOptimizerHook"
    return options


def differences(case, config, folder, device="cpu"):
    """Train, resume from the middle, and compare; called on all ranks.

    Args:
        case: a `Case`.
        config: (options) -> mmcv.Config.
        folder: for the work dirs, the same on all ranks.

    Returns:
        What differs at the end, a list of names.
    """
    per_epoch = 5 if case.processes == 1 else 3
    stop = per_epoch if case.saved == "end" else per_epoch + 2 if per_epoch == 5 else per_epoch - 1
    whole, resumed = folder / "whole", folder / "resumed"
    for work_dir, start in ((whole, None), (resumed, whole / f"iter_{stop}.pth")):
        work_dir.mkdir(parents=True, exist_ok=True)
        cfg: Config = config(options_of(case))
        cfg.work_dir = str(work_dir)
        cfg.resume_from = start and str(start)
        train(cfg, torch.device(device), "dummy.py", seed=0, validate=False)
        assert not multiprocessing.active_children()  # data workers
    name = f"iter_{2 * per_epoch}.pth"
    ours, theirs = (plain(load_checkpoint(folder / name)) for folder in (whole, resumed))
    found = [key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)]
    if case.scaler:
        assert ours["meta.grad_scaler.overflows"] > 0
    losses, again = logged(whole), logged(resumed)
    return sorted(found) + [f"log {key}" for key in again if again[key] != losses[key]]


def changed_by_evaluation(case, config, folder):
    """What differs at the end of a run that evaluates, from one that does not."""
    results = []
    for name, validate in (("quiet", False), ("evaluated", True)):
        work_dir = folder / name
        work_dir.mkdir(parents=True, exist_ok=True)
        cfg = config({**options_of(case), "evaluation": {"interval": 1, "by_epoch": False}})
        cfg.work_dir = str(work_dir)
        train(cfg, torch.device("cpu"), "dummy.py", seed=0, validate=validate)
        results.append(plain(load_checkpoint(work_dir / "latest.pth")))
    quiet, evaluated = results
    return sorted(key for key in quiet if quiet[key] != evaluated[key])


def plain(value, name=""):
    """dotted name -> value of everything in a checkpoint that training computes."""
    if isinstance(value, dict):
        value = {
            k: v for k, v in value.items() if k not in ("time", "run", "log_buffer", "hook_msgs")
        }
        value = {k: v for k, v in value.items() if k not in ("config", "env_info")}
    elif isinstance(value, torch.Tensor):
        return {name: value.tolist()}
    elif not isinstance(value, (list, tuple)):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = {}
    for key, part in items:
        found.update(plain(part, f"{name}.{key}" if name else str(key)))
    return found


def logged(work_dir):
    """(epoch, iteration) -> terms of the loss, of all log lines."""
    records = [
        json.loads(line)
        for path in sorted(work_dir.glob("*.log.json"))
        for line in path.read_text().splitlines()
    ]
    return {
        (r["epoch"], r["iter"]): (
            r["loss"],
            r["loss_cls"],
            r.get("grad_norm"),
        )
        for r in records
        if r.get("mode") == "train"
    }

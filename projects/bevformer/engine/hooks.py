"""Hooks of a training run: warn about slow data, evaluate."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional, Sequence, Union

import torch
from mmcv.runner import HOOKS, Hook

from projects.bevformer.datasets.evaluators import BOXES
from projects.bevformer.engine.best import BestCheckpoint, lost_evaluation
from projects.bevformer.engine.checkpoint_hook import save_errors
from projects.bevformer.engine.distributed import (
    broadcast,
    buffers_of_first_rank,
    get_rank,
    on_first_rank,
)
from projects.bevformer.engine.evaluate import PredictionStopped, predict
from projects.bevformer.engine.log import write_logs
from projects.bevformer.engine.non_finite import check_finite
from projects.bevformer.engine.report import headline_metrics, metrics_table
from projects.bevformer.engine.seed import seeded
from projects.bevformer.nuscenes.evaluation.scoring import write_metrics
from projects.bevformer.nuscenes.spec import TP_ERRORS
from projects.bevformer.published import published

_FLAT = ("pts_bbox_NuScenes/", "pts_bbox_own/")  # of `flat_metrics`
_RULES = {
    **dict.fromkeys(("NDS", "mAP", "mAP_own"), "greater"),
    **dict.fromkeys(TP_ERRORS.values(), "less"),
}


@HOOKS.register_module()
@dataclass(eq=False, repr=False)
class DataWaitHook(Hook):
    """Warns once when training spends much of its time waiting for data.

    It adds up what mmcv's IterTimerHook measures and has to come after it; it reads nothing from
    the device. The first iterations of the run and of each epoch, while workers start, do not
    count, nor does the longest wait of an interval: it may be an evaluation.

    Args:
        remedy: what the warning says to do.
        interval: iterations over which waiting is compared with the whole time.
        share: of the time, from which on it warns.
        skip: first iterations of the run that do not count.
    """

    remedy: str
    interval: int = 50
    share: float = 0.25
    skip: int = 10
    warned = False

    def before_run(self, runner):
        self.first = runner.iter + self.skip
        self.workers_start = False
        self.times_s = []  # (waiting, whole) of each iteration

    def before_train_epoch(self, runner):
        self.workers_start = True

    def after_train_iter(self, runner):
        skipped, self.workers_start = self.workers_start or runner.iter < self.first, False
        if self.warned or skipped:
            return
        history = runner.log_buffer.val_history
        self.times_s.append((history["data_time"][-1], history["time"][-1]))
        if len(self.times_s) < self.interval:
            return
        self.times_s.remove(max(self.times_s))
        waited_s, time_s = (sum(part) / len(self.times_s) for part in zip(*self.times_s))
        self.times_s = []
        if waited_s > self.share * time_s:
            self.warned = True
            runner.logger.warning(
                "training waits for data: %.3f s of the %.3f s of an iteration, in the last %d "
                "iterations. %s", waited_s, time_s, self.interval, self.remedy,
            )  # fmt: skip


@HOOKS.register_module()
@published(
    # The pipeline of data.val counts; results are always gathered from all processes, without files.
    ignores=("pipeline", "gpu_collect", "tmpdir", "logger"),
    only={
        **{"broadcast_bn_buffer": True, "show": False, "out_dir": None, "jsonfile_prefix": None},
        **{"test_fn": None, "dynamic_intervals": None, "file_client_args": None},
    },
)
@dataclass(eq=False, repr=False)
class TemporalEvalHook(Hook):
    """Evaluates during training; frames of a scene stay in order and on one process.

    Its arguments are those of mmdet's EvalHook. Results go to `<work_dir>/eval/epoch_N` (or
    `iter_N`), the newest `metrics_summary.json` also to the work
    dir.

    Where the weights are averaged (`AverageHook`), the average is evaluated. An evaluation that a
    stopped run did not finish is made when the run is resumed.

    Args:
        dataset: the validation set, test mode.
        device: torch.device of the detector.
        workers: data loading processes.
        interval: epochs (iterations without `by_epoch`) between two evaluations.
        start: first epoch that may be evaluated; None for `interval`.
        by_epoch: whether the runner counts epochs.
        metric: see `DatasetEvaluator.score`.
        save_best: "NDS", "mAP", an error such as "mATE", or "auto" (NDS) keeps the best checkpoint as
            `best_NDS_epoch_N.pth`; own classes have "mAP_own" in place of the first two; "<head>/<name>" does so for a metric of another head.
        rule: "greater" or "less" is better; by default known for nuScenes' metrics, and as the next two say
            for others.
        less_keys, greater_keys: lower is better for a metric with one of the former in its name and none of
            the latter.

    Raises:
        ValueError: an impossible interval, an unknown `metric` or `save_best`, a `rule` against it, or a
            split that cannot be scored.
    """

    dataset: Any
    device: torch.device
    workers: int = 2
    interval: int = 1
    start: Optional[int] = None
    by_epoch: bool = True
    metric: Union[str, Sequence[str]] = "bbox"
    save_best: Optional[str] = None
    rule: Optional[str] = None
    less_keys: Union[str, Sequence[str]] = ("loss",)
    greater_keys: Union[str, Sequence[str]] = ()
    due: Optional[str] = field(default=None, init=False)  # the evaluation that comes next

    def __post_init__(self):
        if self.interval < 1:
            raise ValueError(f"evaluation.interval is {self.interval}: it must be at least 1")
        self.start = self.interval if self.start is None else self.start
        evaluator = self.dataset.evaluator
        heads = evaluator.check(self.metric)
        self.best_key, save_best = None, self.save_best
        if save_best is not None:
            # mmdet3d users write pts_bbox_NuScenes/NDS.
            name = save_best.split("/", 1)[1] if save_best.startswith(_FLAT) else save_best
            overall = evaluator.overall_names if BOXES in heads else ()
            self.best_key = overall[0] if name == "auto" and overall else name
            head = self.best_key.partition("/")[0]
            own = (*overall, *TP_ERRORS.values()) if overall else ()
            if head not in (*heads, *own):
                raise ValueError(
                    f"evaluation.save_best is {save_best!r}: it must be "
                    f"{', '.join(own)}{', auto, or ' if own else ''}<head>/<name>, of a head that "
                    f"evaluation.metric names ({self.metric!r})"
                )
            self.rule = self._rule_of_best()
            self.best = BestCheckpoint(self.best_key, self.rule)

    def _rule_of_best(self):
        known = _RULES.get(self.best_key)
        if self.rule not in (None, "greater", "less") or (known and self.rule not in (None, known)):
            raise ValueError(
                f"evaluation.rule is {self.rule!r}: of {self.best_key}, {known or 'greater or less'} is better"
            )
        less, greater = (
            any(key in self.best_key for key in ([keys] if isinstance(keys, str) else keys or ()))
            for keys in (self.less_keys, self.greater_keys)
        )
        return known or self.rule or ("less" if less and not greater else "greater")

    def _is_due(self, done):
        return done >= self.start and (done - self.start) % self.interval == 0

    def before_run(self, runner):
        if self.best_key is not None:
            on_first_rank(lambda: self.best.recall(runner))
        due = broadcast(lost_evaluation(runner) if get_rank() == 0 else None)
        if due is not None:
            runner.logger.info("the run was stopped before the evaluation of %s: made now", due)
            self._evaluate(runner, due)
            runner.log_buffer.clear()

    def before_train_epoch(self, runner):
        if self.by_epoch:
            self.due = self._name_if_due(runner.epoch + 1)

    def before_train_iter(self, runner):
        if not self.by_epoch:
            self.due = self._name_if_due(runner.iter + 1)

    def _name_if_due(self, done):
        return f"{'epoch' if self.by_epoch else 'iter'}_{done}" if self._is_due(done) else None

    def checkpoint_meta(self):
        """For a checkpoint that is saved before its evaluation."""
        return {"evaluation_due": self.due}

    def after_train_epoch(self, runner):
        if self.by_epoch and self.due:
            self._evaluate(runner, self.due)

    def after_train_iter(self, runner):
        if self.by_epoch or not self.due:
            return
        write_logs(runner)
        runner.log_buffer.clear()
        self._evaluate(runner, self.due)

    def _evaluate(self, runner, name):
        detector, interruption = runner.model.module, runner.interruption

        def stop():
            return interruption is not None and interruption.number != 0

        try:
            # Whether and when one evaluates changes nothing in the training.
            with runner.scored_weights(), buffers_of_first_rank(detector), seeded(0):
                weights = {"state_dict": detector.state_dict()}
                check_finite(weights, f"the evaluation of {name} is not made")
                results = predict(detector, self.dataset, self.device, self.workers, stop)
        except PredictionStopped:
            self.due = name
            interruption.end(runner)
        self.due = None
        scored = {}

        def score():
            out_dir = Path(runner.work_dir) / "eval" / name
            scored["summary"] = self.dataset.evaluator.score(results, str(out_dir), self.metric)
            runner.logger.info("evaluation after %s\n%s", name, metrics_table(scored["summary"]))
            headline = headline_metrics(scored["summary"])
            runner.log_buffer.output["eval_iter_num"] = len(self.dataset)
            runner.log_buffer.output.update(headline)
            runner.log_buffer.ready = True
            if self.best_key is not None and self.best_key not in headline:
                raise ValueError(
                    f"evaluation.save_best is {self.best_key!r}, but the metrics are "
                    f"{', '.join(headline)}"
                )
            return headline.get(self.best_key)

        with save_errors(runner, f"the evaluation of {name} was NOT saved"):
            value = on_first_rank(score)
            if self.best_key is not None:
                self.best.keep(runner, value, name)
            # Last: see `lost_evaluation`.
            on_first_rank(lambda: write_metrics(scored["summary"], "summary", runner.work_dir))

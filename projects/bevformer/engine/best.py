"""The best checkpoint of a run, and the last evaluation of one that was stopped."""

from __future__ import annotations

import os
import re
from pathlib import Path

from mmcv.runner import BaseRunner

from projects.bevformer.engine.checkpoint import load_checkpoint
from projects.bevformer.engine.checkpoint_hook import save_or_go_on
from projects.bevformer.engine.distributed import broadcast, get_rank
from projects.bevformer.messages import file_name


class BestCheckpoint:
    """Keeps the checkpoint with the best value of a metric as `best_<metric>_epoch_N.pth`.

    A checkpoint of an epoch is saved before its evaluation, and does not contain its own score.
    A resumed run therefore looks for the best checkpoint in its work dir and next to the checkpoint
    that it resumes; the `run` in their meta distinguishes those of other runs.

    Args:
        metric: its name in the headline of the metrics.
        rule: "greater" or "less": which value is the better one.

    Raises:
        ValueError: another rule.
    """

    def __init__(self, metric: str, rule: str = "greater") -> None:
        if rule not in ("greater", "less"):
            raise ValueError(f"evaluation.rule is {rule!r}: it must be 'greater' or 'less'")
        self.metric, self.sign = metric, 1 if rule == "greater" else -1
        self.prefix = file_name(f"best_{metric.replace('/', '_')}")
        self.score: float | None = None
        self.file: Path | None = None  # in the work dir

    def _improves(self, value: float) -> bool:
        if value != value:
            return False
        return self.score is None or self.sign * value > self.sign * self.score

    def recall(self, runner: BaseRunner) -> None:
        """Find the best checkpoint so far, of a run that is resumed; remove worse ones of it."""
        messages = runner.meta.get("hook_msgs", {})
        name, source = messages.get("best_ckpt"), "of the resumed checkpoint"
        if self._is_mine(name):
            self.score = messages.get("best_score")
        work_dir, resumed = Path(runner.work_dir), runner.resumed
        folders = [work_dir] if resumed is None else [resumed[0].resolve().parent, work_dir]
        files = {
            path.resolve(): path
            for folder in folders
            for path in sorted(folder.glob(f"{self.prefix}_*.pth"))
            if self._is_mine(path.name)
        }
        own, others = {}, []
        for path in files.values():
            score = self._score_of(path, runner) if resumed else None
            if score is None:
                others.append(path.name)
            else:
                own[path] = score
        for path, score in own.items():
            if self._improves(score) or (score == self.score and path.name == name):
                self.score, name, source = score, path.name, f"in {path.parent}"
        if others:
            runner.logger.info("%s: of another run, not compared", ", ".join(others))
        if self.score is None:
            return
        messages = runner.meta.setdefault("hook_msgs", {})
        messages.update(best_score=self.score, best_ckpt=name)
        runner.logger.info("best %s so far %.4f: %s %s", self.metric, self.score, name, source)
        mine = [path for path in own if path.parent == work_dir]
        self.file = next((path for path in mine if path.name == name), None)
        if self.file is not None:
            for path in set(mine) - {self.file}:
                path.unlink()

    def _is_mine(self, name: str | None) -> bool:
        return bool(re.fullmatch(rf"{re.escape(self.prefix)}_(epoch|iter)_\d+\.pth", name or ""))

    @staticmethod
    def _score_of(path: Path, runner: BaseRunner) -> float | None:
        """Score in a best checkpoint of this run, or None."""
        try:
            meta = load_checkpoint(path)["meta"]
        except (ValueError, OSError) as error:
            runner.logger.warning("best checkpoint passed over: %s", error)
            return None
        messages = meta.get("hook_msgs", {})
        is_of_run = meta.get("run") == runner.meta.get("run")
        return messages.get("best_score") if is_of_run else None

    def keep(self, runner: BaseRunner, value: float | None, name: str) -> None:
        """Save the network if its value is the best so far, in place of the one before; on all ranks.

        Args:
            runner: with its network after `name`.
            value: of the metric; only that of rank 0 counts.
            name: `epoch_N` or `iter_N`.
        """
        if value is not None and value != value:
            runner.logger.warning("%s is NaN after %s: not compared", self.metric, name)
        if not broadcast(get_rank() == 0 and self._improves(value)):
            return
        path = Path(runner.work_dir, f"{self.prefix}_{name}.pth")
        before = runner.meta.get("hook_msgs", {})
        runner.meta["hook_msgs"] = {**before, "best_score": value, "best_ckpt": path.name}
        options = {"filename_tmpl": path.name, "create_symlink": False}
        if not save_or_go_on(runner, runner.work_dir, **options):
            runner.meta["hook_msgs"] = before
            return
        if get_rank() == 0 and self.file not in (None, path):
            self.file.unlink(missing_ok=True)
        self.score, self.file = value, path
        runner.logger.info("best %s so far %.4f, saved as %s", self.metric, value, path.name)


def lost_evaluation(runner: BaseRunner) -> str | None:
    """`epoch_N` or `iter_N`, if the run was stopped after that checkpoint and within its evaluation.

    `metrics_summary.json` of the work dir is what an evaluation writes last.
    """
    if runner.resumed is None:
        return None
    checkpoint, meta = runner.resumed
    due = meta.get("evaluation_due")
    if due not in (f"epoch_{meta['epoch']}", f"iter_{meta['iter']}"):
        return None
    for folder in {Path(runner.work_dir), checkpoint.resolve().parent}:
        scored, finished = (
            folder / place / "metrics_summary.json" for place in (Path("eval", due), ".")
        )
        times = [
            os.stat(path).st_mtime_ns for path in (checkpoint, scored, finished) if path.exists()
        ]
        if len(times) == 3 and times == sorted(times):
            return None
    return due

"""Evaluation of a data set: one evaluator per head of the network.

A result is a dict per frame: {"pts_bbox": detections, "<another head>": anything that pickles}. A head of
your own is scored by a class of your own:

    from projects.bevformer.datasets.evaluators import EVALUATORS

    @EVALUATORS.register_module()
    class MapEvaluator:
        def __init__(self, dataset, threshold=0.5): ...

        def score(self, results, folder=None):
            '''dict of float; results: what the head returned for each frame, in dataset order.'''

        def write(self, results, folder):
            '''Write predictions without a score; returns the path, or None.'''

    data = dict(test=dict(evaluators=dict(map_head=dict(type="MapEvaluator"))))
    evaluation = dict(metric=["bbox", "map_head"])
"""

from __future__ import annotations

import os.path as osp
import tempfile
from typing import Any, Mapping, Sequence

from mmcv.utils import Registry
from mmdet3d.utils import get_root_logger

from projects.bevformer.nuscenes.evaluation.evaluator import NuScenesEvaluator
from projects.bevformer.nuscenes.evaluation.scoring import flat_metrics, write_metrics

EVALUATORS = Registry("evaluator")
BOXES = "pts_bbox"


class DatasetEvaluator:
    """Scores and writes the results of all heads.

    Args:
        evaluators: head -> NuScenesEvaluator, or an evaluator as described in this module.
        size: number of frames.
        logger: gets headlines and warnings.
    """

    def __init__(self, evaluators: Mapping[str, Any], size: int, logger: Any) -> None:
        self.evaluators = dict(evaluators)
        self.size = size
        self.logger = logger

    def score(
        self,
        results: Sequence[dict],
        folder: str | None = None,
        metric: str | Sequence[str] = "bbox",
        logger: Any | None = None,
        devkit: bool = False,
    ) -> dict[str, Any]:
        """Score predictions.

        Args:
            results: one dict of heads per frame, in dataset order.
            folder: gets what the evaluators write, and `metrics_summary.json`; None keeps nothing.
            metric: which heads to score: "bbox" for the boxes, else the name of the head; or a list.
            logger: instead of the evaluator's own.
            devkit: let the nuScenes devkit score the boxes, see NuScenesEvaluator.

        Returns:
            content of `metrics_summary.json`: for boxes that of the devkit, for other heads
            "<head>/<name>": float.

        Raises:
            ValueError: an unknown metric, a frame or a head without results, or see the evaluators.
        """
        logger = self.logger if logger is None else logger
        heads = self.heads_of(metric)
        summary: dict[str, Any] = {}
        for head in heads:
            evaluator, found = self.evaluators[head], self._of_head(results, head)
            if isinstance(evaluator, NuScenesEvaluator):
                summary.update(evaluator.score(found, logger, folder, devkit))
            else:
                scores = evaluator.score(found, folder)
                summary.update({f"{head}/{name}": float(value) for name, value in scores.items()})
        if folder is not None:
            write_metrics(summary, "summary", folder)
        return summary

    def score_file(
        self, path: str, folder: str, logger: Any | None = None, devkit: bool = False
    ) -> dict[str, Any]:
        """Score the boxes of a `results_nusc.json`; see NuScenesEvaluator.

        Args:
            folder: gets `metrics_summary.json` and `metrics_details.json`.

        Returns:
            content of `metrics_summary.json`.
        """
        evaluator = self.evaluators[BOXES]
        if not isinstance(evaluator, NuScenesEvaluator):
            raise ValueError(
                f"a results_nusc.json is scored by nuScenes' evaluator only, and evaluators.{BOXES} of this "
                f"data set is {type(evaluator).__name__}"
            )
        logger = self.logger if logger is None else logger
        summary = evaluator.score_file(path, logger, folder, devkit)
        write_metrics(summary, "summary", folder)
        return summary

    def write(self, results: Sequence[dict], folder: str) -> dict[str, Any]:
        """Write predictions without scoring them.

        Returns:
            head -> path of what its evaluator wrote: `results_nusc.json` for "pts_bbox"; or None.

        Raises:
            ValueError: a frame without results, or see the evaluators.
        """
        return {
            head: evaluator.write(self._of_head(results, head), folder)
            for head, evaluator in self.evaluators.items()
            if head == BOXES or any(head in result for result in results)
        }

    def check(self, metric: str | Sequence[str] = "bbox", devkit: bool = False) -> list[str]:
        """Raise what would keep predictions from being scored, before any are made.

        Returns:
            the heads that `score` scores.

        Raises:
            ValueError, FileNotFoundError: an unknown metric, or see NuScenesEvaluator.check.
        """
        heads = self.heads_of(metric)
        for head in heads:
            if isinstance(self.evaluators[head], NuScenesEvaluator):
                self.evaluators[head].check(devkit)
        return heads

    @property
    def overall_names(self) -> tuple[str, ...]:
        """Names of the overall scores of boxes, the one that ranks checkpoints first."""
        evaluator = self.evaluators[BOXES]
        if not isinstance(evaluator, NuScenesEvaluator):
            return ()
        return ("mAP_own",) if evaluator.is_own else ("NDS", "mAP")

    def heads_of(self, metric: str | Sequence[str]) -> list[str]:
        """The heads that `score` scores; unknown metrics are refused."""
        head_of = {("bbox" if head == BOXES else head): head for head in self.evaluators}
        metrics = [metric] if isinstance(metric, str) else list(metric)
        unknown = [name for name in metrics if name not in head_of]
        if unknown or not metrics:
            raise ValueError(
                f"metric {metric!r} cannot be evaluated: this data set has {', '.join(head_of)}; "
                "`evaluators` of the data set adds others"
            )
        return [head_of[name] for name in metrics]

    def _of_head(self, results: Sequence[dict], head: str) -> list[Any]:
        if len(results) != self.size:
            raise ValueError(
                f"{len(results)} results for {self.size} frames: every frame needs one, in order"
            )
        for result in results:
            if head not in result:
                raise ValueError(
                    f"there are no results of the head {head!r} to evaluate, only of "
                    f"{', '.join(map(repr, result))}: is it the name of a head of the model?"
                )
        return [result[head] for result in results]


class EvaluatedDataset:
    """The half of TemporalNuScenesDataset that scores and writes results."""

    part: dict[str, Any] | None = None  # set by `keep_scenes`
    _evaluator: tuple[Any, DatasetEvaluator] | None = None

    @property
    def evaluator(self) -> DatasetEvaluator:
        """Scores and writes results; built when first used, and again for other `data_infos`."""
        if self._evaluator is None or self._evaluator[0] is not self.data_infos:
            heads = dict(self._evaluators)
            if BOXES not in heads:
                boxes = NuScenesEvaluator(
                    self.data_infos,
                    self.metadata,
                    self.CLASSES,
                    self.eval_detection_configs,
                    self.ann_file,
                    self.data_root,
                    self.modality,
                    self._tokens_of_file,
                    self.result_velocity,
                    self.part,
                )
                heads = {BOXES: boxes, **heads}
            evaluator = DatasetEvaluator(heads, len(self), get_root_logger())
            self._evaluator = (self.data_infos, evaluator)
        return self._evaluator[1]

    def format_results(
        self, results: Sequence[dict], jsonfile_prefix: str | None = None
    ) -> tuple[dict[str, Any], tempfile.TemporaryDirectory | None]:
        """Write detections as a nuScenes submission, in mmdet3d's layout.

        Args:
            results: one {"pts_bbox": {"boxes_3d", "scores_3d", "labels_3d"}} per frame, in dataset order.
            jsonfile_prefix: folder to write below; a temporary one where None.

        Returns:
            result_files: {"pts_bbox": path of `{jsonfile_prefix}/pts_bbox/results_nusc.json`}.
            tmp_dir: the TemporaryDirectory, or None; it has to outlive the use of the files.

        Raises:
            ValueError: not one result per frame, or a box that the benchmark does not accept.
        """
        tmp_dir = tempfile.TemporaryDirectory() if jsonfile_prefix is None else None
        folder = osp.join(tmp_dir.name if tmp_dir else jsonfile_prefix, BOXES)
        return self.evaluator.write(results, folder), tmp_dir

    def evaluate(
        self,
        results: Sequence[dict],
        metric: Any = "bbox",
        logger: Any = None,
        jsonfile_prefix: str | None = None,
        result_names: Sequence[str] = (BOXES,),
        pipeline: Any = None,
        devkit: bool = False,
    ) -> dict[str, float]:
        """Score predictions, with mmdet3d's arguments and layout; see `DatasetEvaluator.score`.

        Args:
            results, metric, logger, devkit: as there.
            jsonfile_prefix: results and metrics go to `{jsonfile_prefix}/pts_bbox`; None keeps nothing.
            result_names: only ("pts_bbox",); other heads are chosen by `metric`.
            pipeline: unused; mmdet3d's evaluation hook passes it.

        Returns:
            dict of float, see `flat_metrics`.
        """
        if list(result_names) != [BOXES]:
            raise ValueError(f"result_names is {result_names!r}: choose other heads by `metric`")
        folder = None if jsonfile_prefix is None else osp.join(jsonfile_prefix, BOXES)
        return flat_metrics(self.evaluator.score(results, folder, metric, logger, devkit))

"""The detection benchmark of nuScenes, or one of own classes, on the split of an info file."""

from __future__ import annotations

import os.path as osp
import tempfile
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Sequence

from projects.bevformer.nuscenes.benchmark import OwnBenchmark
from projects.bevformer.nuscenes.evaluation.ground_truth import (
    EVALUATION_FIELDS,
    ground_truth_of_infos,
    ground_truth_of_tables,
    has_ground_truth,
)
from projects.bevformer.nuscenes.evaluation.metrics import Boxes, GroundTruth
from projects.bevformer.nuscenes.evaluation.results import (
    Frames,
    check_samples,
    detected_boxes,
    read_result_file,
    write_result_file,
)
from projects.bevformer.nuscenes.evaluation.scoring import (
    overall_scores,
    score_boxes,
    score_with_devkit,
)
from projects.bevformer.nuscenes.info_list import column
from projects.bevformer.nuscenes.spec import SPLITS, WITHOUT_ANNOTATIONS


@dataclass(eq=False, repr=False)
class NuScenesEvaluator:
    """Writes detections as a nuScenes submission, and scores them.

    The info records are read once, when they are first needed.

    Args:
        infos: records that are evaluated, in the order of the detections.
        metadata: of the info file.
        class_names: label -> name.
        config: the devkit's DetectionConfig, or an OwnBenchmark.
        ann_file: the info file, for messages.
        data_root: nuScenes root, for the tables.
        modality: dict of use_camera ... use_external, written into result files.
        tokens: all sample tokens of the info file; those of `infos` where None.
        velocity: of the submission, see `detected_boxes`.
        part: what `keep_scenes` left of the info file, or None for all of it.
    """

    infos: Sequence[dict]
    metadata: dict[str, Any]
    class_names: Sequence[str]
    config: Any
    ann_file: str
    data_root: str | None = None
    modality: dict[str, bool] = field(default_factory=dict)
    tokens: Sequence[str] | None = None
    velocity: str = "horizontal"
    part: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.tokens is None:
            self.tokens = column(self.infos, "token")

    @property
    def is_own(self) -> bool:
        """Whether classes of one's own are scored, so that there is no NDS."""
        return isinstance(self.config, OwnBenchmark)

    @property
    def _has_tables(self):
        """Whether the ground truth may be in the tables of nuScenes, not only in the info file."""
        return not self.is_own and self.metadata["version"] in SPLITS

    @cached_property
    def _first(self):
        return self.infos[0]

    @cached_property
    def _contents(self):
        """Frames of the records, and their ground truth if they contain it."""
        records = [self._first, *self.infos[1:]]
        if self._has_tables:
            known = self.metadata.get("samples_in_split") is not None and has_ground_truth(records)
        else:
            known = all("gt_boxes" in info for info in records)
        return Frames(records), ground_truth_of_infos(records, self.config) if known else None

    @property
    def frames(self) -> Frames:
        """The frames that are evaluated."""
        return self._contents[0]

    @property
    def split(self) -> str:
        """Such as "val of v1.0-mini", for messages."""
        if self.part is None:
            return self._whole_split
        return (
            f"{len(self.part['scenes'])} of {self.part['of_scenes']} scenes of {self._whole_split}"
        )

    @property
    def _whole_split(self):
        return f"{self.metadata.get('split', 'val')} of {self.metadata['version']}"

    @property
    def eval_set(self) -> str:
        """The devkit's name of the split.

        Raises:
            ValueError: it has no public annotations.
        """
        version, split = self.metadata["version"], self.metadata.get("split", "val")
        if version == WITHOUT_ANNOTATIONS or split not in SPLITS.get(version, ()):
            raise ValueError(
                f"the {split} split of {version} has no public annotations to evaluate with: write the "
                "submission with --format-only instead"
            )
        return SPLITS[version][split]

    def boxes(self, results: Sequence[dict]) -> Boxes:
        """Detections in the global frame.

        Args:
            results: one {"boxes_3d", "scores_3d", "labels_3d"} per frame, in the order of the infos.

        Raises:
            ValueError: a box that the benchmark does not accept.
        """
        return detected_boxes(results, self.frames, self.class_names, self.config, self.velocity)

    def write(self, results: Boxes | Sequence[dict], folder: str) -> str:
        """Write `results_nusc.json`.

        Args:
            results: as in `boxes`, or its result.
            folder: of the file; created if needed.

        Returns:
            path of the file.
        """
        boxes = results if isinstance(results, Boxes) else self.boxes(results)
        path = osp.join(folder, "results_nusc.json")
        meta = dict(self.modality)
        if self.is_own:  # such a file is not a submission
            meta["own_classes"] = list(self.class_names)
        if self.part is not None:  # nor is such a one
            meta["part"] = self.part
        write_result_file(boxes, self.frames.tokens, meta, self.config, path)
        return path

    def check(self, devkit: bool = False) -> None:
        """Raise what would keep detections from being scored, before any are made; reads one record.

        Raises:
            FileNotFoundError: the tables are needed and do not exist.
            ValueError: the split cannot be scored, samples are missing, or the devkit is asked for what
                it does not score.
        """
        if devkit and (self.is_own or self.part is not None or not self._has_tables):
            what = "own classes" if self.is_own else self.split
            raise ValueError(
                f"the nuScenes devkit scores the ten classes of nuScenes on a whole split of it, not {what}: "
                "leave --devkit out, the matching is the same"
            )
        if self._has_tables:
            _ = self.eval_set  # raises for a split without public annotations
        elif "gt_boxes" not in self._first:
            raise ValueError(
                f"{self.ann_file} has no annotations (gt_boxes) to score with: only --format-only works"
            )
        found, total = len(self.tokens), self.metadata.get("samples_in_split")
        if total is not None and total != found:
            raise ValueError(
                f"{self.ann_file} holds {found} samples, {self._whole_split} has {total}, and only a whole "
                "split can be scored: were scenes without images left out, or files joined? Write "
                "the info file again from the whole download"
            )
        if devkit or (
            self._has_tables and not (has_ground_truth([self._first]) and total is not None)
        ):
            self._check_tables()
        if self.part is None:
            self._check_samples(self.tokens)
        elif self.part["of_samples"] != found:
            raise ValueError(
                f"{self.part['of_samples']} of the {found} samples of {self.ann_file} are read: scenes are "
                "scored whole, set load_interval=1"
            )

    def score(
        self,
        results: Sequence[dict],
        logger: Any,
        folder: str | None = None,
        devkit: bool = False,
    ) -> dict:
        """Score detections.

        Args:
            results: as in `boxes`.
            logger: gets the headline.
            folder: gets `results_nusc.json` and `metrics_details.json`; None keeps nothing.
            devkit: let the nuScenes devkit score, which needs the tables and draws curves.

        Returns:
            content of the devkit's `metrics_summary.json`; with `part` where that is given.

        Raises:
            FileNotFoundError, ValueError: see `check` and `boxes`.
        """
        self.check(devkit)
        truth = self._tables() if devkit else self.ground_truth(logger)
        boxes = self.boxes(results)
        if devkit:
            with tempfile.TemporaryDirectory() as scratch:
                folder = scratch if folder is None else folder
                return self._score_with_devkit(self.write(boxes, folder), truth, folder, logger)
        if folder is not None:
            self.write(boxes, folder)
        return self._score(boxes, truth, self.modality, folder, logger)

    def score_file(self, path: str, logger: Any, folder: str, devkit: bool = False) -> dict:
        """Score a nuScenes submission, written here or elsewhere.

        Args:
            path: `results_nusc.json`; its samples may be in any order. Of a part of the split it may hold
                the others too.
            logger, folder, devkit: as in `score`.

        Returns:
            content of the devkit's `metrics_summary.json`.

        Raises:
            FileNotFoundError: no such file, or the tables are needed and do not exist.
            ValueError: see `check`, or the file is not a submission for the split.
        """
        self.check(devkit)
        truth = self._tables() if devkit else self.ground_truth(logger)
        whole = self.part is None
        boxes, meta = read_result_file(path, self.frames.tokens, self.config, self.split, whole)
        if devkit:
            return self._score_with_devkit(path, truth, folder, logger)
        return self._score(boxes, truth, meta, folder, logger)

    def _score(self, boxes, truth, meta, folder, logger):
        if not len(boxes):
            logger.warning("no detection is within the benchmark's range: all scores are zero")
        summary = score_boxes(boxes, truth, self.config, meta, folder)
        if self.part is not None:
            summary["part"] = self.part
        scores = ", ".join(f"{name} {value:.4f}" for name, value in overall_scores(summary).items())
        what = f"{'own classes' if self.is_own else 'nuScenes'} {self.split}"
        logger.info("%s: %s, scored in %.1f s", what, scores, summary["eval_time"])
        return summary

    def _score_with_devkit(self, path, nusc, folder, logger):
        return score_with_devkit(path, nusc, self.eval_set, self.config, folder, logger)

    def ground_truth(self, logger: Any) -> GroundTruth:
        """Ground truth of the infos, or, with a warning, of the tables.

        Raises:
            FileNotFoundError: the tables are needed and do not exist.
            ValueError: samples are not in the tables, or records have no annotations.
        """
        truth = self._contents[1]
        if truth is not None:
            return truth
        if not self._has_tables:
            raise ValueError(f"{self.ann_file}: some frames have no annotations (gt_boxes)")
        logger.warning(
            f"{self.ann_file} lacks {', '.join(EVALUATION_FIELDS)} or samples_in_split: the ground "
            f"truth is read from the tables of {self.eval_set} at {self.data_root}, which takes longer and "
            "more memory. Write the file again with tools/create_data.py to evaluate without them"
        )
        return ground_truth_of_tables(self._tables(), self.frames.tokens, self.config)

    def _check_samples(self, expected):
        check_samples(column(self.infos, "token").tolist(), expected, self.ann_file, self.split)

    def _tables(self):
        """The devkit's tables; raises as `ground_truth`."""
        from nuscenes.nuscenes import NuScenes
        from nuscenes.utils.splits import create_splits_scenes

        scenes = set(create_splits_scenes()[self.eval_set])
        version, root = self._check_tables()
        nusc = NuScenes(version=version, dataroot=root, verbose=False)
        if self.part is None:
            scene_tokens = {scene["token"] for scene in nusc.scene if scene["name"] in scenes}
            samples = [s["token"] for s in nusc.sample if s["scene_token"] in scene_tokens]
            self._check_samples(samples)
        return nusc

    def _check_tables(self):
        """Version and root of the tables, which have to exist."""
        version, root = self.metadata["version"], self.data_root or "."
        if not osp.isdir(osp.join(root, version)):
            raise FileNotFoundError(
                f"no nuScenes tables at {osp.join(root, version)}, which this evaluation needs: check "
                "data_root, or write the info file again with tools/create_data.py"
            )
        return version, root

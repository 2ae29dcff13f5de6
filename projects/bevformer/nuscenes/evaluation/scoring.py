"""Scores of detections: the project's own, equal to the devkit's, or by the devkit itself."""

import contextlib
import io
import json
import os
import os.path as osp
import tempfile
import time
from dataclasses import dataclass

from projects.bevformer.io import atomic_write
from projects.bevformer.nuscenes.evaluation.ground_truth import (
    EVALUATION_FIELDS,
    ground_truth_of_infos,
    ground_truth_of_tables,
    has_ground_truth,
)
from projects.bevformer.nuscenes.evaluation.metrics import detection_metrics
from projects.bevformer.nuscenes.evaluation.results import check_samples

# (table folder, info split) -> the devkit's name of the split.
EVAL_SETS = {
    ("v1.0-mini", "train"): "mini_train",
    ("v1.0-mini", "val"): "mini_val",
    ("v1.0-trainval", "train"): "train",
    ("v1.0-trainval", "val"): "val",
}
_ERROR_NAMES = {
    "trans_err": "mATE",
    "scale_err": "mASE",
    "orient_err": "mAOE",
    "vel_err": "mAVE",
    "attr_err": "mAAE",
}


@dataclass
class EvaluatedSplit:
    """The split that an info file is of.

    Attributes:
        infos: records that are evaluated, in the order of the detections.
        tokens: all sample tokens of the info file.
        metadata: of the info file: "version" and "split", and "samples_in_split", how many there are
            in the tables.
        ann_file: the info file, for messages.
        data_root: nuScenes root, for the tables.
        config: the devkit's DetectionConfig.
    """

    infos: list
    tokens: list
    metadata: dict
    ann_file: str
    data_root: str
    config: object

    def __str__(self):
        return f"{self._split} of {self.metadata['version']}"

    @property
    def _split(self):
        return self.metadata.get("split", "val")

    @property
    def eval_set(self):
        """The devkit's name of the split.

        Raises:
            ValueError: it has no public annotations.
        """
        key = (self.metadata["version"], self._split)
        if key not in EVAL_SETS:
            raise ValueError(
                f"the {key[1]} split of {key[0]} has no public annotations to evaluate with: "
                "write the submission with --format-only instead"
            )
        return EVAL_SETS[key]

    def ground_truth(self, logger):
        """`GroundTruth` of `infos`, from them or, with a warning, from the tables.

        Raises:
            FileNotFoundError: the tables are needed and not there.
            ValueError: the split has no public annotations, or `infos` are not all of its samples.
        """
        eval_set = self.eval_set
        found = [info["token"] for info in self.infos]
        total = self.metadata.get("samples_in_split")
        if total is not None and has_ground_truth(self.infos):
            if total != len(self.tokens):
                raise ValueError(
                    f"{self.ann_file} holds {len(self.tokens)} samples, {self} has {total}, and only a "
                    "whole split can be scored: were scenes without images left out, or files joined? "
                    "Write the info file again from the whole download"
                )
            check_samples(found, self.tokens, self.ann_file, str(self))
            return ground_truth_of_infos(self.infos, self.config)
        logger.warning(
            f"{self.ann_file} lacks {', '.join(EVALUATION_FIELDS)} or samples_in_split: the ground "
            f"truth is read from the tables of {eval_set} at {self.data_root}, which takes longer and "
            "more memory. Write the file again with tools/create_data.py to evaluate without them"
        )
        nusc = self.tables()
        return ground_truth_of_tables(nusc, found, self.config)

    def tables(self):
        """The devkit's tables.

        Raises:
            FileNotFoundError: they are not there.
            ValueError: the split has no public annotations, or `infos` are not all of its samples.
        """
        from nuscenes.nuscenes import NuScenes
        from nuscenes.utils.splits import create_splits_scenes

        scenes = set(create_splits_scenes()[self.eval_set])
        version = self.metadata["version"]
        root = self.data_root or "."
        if not osp.isdir(osp.join(root, version)):
            raise FileNotFoundError(
                f"no nuScenes tables at {osp.join(root, version)}, which this evaluation needs: check "
                "data_root, or write the info file again with tools/create_data.py"
            )
        nusc = NuScenes(version=version, dataroot=root, verbose=False)
        scene_tokens = {scene["token"] for scene in nusc.scene if scene["name"] in scenes}
        expected = [s["token"] for s in nusc.sample if s["scene_token"] in scene_tokens]
        check_samples([info["token"] for info in self.infos], expected, self.ann_file, str(self))
        return nusc


def score(boxes, truth, config, meta, folder=None):
    """Score detections and write the files that the devkit writes.

    Args:
        boxes: `Boxes` in the order of the result file.
        truth: `GroundTruth`.
        config: the devkit's DetectionConfig.
        meta: of the result file.
        folder: gets `metrics_summary.json` and `metrics_details.json`; nothing is written where None.

    Returns:
        content of `metrics_summary.json`.
    """
    start = time.time()
    summary, details = detection_metrics(boxes, truth, config)
    summary.update(eval_time=time.time() - start, cfg=config.serialize(), meta=dict(meta))
    if folder is not None:
        os.makedirs(folder, exist_ok=True)
        for name, content in (("summary", summary), ("details", details)):
            with atomic_write(osp.join(folder, f"metrics_{name}.json")) as file:
                json.dump(content, file, indent=2)
    return summary


def score_with_devkit(path, split, folder, logger):
    """Let the devkit score a submission, draw its curves and write its files.

    Args:
        path: `results_nusc.json`.
        split: `EvaluatedSplit`.
        folder: gets `metrics_summary.json`, `metrics_details.json` and `plots/*.pdf`.
        logger: gets the devkit's table.

    Returns:
        content of `metrics_summary.json`.

    Raises: see `EvaluatedSplit.tables`.
    """
    nusc = split.tables()
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from nuscenes.eval.detection.evaluate import DetectionEval

    with open(path) as file:
        submission = json.load(file)
    with tempfile.TemporaryDirectory() as scratch:
        if not any(submission["results"].values()):
            path = _with_placeholder(submission, osp.join(scratch, "results.json"))
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            evaluation = DetectionEval(
                nusc, split.config, path, split.eval_set, output_dir=folder, verbose=False
            )
            summary = evaluation.main(plot_examples=0, render_curves=True)
    pyplot.close("all")
    logger.info("nuscenes-devkit, %s\n%s", split.eval_set, printed.getvalue())
    return summary


def _with_placeholder(submission, path):
    """The devkit fails on a submission without any box: give it one that it filters out, far away."""
    token = next(iter(submission["results"]))
    placeholder = {
        "sample_token": token,
        "translation": [1e6, 1e6, 0.0],
        "size": [1.0, 1.0, 1.0],
        "rotation": [1.0, 0.0, 0.0, 0.0],
        "velocity": [0.0, 0.0],
        "detection_name": "car",
        "detection_score": 0.0,
        "attribute_name": "vehicle.parked",
    }
    with open(path, "w") as file:
        json.dump({**submission, "results": {**submission["results"], token: [placeholder]}}, file)
    return path


def metric_dict(summary):
    """The scores under mmdet3d's keys.

    Args:
        summary: content of `metrics_summary.json`.

    Returns:
        dict of float: "pts_bbox_NuScenes/NDS", ".../mAP", ".../mATE", ".../mASE", ".../mAOE",
        ".../mAVE", ".../mAAE", ".../{class}_AP_dist_{metres}", ".../{class}_{error}".
    """
    prefix = "pts_bbox_NuScenes"
    metrics = {}
    for name, by_distance in summary["label_aps"].items():
        for distance, ap in by_distance.items():
            metrics[f"{prefix}/{name}_AP_dist_{distance}"] = round(ap, 4)
    for name, errors in summary["label_tp_errors"].items():
        for error, value in errors.items():
            metrics[f"{prefix}/{name}_{error}"] = round(value, 4)
    for error, value in summary["tp_errors"].items():
        metrics[f"{prefix}/{_ERROR_NAMES[error]}"] = round(value, 4)
    metrics[f"{prefix}/NDS"] = summary["nd_score"]
    metrics[f"{prefix}/mAP"] = summary["mean_ap"]
    return metrics

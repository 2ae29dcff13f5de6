"""Scores of detections: the project's own, equal to the devkit's, or by the devkit itself."""

from __future__ import annotations

import contextlib
import io
import json
import os
import os.path as osp
import tempfile
import time
from typing import Any

from projects.bevformer.files.writing import atomic_write
from projects.bevformer.nuscenes.evaluation.metrics import Boxes, GroundTruth, detection_metrics
from projects.bevformer.nuscenes.spec import TP_ERRORS


def write_metrics(content: dict, name: str, folder: str) -> None:
    """Write `metrics_{name}.json` as the devkit does; the folder is created if needed."""
    os.makedirs(folder, exist_ok=True)
    text = json.dumps(content, indent=2)
    with atomic_write(osp.join(folder, f"metrics_{name}.json"), size_bytes=len(text)) as file:
        file.write(text)


def score_boxes(
    boxes: Boxes, truth: GroundTruth, config: Any, meta: dict, folder: str | None = None
) -> dict:
    """Score detections.

    Args:
        boxes: detections, in the order of the result file.
        truth: ground truth.
        config: the devkit's DetectionConfig, or an OwnBenchmark.
        meta: of the result file.
        folder: gets `metrics_details.json`; None writes nothing.

    Returns:
        content of `metrics_summary.json`.
    """
    start = time.time()
    summary, details = detection_metrics(boxes, truth, config)
    summary.update(eval_time=time.time() - start, cfg=config.serialize(), meta=dict(meta))
    if folder is not None:
        write_metrics(details, "details", folder)
    return summary


def score_with_devkit(
    path: str, nusc: Any, eval_set: str, config: Any, folder: str, logger: Any
) -> dict:
    """Let the devkit score a submission, draw its curves and write its files.

    Args:
        path: `results_nusc.json`.
        nusc: the devkit's tables.
        eval_set: the devkit's name of the split.
        config: the devkit's DetectionConfig.
        folder: gets `metrics_summary.json`, `metrics_details.json` and `plots/*.pdf`.
        logger: gets the devkit's table.

    Returns:
        content of `metrics_summary.json`.
    """
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
                nusc, config, path, eval_set, output_dir=folder, verbose=False
            )
            summary = evaluation.main(plot_examples=0, render_curves=True)
    pyplot.close("all")
    logger.info("nuscenes-devkit, %s\n%s", eval_set, printed.getvalue())
    return summary


def _with_placeholder(submission, path):
    """The devkit fails on a submission without any box: add one, far away, that it filters out."""
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


def flat_metrics(summary: dict) -> dict[str, float]:
    """The scores of a summary as one dict of float, those of boxes under mmdet3d's keys.

    Args:
        summary: content of `metrics_summary.json`.

    Returns:
        "pts_bbox_NuScenes/NDS", ".../mAP", ".../mATE", ".../mASE", ".../mAOE", ".../mAVE", ".../mAAE",
        ".../{class}_AP_dist_{metres}" and ".../{class}_{error}", if boxes were scored, and
        "<head>/<name>" of other heads. Own classes have "pts_bbox_own" in place of "pts_bbox_NuScenes",
        and "mAP_own" in place of NDS and mAP.
    """
    metrics = {name: value for name, value in summary.items() if "/" in name}
    if "mean_ap" not in summary:
        return metrics
    prefix = "pts_bbox_NuScenes" if "nd_score" in summary else "pts_bbox_own"
    for name, by_distance in summary["label_aps"].items():
        for distance, ap in by_distance.items():
            metrics[f"{prefix}/{name}_AP_dist_{distance}"] = round(ap, 4)
    for name, errors in summary["label_tp_errors"].items():
        for error, value in errors.items():
            metrics[f"{prefix}/{name}_{error}"] = round(value, 4)
    for error, value in summary["tp_errors"].items():
        metrics[f"{prefix}/{TP_ERRORS[error]}"] = round(value, 4)
    metrics.update((f"{prefix}/{name}", value) for name, value in overall_scores(summary).items())
    return metrics


def overall_scores(summary: dict) -> dict[str, float]:
    """{"mAP", "NDS"} of a summary of nuScenes' classes, {"mAP_own"} of one of own classes."""
    if "nd_score" in summary:
        return {"mAP": summary["mean_ap"], "NDS": summary["nd_score"]}
    return {"mAP_own": summary["mean_ap"]}

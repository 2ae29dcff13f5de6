"""Metrics as plain text."""

from __future__ import annotations

from typing import Any

from terminaltables import AsciiTable

from projects.bevformer.nuscenes.evaluation.scoring import overall_scores
from projects.bevformer.nuscenes.spec import TP_ERRORS


def headline_metrics(summary: dict[str, Any]) -> dict[str, float]:
    """mAP, NDS and the five true-positive errors under their usual names, and metrics of other heads.

    Own classes have mAP_own in place of mAP and NDS, and no error that none of them defines.

    Args:
        summary: content of `metrics_summary.json`.
    """
    metrics = _of_heads(summary)
    if "mean_ap" in summary:
        errors = {short: summary["tp_errors"][name] for name, short in TP_ERRORS.items()}
        errors = {name: value for name, value in errors.items() if value == value}  # not NaN
        metrics = {**overall_scores(summary), **errors, **metrics}
    return metrics


def _of_heads(summary):
    return {name: value for name, value in summary.items() if "/" in name}


def _number(value):
    """Four decimals; `-` where the benchmark defines none (NaN, e.g. the velocity of a cone)."""
    return "-" if value is None or value != value else f"{value:.4f}"


def metrics_table(summary: dict[str, Any]) -> str:
    """Overall and per-class metrics of nuScenes, and the metrics of other heads.

    Args:
        summary: content of `metrics_summary.json`.

    Returns:
        tables, one below the other.
    """
    tables = []
    if "mean_ap" in summary:
        scores = overall_scores(summary)
        overall = [[*scores, *TP_ERRORS.values()]]
        errors = [summary["tp_errors"][name] for name in TP_ERRORS]
        overall.append([_number(value) for value in (*scores.values(), *errors)])
        classes = [["class", "AP", *(name[1:] for name in TP_ERRORS.values())]]
        for class_name, ap in summary["mean_dist_aps"].items():
            errors = summary["label_tp_errors"][class_name]
            classes.append(
                [class_name, _number(ap)] + [_number(errors[name]) for name in TP_ERRORS]
            )
        tables += [overall, classes]
    rows = [[name, _number(value)] for name, value in _of_heads(summary).items()]
    if rows:
        tables.append([["head/metric", "value"], *rows])
    lines = [AsciiTable(table).table for table in tables]
    if "part" in summary:
        part = summary["part"]
        lines.append(
            f"of a part: {len(part['scenes'])} of {part['of_scenes']} scenes, {part['samples']} of "
            f"{part['of_samples']} samples"
        )
    return "\n".join(lines)

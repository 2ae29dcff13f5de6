"""The detection metrics of nuScenes: filter boxes, match them, average.

Every number is the devkit's (1.1.11 and 1.2.0), also where a corner case is a matter of convention: equal
scores, unknown velocities, classes without ground truth. The tests compare with the installed devkit.

Shape legend: S samples, M detections, G ground truths, K bicycle racks, D distance thresholds,
C classes. Global frame, metres.

Source: nuScenes (arXiv 1903.11027), section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from projects.bevformer.geometry import rotations
from projects.bevformer.jit import jit
from projects.bevformer.nuscenes.benchmark import OwnBenchmark, rules_of
from projects.bevformer.nuscenes.spec import TP_ERRORS

_DETAILS = (
    "recall", "precision", "confidence", "trans_err", "vel_err", "scale_err", "orient_err", "attr_err",
)  # fmt: skip
_RECALLS = np.linspace(0, 1, 101)


@dataclass
class Boxes:
    """N boxes of many samples.

    Attributes:
        sample: (N,) int, index of the sample.
        label: (N,) int, index into the class names of the benchmark's config.
        box: (N, 10) float64, x, y, z of the centre, w, l, h, quaternion w, x, y, z.
        velocity: (N, 2) m/s, NaN where unknown.
        attribute: (N,) int, index into `attributes_of(config)`, -1 for none; in ground truth an index
            behind the last is an attribute that no class has.
        score: (N,), None for ground truth.
    """

    sample: np.ndarray
    label: np.ndarray
    box: np.ndarray
    velocity: np.ndarray
    attribute: np.ndarray
    score: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.sample)

    def take(self, rows: Any) -> Boxes:
        """The boxes that a mask or indices choose, in that order."""
        columns = vars(self).items()
        return Boxes(**{name: None if c is None else c[rows] for name, c in columns})


@dataclass
class GroundTruth:
    """What detections are compared with.

    Attributes:
        boxes: G `Boxes` that have lidar or radar points, in the order of the tables.
        ego_xy: (S, 2) position of the ego vehicle.
        rack_sample: (K,) int, index of the sample of each bicycle rack.
        rack_box: (K, 10) as `Boxes.box`, unit quaternions.
    """

    boxes: Boxes
    ego_xy: np.ndarray
    rack_sample: np.ndarray
    rack_box: np.ndarray


def detection_metrics(detections: Boxes, truth: GroundTruth, config: Any) -> tuple[dict, dict]:
    """Score detections.

    Args:
        detections: M `Boxes` in the order of the result file, which decides between equal scores.
        truth: `GroundTruth`.
        config: the devkit's DetectionConfig, or an OwnBenchmark.

    Returns:
        summary: the scores of the devkit's `metrics_summary.json`; of an OwnBenchmark without what belongs
            to NDS, and with NaN for an error that none of its classes has.
        details: content of its `metrics_details.json`.
    """
    names = list(config.class_range)
    detections = counted_boxes(detections, truth, config)
    # Falling scores; of equal ones the last of the file comes first.
    detections = detections.take(np.argsort(detections.score, kind="stable")[::-1])
    ground_truths = counted_boxes(truth.boxes, truth, config)
    group = ground_truths.sample * len(names) + ground_truths.label
    ground_truths = ground_truths.take(np.argsort(group, kind="stable"))

    matched = _match(detections, ground_truths, len(truth.ego_xy), len(names), config.dist_ths)
    curves = {}
    for label, (name, rules) in enumerate(rules_of(config).items()):
        rows = np.flatnonzero(detections.label == label)
        positives = int((ground_truths.label == label).sum())
        of_class = detections.take(rows)
        for column, distance in enumerate(config.dist_ths):
            curves[name, distance] = _curves(
                of_class, ground_truths, matched[rows, column], positives, rules.period_rad
            )
    details = {
        f"{name}:{distance}": {key: curve[key].tolist() for key in _DETAILS}
        for (name, distance), curve in curves.items()
    }
    return _summary(curves, config), details


def counted_boxes(boxes: Boxes, truth: GroundTruth, config: Any) -> Boxes:
    """Boxes within the range of their class, and cycles outside of bicycle racks."""
    ranges = np.array(list(config.class_range.values()), dtype=np.float64)
    offset = boxes.box[:, :2] - truth.ego_xy[boxes.sample]
    boxes = boxes.take(np.sqrt(offset[:, 0] ** 2 + offset[:, 1] ** 2) < ranges[boxes.label])
    cycles = [label for label, rules in enumerate(rules_of(config).values()) if rules.in_racks]
    rows = np.flatnonzero(np.isin(boxes.label, cycles))
    in_rack = np.zeros(len(boxes), bool)
    in_rack[rows] = _in_racks(boxes.sample[rows], boxes.box[rows, :3], truth)
    return boxes.take(~in_rack)


def _in_racks(sample, point, truth):
    """Whether points (N, 3) of samples (N,) lie in a rack of their sample."""
    inside = np.zeros(len(sample), bool)
    order = np.argsort(sample, kind="stable")
    starts = np.searchsorted(sample[order], truth.rack_sample, side="left")
    ends = np.searchsorted(sample[order], truth.rack_sample, side="right")
    for start, end, rack in zip(starts, ends, truth.rack_box):
        rows = order[start:end]
        offset = rotations.rotate_back(rack[None, 6:], point[rows] - rack[:3])
        inside[rows] |= (np.abs(offset) <= rack[[4, 3, 5]] / 2).all(axis=1)
    return inside


def _match(detections, ground_truths, samples, classes, thresholds):
    """(M, D) row of the ground truth that each detection takes at each threshold, -1 for none.

    Args:
        detections: by falling score.
        ground_truths: grouped by sample and class.
    """
    group = detections.sample * classes + detections.label
    truth_group = ground_truths.sample * classes + ground_truths.label
    starts = np.searchsorted(truth_group, np.arange(samples * classes + 1))
    return _match_greedily(
        group,
        np.ascontiguousarray(detections.box[:, :2]),
        starts,
        np.ascontiguousarray(ground_truths.box[:, :2]),
        np.array(thresholds, dtype=np.float64),
    )


@jit
def _match_greedily(group, xy, starts, truth_xy, thresholds):
    """One detection after the other takes the nearest ground truth of its group that is still free.

    Ground truths of group i are the rows starts[i] to starts[i + 1]; the first of equally near ones
    wins, and one exactly at the threshold is too far.
    """
    matched = np.full((len(group), len(thresholds)), -1)
    taken = np.zeros((len(truth_xy), len(thresholds)), np.bool_)
    for m in range(len(group)):
        for d in range(len(thresholds)):
            nearest = -1
            least = np.inf
            for g in range(starts[group[m]], starts[group[m] + 1]):
                if not taken[g, d]:
                    dx = xy[m, 0] - truth_xy[g, 0]
                    dy = xy[m, 1] - truth_xy[g, 1]
                    distance = np.sqrt(dx * dx + dy * dy)
                    if distance < least:
                        least = distance
                        nearest = g
            if least < thresholds[d]:
                taken[nearest, d] = True
                matched[m, d] = nearest
    return matched


def _curves(detections, ground_truths, matched, positives, period_rad):
    """Precision, confidence and errors over 101 recalls, of one class at one threshold.

    Args:
        detections: of the class, by falling score.
        ground_truths: all of them.
        matched: row in `ground_truths` of each detection, -1 for none.
        positives: number of ground truths of the class.
        period_rad: the turn after which an object of the class looks the same.
    """
    is_match = matched >= 0
    if not is_match.any():
        curves = {"recall": _RECALLS, "precision": np.zeros(101), "confidence": np.zeros(101)}
        return {**curves, **{error: np.ones(101) for error in TP_ERRORS}}
    true = np.cumsum(is_match).astype(np.float64)
    recall = true / positives
    precision = true / np.arange(1, len(true) + 1)
    confidence = np.interp(_RECALLS, recall, detections.score, right=0)
    curves = {
        "recall": _RECALLS,
        "precision": np.interp(_RECALLS, recall, precision, right=0),
        "confidence": confidence,
    }
    hits, targets = detections.take(is_match), ground_truths.take(matched[is_match])
    for error, values in _errors(hits, targets, period_rad).items():
        means = _running_mean(values)
        # np.interp needs rising scores.
        curves[error] = np.interp(confidence[::-1], hits.score[::-1], means[::-1])[::-1]
    return curves


def _errors(hits, targets, period_rad):
    """The errors of N matched pairs, (N,) each; NaN where the ground truth is unknown."""
    offset = hits.box[:, :2] - targets.box[:, :2]
    velocity = hits.velocity - targets.velocity
    common = np.minimum(hits.box[:, 3:6], targets.box[:, 3:6])
    intersection = _volume(common)
    union = _volume(targets.box[:, 3:6]) + _volume(hits.box[:, 3:6]) - intersection
    turn = rotations.yaws(targets.box[:, 6:]) - rotations.yaws(hits.box[:, 6:])
    wrong_attribute = (hits.attribute != targets.attribute).astype(np.float64)
    return {
        "trans_err": np.sqrt(offset[:, 0] ** 2 + offset[:, 1] ** 2),
        "scale_err": 1 - intersection / union,
        "orient_err": np.abs((turn + period_rad / 2) % period_rad - period_rad / 2),
        "vel_err": np.sqrt(velocity[:, 0] ** 2 + velocity[:, 1] ** 2),
        "attr_err": np.where(targets.attribute < 0, np.nan, wrong_attribute),
    }


def _volume(size):
    return size[:, 0] * size[:, 1] * size[:, 2]


def _running_mean(values):
    """Mean of all values up to each one, without NaN; 0 before the first, 1 if all are NaN."""
    known = ~np.isnan(values)
    if not known.any():
        return np.ones(len(values))
    return np.nancumsum(values) / np.maximum(np.cumsum(known), 1)


def _summary(curves, config):
    names = list(config.class_range)
    label_aps = {
        name: {distance: _average_precision(curves[name, distance], config) for distance in config.dist_ths}
        for name in names
    }  # fmt: skip
    label_tp_errors = {
        name: {
            error: np.nan
            if error in rules.undefined_errors
            else _average_error(curves[name, config.dist_th_tp], error, config)
            for error in TP_ERRORS
        }
        for name, rules in rules_of(config).items()
    }
    mean_dist_aps = {name: float(np.mean(list(aps.values()))) for name, aps in label_aps.items()}
    mean_ap = float(np.mean(list(mean_dist_aps.values())))
    tp_errors = {
        error: _known_mean([label_tp_errors[name][error] for name in names]) for error in TP_ERRORS
    }
    summary = {
        "label_aps": label_aps,
        "mean_dist_aps": mean_dist_aps,
        "mean_ap": mean_ap,
        "label_tp_errors": label_tp_errors,
        "tp_errors": tp_errors,
    }
    if isinstance(config, OwnBenchmark):
        return summary
    tp_scores = {error: max(0.0, 1.0 - value) for error, value in tp_errors.items()}
    total = config.mean_ap_weight * mean_ap + sum(tp_scores.values())
    nd_score = total / (config.mean_ap_weight + len(tp_scores))
    return {**summary, "tp_scores": tp_scores, "nd_score": nd_score}


def _known_mean(values):
    """Mean without NaN; NaN where there is nothing else."""
    return float("nan") if np.isnan(values).all() else float(np.nanmean(values))


def _average_precision(curve, config):
    """Mean precision above `min_precision`, over the recalls above `min_recall`, scaled to 0 ... 1."""
    precision = curve["precision"][round(100 * config.min_recall) + 1 :] - config.min_precision
    return float(np.mean(np.maximum(precision, 0))) / (1.0 - config.min_precision)


def _average_error(curve, error, config):
    """Mean error from above `min_recall` to the highest recall reached; 1 where it is not reached."""
    first = round(100 * config.min_recall) + 1
    reached = np.flatnonzero(curve["confidence"])
    last = reached[-1] if len(reached) else 0
    return 1.0 if last < first else float(np.mean(curve[error][first : last + 1]))

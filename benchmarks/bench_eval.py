"""Time of the detection metrics on random boxes, the project's against the nuscenes-devkit's.

    python benchmarks/bench_eval.py [--quick] [--devkit-samples N] [--out FILE]

The size of the val split of v1.0-trainval (6019 samples, 300 predictions each) unless --quick. The devkit
takes minutes for that, so it scores a part of the samples, and so does the project once more for the ratio:
both in this process, one after the other, on the same boxes. First their scores are compared: every number
must be equal within 1e-9.

No images, tables or weights are needed. Both start from boxes in memory; the devkit's time does not include its
tables and its filter. Seconds are those that this process computes, on one core: what others do on the machine
does not change them. --out keeps the figures as JSON.
"""

import argparse
import json
import os
import platform
import resource
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from terminaltables import AsciiTable  # noqa: E402

from projects.bevformer import compat  # noqa: E402, F401
from projects.bevformer.nuscenes.evaluation.ground_truth import ground_truth_of_infos
from projects.bevformer.nuscenes.evaluation.metrics import (  # noqa: E402
    counted_boxes,
    detection_metrics,
)
from projects.bevformer.nuscenes.evaluation.results import (
    Frames,
    detected_boxes,
    read_result_file,
    write_result_file,
)
from projects.bevformer.nuscenes.records import boxes_global  # noqa: E402
from projects.bevformer.nuscenes.spec import ATTRIBUTES, CLASSES  # noqa: E402

PREDICTIONS, OBJECTS = 300, 34  # of a sample; nuScenes has 34 annotations a sample on average
# Share of each class among the annotations of nuScenes, roughly.
SHARES = dict(zip(CLASSES, (0.43, 0.08, 0.01, 0.01, 0.02, 0.13, 0.01, 0.01, 0.2, 0.1)))
STEPS = {
    "compile": "numba, first call of a process",
    "infos": "ground truth from info records",
    "convert": "predictions to the global frame",
    "write": "results_nusc.json written",
    "score": "matched and scored",
    "read": "results_nusc.json read (--results only)",
}


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="200 samples, the devkit 50 of them")
    parser.add_argument("--samples", type=int, help="[6019; quick 200]")
    parser.add_argument(
        "--devkit-samples",
        type=int,
        metavar="N",
        help="samples that the devkit scores [600; quick 50]",
    )
    parser.add_argument("--out", help="JSON file for the figures")
    args = parser.parse_args(argv)
    args.samples = args.samples or (200 if args.quick else 6019)
    args.devkit_samples = min(args.devkit_samples or (50 if args.quick else 600), args.samples)
    return args


def within_range(names, config, rng):
    """Offsets (..., 2) from the ego vehicle, all over the disk in which the benchmark counts a class."""
    ranges = np.vectorize(config.class_range.get)(names)
    radius, angle = (
        ranges * np.sqrt(rng.uniform(0, 0.98, names.shape)),
        rng.uniform(0, 7, names.shape),
    )
    return np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=-1)


def random_infos(samples, config, rng):
    """Info records with what evaluation reads."""
    shares = np.array(list(SHARES.values()))
    attribute_of = dict.fromkeys(CLASSES, "vehicle.moving")
    attribute_of.update(dict.fromkeys(("bicycle", "motorcycle"), "cycle.with_rider"))
    attribute_of.update(pedestrian="pedestrian.moving", barrier="", traffic_cone="")
    shape = (samples, OBJECTS)
    ego = rng.uniform(0, 2000, (samples, 3)) * [1, 1, 0]
    names = rng.choice(CLASSES, shape, p=shares / shares.sum())
    half_yaw = rng.uniform(-np.pi, np.pi, shape) / 2
    centers = ego[:, None] + [0, 0, 1]
    centers = centers + np.pad(within_range(names, config, rng), ((0, 0), (0, 0), (0, 1)))
    boxes = np.zeros((*shape, 7))  # evaluation reads only the sizes from the lidar frame
    boxes[..., 3:6] = rng.uniform(0.5, 5, (*shape, 3))
    rotations = np.zeros((*shape, 4))
    rotations[..., 0], rotations[..., 3] = np.cos(half_yaw), np.sin(half_yaw)
    velocity = rng.normal(size=(*shape, 2))
    points = rng.randint(0, 20, shape)
    return [
        {
            "token": f"{i:032x}",
            "lidar2ego_translation": [0.9, 0.0, 1.8],
            "lidar2ego_rotation": [np.sqrt(0.5), 0.0, 0.0, -np.sqrt(0.5)],
            "ego2global_translation": ego[i].tolist(),
            "ego2global_rotation": [1.0, 0.0, 0.0, 0.0],
            "gt_names": names[i],
            "gt_boxes": boxes[i],
            "gt_velocity": velocity[i],
            "gt_centers_global": centers[i],
            "gt_rotations_global": rotations[i],
            "gt_attributes": np.array([attribute_of[name] for name in names[i]]),
            "num_lidar_pts": points[i],
            "num_radar_pts": np.zeros(OBJECTS, int),
        }
        for i in range(samples)
    ]


class LidarBoxes:
    """Stands for mmdet3d's boxes."""

    def __init__(self, tensor):
        self.tensor = tensor


def random_detections(infos, config, rng):
    """A third near objects, the rest anywhere in the range of the class; lidar frame."""
    detections = []
    for info in infos:
        objects = rng.randint(OBJECTS, size=PREDICTIONS)
        boxes, names = boxes_global(info)[objects], info["gt_names"][objects]
        offset = boxes[:, :2] - info["ego2global_translation"][:2]
        offset *= 0.98  # an object at the rim must not leave the range
        offset += rng.normal(scale=0.3, size=offset.shape)
        anywhere = rng.rand(PREDICTIONS) < 2 / 3
        offset[anywhere] = within_range(names[anywhere], config, rng)
        columns = np.column_stack(
            (
                -offset[:, 1],  # the lidar looks to the right of the ego vehicle
                offset[:, 0] - 0.9,
                boxes[:, 2] - 2.5,
                boxes[:, [4, 3, 5]] * rng.uniform(0.8, 1.2, (PREDICTIONS, 3)),
                rng.uniform(-np.pi, np.pi, PREDICTIONS),
                rng.normal(size=(PREDICTIONS, 2)),
            )
        )
        detections.append(
            {
                "boxes_3d": LidarBoxes(torch.tensor(columns, dtype=torch.float32)),
                "scores_3d": torch.tensor(rng.rand(PREDICTIONS) ** 3, dtype=torch.float32),
                "labels_3d": torch.tensor([CLASSES.index(name) for name in names]),
            }
        )
    return detections


def devkits_scores(boxes, truth, tokens, config):
    """Seconds, summary and details of the devkit's DetectionEval, on boxes that are filtered already."""
    from nuscenes.eval.common.data_classes import EvalBoxes
    from nuscenes.eval.detection.data_classes import DetectionBox
    from nuscenes.eval.detection.evaluate import DetectionEval

    names = list(config.class_range)

    def eval_boxes(boxes):
        converted = EvalBoxes()
        for token in tokens:
            converted.add_boxes(token, [])
        scores = np.full(len(boxes), -1.0) if boxes.score is None else boxes.score
        for i, sample in enumerate(boxes.sample):
            box = boxes.box[i].tolist()
            converted.add_boxes(
                tokens[sample],
                [
                    DetectionBox(
                        sample_token=tokens[sample],
                        translation=tuple(box[:3]),
                        size=tuple(box[3:6]),
                        rotation=tuple(box[6:]),
                        velocity=tuple(boxes.velocity[i].tolist()),
                        detection_name=names[boxes.label[i]],
                        detection_score=float(scores[i]),
                        attribute_name=(*ATTRIBUTES, "")[boxes.attribute[i]],
                    )
                ],
            )
        return converted

    evaluation = object.__new__(DetectionEval)  # its constructor reads tables
    evaluation.cfg, evaluation.verbose = config, False
    evaluation.pred_boxes, evaluation.gt_boxes = eval_boxes(boxes), eval_boxes(truth)
    start = time.process_time()
    metrics, details = evaluation.evaluate()
    return time.process_time() - start, metrics.serialize(), details.serialize()


def largest_difference(own, other):
    """Between all numbers of two results of the same layout; NaN where only one is NaN."""
    if isinstance(own, dict):
        return np.max([largest_difference(own[key], other[key]) for key in own])
    own, other = np.asarray(own, np.float64), np.asarray(other, np.float64)
    return np.where(np.isnan(own) & np.isnan(other), 0, np.abs(own - other)).max()


def compare_with_devkit(boxes, infos, config):
    """Both score the same boxes; seconds of the project and the devkit, and the largest difference.

    Raises:
        ValueError: a number differs by more than 1e-9.
    """
    truth = ground_truth_of_infos(infos, config)
    start = time.process_time()
    own = detection_metrics(boxes, truth, config)
    own_seconds = time.process_time() - start
    tokens = [info["token"] for info in infos]
    filtered = [counted_boxes(b, truth, config) for b in (boxes, truth.boxes)]
    devkit_seconds, *devkits = devkits_scores(*filtered, tokens, config)
    difference = np.max([largest_difference(*pair) for pair in zip(own, devkits)])
    if not difference <= 1e-9:
        raise ValueError(f"the scores differ by {difference}")
    return own_seconds, devkit_seconds, difference


def measure(args):
    """Figures of a run, as they go into the JSON file."""
    from nuscenes.eval.common.config import config_factory

    config = config_factory("detection_cvpr_2019")
    rng = np.random.RandomState(0)
    infos = random_infos(args.samples, config, rng)
    detections = random_detections(infos, config, rng)
    frames = Frames(infos)
    seconds = {}

    def timed(step, function, *arguments):
        start = time.process_time()
        outcome = function(*arguments)
        seconds[step] = time.process_time() - start
        return outcome

    part = ground_truth_of_infos(infos[:1], config)
    first = detected_boxes(detections[:1], Frames(infos[:1]), CLASSES, config)
    timed("compile", detection_metrics, first, part, config)
    truth = timed("infos", ground_truth_of_infos, infos, config)
    boxes = timed("convert", detected_boxes, detections, frames, CLASSES, config)
    timed("score", detection_metrics, boxes, truth, config)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "results_nusc.json")
        timed("write", write_result_file, boxes, frames.tokens, {}, config, path)
        size = os.path.getsize(path) / 1024**2
        peak = peak_mib()
        again, _ = timed("read", read_result_file, path, frames.tokens, config, "the split")
    np.testing.assert_array_equal(again.box, boxes.box)
    peak_of_read = peak_mib()
    count = len(boxes)
    del again, detections

    of_part = boxes.take(boxes.sample < args.devkit_samples)
    own, devkit, difference = compare_with_devkit(of_part, infos[: args.devkit_samples], config)
    return {
        "samples": args.samples,
        "boxes in range": count,
        "seconds": seconds,
        "result file, MiB": size,
        "peak RSS, MiB": peak,
        "peak RSS with reading, MiB": peak_of_read,
        "samples for both": args.devkit_samples,
        "score, project, s": own,
        "score, devkit, s": devkit,
        "ratio": devkit / own,
        "largest difference": float(difference),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"NumPy {np.__version__}, nuscenes-devkit {version('nuscenes-devkit')}",
    }


def peak_mib():
    """Largest memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(argv=None):
    args = parse_args(argv)
    figures = measure(args)
    seconds = figures["seconds"]
    rows = [[label, f"{seconds[step]:.2f} s"] for step, label in STEPS.items()]
    total = sum(seconds[step] for step in ("infos", "convert", "score", "write"))
    rows += [
        ["evaluation of predictions, all but reading", f"{total:.2f} s"],
        ["result file", f"{figures['result file, MiB']:.0f} MiB"],
        ["peak memory, before reading", f"{figures['peak RSS, MiB']:.0f} MiB"],
        ["peak memory, with reading", f"{figures['peak RSS with reading, MiB']:.0f} MiB"],
        [
            f"{figures['samples for both']} samples, project",
            f"{figures['score, project, s']:.2f} s",
        ],
        [f"{figures['samples for both']} samples, devkit", f"{figures['score, devkit, s']:.2f} s"],
        ["devkit / project", f"{figures['ratio']:.1f}"],
        ["largest difference of a number", f"{figures['largest difference']:.1e}"],
    ]
    print(f"{figures['samples']} samples, {figures['boxes in range']} predictions in range")
    print(AsciiTable([["what", "measured"], *rows]).table)
    print(figures["machine"])
    if args.out:
        Path(args.out).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()

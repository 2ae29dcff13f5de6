"""Detections -> nuScenes submission file -> metrics of the real devkit.

Shape legend: M detections of a frame.
"""

import contextlib
import io
import json
import os
import os.path as osp
import tempfile

import numpy as np
from scipy.spatial.transform import Rotation

# (table folder, info split) -> the devkit's name of the split.
EVAL_SETS = {
    ("v1.0-mini", "train"): "mini_train",
    ("v1.0-mini", "val"): "mini_val",
    ("v1.0-trainval", "train"): "train",
    ("v1.0-trainval", "val"): "val",
}
# Attributes are not predicted: a class and whether it moves stand for them, as in mmdet3d.
_MOVING_SPEED = 0.2  # m/s
_MOVING_ATTRIBUTE = {
    "car": "vehicle.moving",
    "truck": "vehicle.moving",
    "construction_vehicle": "vehicle.moving",
    "bus": "vehicle.moving",
    "trailer": "vehicle.moving",
    "motorcycle": "cycle.with_rider",
    "bicycle": "cycle.with_rider",
    "pedestrian": "pedestrian.moving",
    "barrier": "",
    "traffic_cone": "",
}
_STILL_ATTRIBUTE = {
    "car": "vehicle.parked",
    "truck": "vehicle.parked",
    "construction_vehicle": "vehicle.parked",
    "bus": "vehicle.stopped",
    "trailer": "vehicle.parked",
    "motorcycle": "cycle.without_rider",
    "bicycle": "cycle.without_rider",
    "pedestrian": "pedestrian.standing",
    "barrier": "",
    "traffic_cone": "",
}
_ERROR_NAMES = {
    "trans_err": "mATE",
    "scale_err": "mASE",
    "orient_err": "mAOE",
    "vel_err": "mAVE",
    "attr_err": "mAAE",
}


def write_result_file(detections, infos, class_names, config, modality, folder):
    """Write detections as a nuScenes submission.

    Args:
        detections: one dict a frame: boxes_3d, M LiDARInstance3DBoxes with 7 or 9 columns;
            scores_3d, (M,); labels_3d, (M,).
        infos: info records of the frames, in the same order.
        class_names: label -> name.
        config: the devkit's DetectionConfig.
        modality: dict of use_camera ... use_external.
        folder: where `results_nusc.json` goes; made where missing.

    Returns:
        path of the file.

    Raises:
        ValueError: see `to_submission`.
    """
    submission = {
        "meta": modality,
        "results": {
            info["token"]: to_submission(detection, info, class_names, config)
            for detection, info in zip(detections, infos)
        },
    }
    os.makedirs(folder, exist_ok=True)
    path = osp.join(folder, "results_nusc.json")
    with open(path, "w") as file:
        json.dump(submission, file)
    return path


def to_submission(detection, info, class_names, config):
    """Detections of one frame in the global frame, as the benchmark wants them.

    Boxes further from the ego vehicle than the benchmark counts their class are left out.

    Args: see `write_result_file`.

    Returns:
        list of dicts: sample_token, translation (gravity centre, global frame), size (w, l, h),
        rotation (w, x, y, z), velocity (x, y; global frame), detection_name, detection_score,
        attribute_name.

    Raises:
        ValueError: a number is not finite, a size is not positive, or there are more boxes than the
            benchmark accepts.
    """
    boxes = detection["boxes_3d"]
    columns = boxes.tensor.detach().cpu().double().numpy()  # (M, 7 or 9)
    scores = np.asarray(detection["scores_3d"], dtype=np.float64)
    labels = np.asarray(detection["labels_3d"], dtype=np.int64)
    _check_detections(columns, scores, info["token"], config.max_boxes_per_sample)

    lidar2ego = Rotation.from_quat(np.roll(info["lidar2ego_rotation"], -1))
    ego2global = Rotation.from_quat(np.roll(info["ego2global_rotation"], -1))
    centers_lidar = boxes.gravity_center.detach().cpu().double().numpy()
    centers_ego = lidar2ego.apply(centers_lidar) + info["lidar2ego_translation"]
    class_ranges = np.array([config.class_range[name] for name in class_names])
    kept = np.hypot(centers_ego[:, 0], centers_ego[:, 1]) <= class_ranges[labels]
    if not kept.any():
        return []
    columns, scores, labels = columns[kept], scores[kept], labels[kept]

    lidar2global = ego2global * lidar2ego
    translations = ego2global.apply(centers_ego[kept]) + info["ego2global_translation"]
    rotations = (lidar2global * Rotation.from_euler("z", columns[:, 6])).as_quat()  # x, y, z, w
    velocities_lidar = np.zeros((len(columns), 3))
    velocities_lidar[:, :2] = columns[:, 7:9] if columns.shape[1] > 7 else 0
    velocities = lidar2global.apply(velocities_lidar)[:, :2]
    speeds = np.hypot(velocities[:, 0], velocities[:, 1])

    submission = []
    for i, label in enumerate(labels):
        name = class_names[label]
        attributes = _MOVING_ATTRIBUTE if speeds[i] > _MOVING_SPEED else _STILL_ATTRIBUTE
        submission.append(
            {
                "sample_token": info["token"],
                "translation": translations[i].tolist(),
                "size": columns[i, [4, 3, 5]].tolist(),  # l, w, h -> w, l, h
                "rotation": rotations[i, [3, 0, 1, 2]].tolist(),
                "velocity": velocities[i].tolist(),
                "detection_name": name,
                "detection_score": float(scores[i]),
                "attribute_name": attributes[name],
            }
        )
    return submission


def _check_detections(columns, scores, token, max_boxes):
    if not (np.isfinite(columns).all() and np.isfinite(scores).all()):
        raise ValueError(
            f"a detection of sample {token} is not finite: the weights or the inputs hold NaN"
        )
    if (columns[:, 3:6] <= 0).any():
        raise ValueError(f"a detection of sample {token} has a size of zero or less")
    if len(columns) > max_boxes:
        raise ValueError(
            f"{len(columns)} detections for sample {token}, the benchmark takes {max_boxes}: "
            "lower max_num of the box coder"
        )


def evaluate_result_file(path, version, split, data_root, config, logger):
    """Let the devkit evaluate a submission; its metric files are written beside it.

    Args:
        path: `results_nusc.json`.
        version: table folder, such as "v1.0-mini".
        split: "train" or "val".
        data_root: nuScenes root.
        config: the devkit's DetectionConfig.
        logger: gets the devkit's table.

    Returns:
        dict of float with mmdet3d's keys: "pts_bbox_NuScenes/NDS", ".../mAP", ".../mATE", ".../mASE",
        ".../mAOE", ".../mAVE", ".../mAAE", ".../{class}_AP_dist_{metres}", ".../{class}_{error}".

    Raises:
        FileNotFoundError: no tables of that version under data_root.
        ValueError: the split has no public annotations, or the samples are not those of the split.
    """
    if (version, split) not in EVAL_SETS:
        raise ValueError(
            f"the {split} split of {version} has no public annotations to evaluate with: "
            "write the submission with --format-only instead"
        )
    if not osp.isdir(osp.join(data_root, version)):
        raise FileNotFoundError(
            f"no nuScenes tables at {osp.join(data_root, version)}, which the devkit needs: "
            "check data_root"
        )
    # The devkit brings matplotlib along, which only evaluation should pay for.
    from nuscenes.eval.detection.evaluate import DetectionEval
    from nuscenes.nuscenes import NuScenes

    nusc = NuScenes(version=version, dataroot=data_root, verbose=False)
    eval_set = EVAL_SETS[version, split]
    with open(path) as file:
        submission = json.load(file)
    check_sample_tokens(submission["results"], nusc, eval_set)

    folder = osp.dirname(path)
    with tempfile.TemporaryDirectory() as scratch:
        if not any(submission["results"].values()):
            logger.warning(
                "not a single detection within the benchmark's range: all scores are zero"
            )
            path = _with_placeholder(submission, osp.join(scratch, "results.json"))
        evaluation = DetectionEval(nusc, config, path, eval_set, output_dir=folder, verbose=False)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            summary = evaluation.main(plot_examples=0, render_curves=False)
    os.rmdir(evaluation.plot_dir)  # made for the curves that were not asked for
    logger.info("nuScenes %s\n%s", eval_set, printed.getvalue())
    return _metric_dict(summary)


def check_sample_tokens(tokens, nusc, eval_set):
    """Raise where a submission's samples are not those of the split; the devkit does not say which.

    Args:
        tokens: sample tokens of the submission.
        nusc: the devkit's tables.
        eval_set: the devkit's name of the split.

    Raises:
        ValueError: samples are missing, or do not belong there.
    """
    from nuscenes.utils.splits import create_splits_scenes

    split_scenes = set(create_splits_scenes()[eval_set])
    scene_tokens = {scene["token"] for scene in nusc.scene if scene["name"] in split_scenes}
    expected = {s["token"] for s in nusc.sample if s["scene_token"] in scene_tokens}
    missing, extra = expected - set(tokens), set(tokens) - expected
    if missing or extra:
        raise ValueError(
            f"the results do not fit {eval_set} of {nusc.version}: of its {len(expected)} samples "
            f"{len(missing)} are missing, and {len(extra)} results are of other samples. The info file "
            "must be of this split and this version and hold all of its scenes, with load_interval=1"
        )


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


def _metric_dict(summary):
    """The devkit's summary under mmdet3d's keys."""
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

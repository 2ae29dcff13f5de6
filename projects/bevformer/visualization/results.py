"""Results from files: the pickle of an evaluation, or the JSON of the nuScenes benchmark."""

import json
from pathlib import Path

import numpy as np
import torch
from pyquaternion import Quaternion

from projects.bevformer import compat  # noqa: F401
from projects.bevformer.io import load_pickle_restricted, load_torch_bytes
from projects.bevformer.nuscenes.spec import CLASSES


def load_results(path, infos, class_names=CLASSES):
    """Read the predictions for the samples of a data set.

    Args:
        path: a `.pkl` with the list of result dicts in the order of `infos`, or a `.json` in the
            format of the nuScenes detection benchmark (global frame).
        infos: `dataset.data_infos`.
        class_names: the name of each label.

    Returns:
        dict: sample token -> "pts_bbox" dict, boxes in the lidar frame. A JSON file may cover a
        part of the samples only.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: neither format, or the file was made for another data set.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"results file {path} does not exist: make it with tools/eval.py --out"
        )
    if path.suffix == ".json":
        return _load_nuscenes_json(path, infos, class_names)
    if path.suffix == ".pkl":
        return _load_pickle(path, infos)
    raise ValueError(f"results file {path} is neither .pkl (tools/eval.py --out) nor .json")


def _load_pickle(path, infos):
    class PickledBoxes:
        """Stands in for mmdet3d's boxes while the file is read: it keeps what they are made of."""

    results = load_pickle_restricted(
        path,
        "a list of results",
        "make it with tools/eval.py --out",
        {
            ("mmdet3d.core.bbox.structures.lidar_box3d", "LiDARInstance3DBoxes"): PickledBoxes,
            ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
            ("torch.storage", "_load_from_bytes"): load_torch_bytes,
        },
    )
    try:
        detections = [dict(result["pts_bbox"]) for result in results]
        for detection in detections:
            if isinstance(detection.get("boxes_3d"), PickledBoxes):
                detection["boxes_3d"] = _lidar_boxes(detection["boxes_3d"])
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a list of dicts with 'pts_bbox': make it with tools/eval.py --out"
        ) from error
    if len(detections) != len(infos):
        raise ValueError(
            f"{path} has {len(detections)} results, the data set has {len(infos)} samples: "
            "use the config (data.test) that the results were made with"
        )
    return {info["token"]: detection for info, detection in zip(infos, detections)}


def _lidar_boxes(pickled):
    from mmdet3d.core.bbox import LiDARInstance3DBoxes

    return LiDARInstance3DBoxes(pickled.tensor, pickled.box_dim, pickled.with_yaw)


def _load_nuscenes_json(path, infos, class_names):
    try:
        with open(str(path)) as file:
            boxes_of_sample = json.load(file)["results"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a nuScenes results file (a JSON object with 'results')"
        ) from error
    found = [info for info in infos if info["token"] in boxes_of_sample]
    if not found:
        raise ValueError(
            f"none of the {len(boxes_of_sample)} samples of {path} is among the {len(infos)} of the "
            "data set: use the config (data.test) that the results were made with"
        )
    return {
        info["token"]: global_to_lidar(boxes_of_sample[info["token"]], info, class_names)
        for info in found
    }


def global_to_lidar(records, info, class_names=CLASSES):
    """Bring the benchmark's boxes of one sample back to the lidar frame.

    Args:
        records: list of dicts `translation` (gravity centre, metres), `size` (w, l, h, metres),
            `rotation` (quaternion w, x, y, z), `velocity` (m/s), `detection_name`,
            `detection_score`; global frame.
        info: the sample's entry of the info file.
        class_names: the name of each label.

    Returns:
        "pts_bbox" dict: `boxes_3d` (LiDARInstance3DBoxes, 9 columns), `scores_3d`, `labels_3d`.

    Raises:
        ValueError: a `detection_name` that is not one of `class_names`, or a field that is missing or
            malformed.
    """
    from mmdet3d.core.bbox import LiDARInstance3DBoxes

    ego2global = Quaternion(info["ego2global_rotation"])
    lidar2ego = Quaternion(info["lidar2ego_rotation"])
    global2lidar = (ego2global * lidar2ego).inverse

    boxes = np.zeros((len(records), 9))
    try:
        for box, record in zip(boxes, records):
            center_ego = ego2global.inverse.rotate(
                np.subtract(record["translation"], info["ego2global_translation"])
            )
            box[:3] = lidar2ego.inverse.rotate(center_ego - info["lidar2ego_translation"])
            width, length, height = record["size"]
            box[3:6] = length, width, height
            heading = (global2lidar * Quaternion(record["rotation"])).rotate([1.0, 0.0, 0.0])
            box[6] = np.arctan2(heading[1], heading[0])
            box[7:9] = global2lidar.rotate([*record["velocity"], 0.0])[:2]
        names = [record["detection_name"] for record in records]
        scores = torch.tensor([record["detection_score"] for record in records])
    except (KeyError, TypeError, ValueError) as error:
        fault = f"lacks {error}" if isinstance(error, KeyError) else f"is malformed ({error})"
        raise ValueError(
            f"sample {info['token']}: a box {fault}; translation, size, rotation, velocity, "
            "detection_name and detection_score are needed"
        ) from error
    unknown = sorted(set(names) - set(class_names))
    if unknown:
        raise ValueError(f"sample {info['token']}: unknown detection_name {', '.join(unknown)}")
    return {
        "boxes_3d": LiDARInstance3DBoxes(
            torch.from_numpy(boxes).float(), box_dim=9, origin=(0.5, 0.5, 0.5)
        ),
        "scores_3d": scores,
        "labels_3d": torch.tensor([class_names.index(name) for name in names], dtype=torch.long),
    }

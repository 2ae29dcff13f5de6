"""Results from files: the pickle of an evaluation, or the JSON of the nuScenes benchmark."""

from pathlib import Path
from typing import Any, Dict, Mapping, Sequence, Union

import numpy as np

from projects.bevformer.files.pickles import load_pickle_restricted
from projects.bevformer.files.weights import tensor_globals
from projects.bevformer.nuscenes.evaluation.lidar_boxes import lidar_detections
from projects.bevformer.nuscenes.evaluation.results import read_results_of
from projects.bevformer.nuscenes.spec import CLASSES


def load_results(
    path: Union[str, Path],
    infos: Sequence[Mapping[str, Any]],
    class_names: Sequence[str] = CLASSES,
    config: Any = None,
) -> Dict[str, Dict[str, Any]]:
    """Read the predictions for the samples of a data set.

    Args:
        path: a `.pkl` with the list of result dicts in the order of `infos`, or a `.json` in the
            format of the nuScenes detection benchmark (global frame).
        infos: `dataset.data_infos`.
        class_names: the name of each label.
        config: of the data set's evaluation, for own classes in a JSON file; that of nuScenes where None.

    Returns:
        dict: sample token -> "pts_bbox" dict, boxes in the lidar frame. A JSON file may hold only some
        of the samples.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: neither format, malformed, or made for another data set.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"results file {path} does not exist: make it with tools/eval.py --out"
        )
    if path.suffix == ".json":
        return _load_nuscenes_json(path, infos, class_names, config)
    if path.suffix == ".pkl":
        return _load_pickle(path, infos)
    raise ValueError(f"results file {path} is neither .pkl (tools/eval.py --out) nor .json")


def _load_pickle(path: Path, infos: Sequence[Mapping[str, Any]]) -> Dict[str, Dict[str, Any]]:
    from mmdet3d.core.bbox import LiDARInstance3DBoxes

    class PickledBoxes:
        """Replaces mmdet3d's boxes while the file is read: it only keeps their attributes."""

    results = load_pickle_restricted(
        path,
        "a list of results",
        "make it with tools/eval.py --out",
        {
            ("mmdet3d.core.bbox.structures.lidar_box3d", "LiDARInstance3DBoxes"): PickledBoxes,
            **tensor_globals(path.stat().st_size),
        },
    )
    try:
        detections = [dict(result["pts_bbox"]) for result in results]
        for detection in detections:
            if isinstance(detection.get("boxes_3d"), PickledBoxes):
                pickled = detection["boxes_3d"]
                boxes = LiDARInstance3DBoxes(pickled.tensor, pickled.box_dim, pickled.with_yaw)
                detection["boxes_3d"] = boxes
    except (LookupError, TypeError, ValueError, AttributeError, AssertionError) as error:
        raise ValueError(
            f"{path} is not a list of dicts with 'pts_bbox': make it with tools/eval.py --out"
        ) from error
    if len(detections) != len(infos):
        raise ValueError(
            f"{path} has {len(detections)} results, the data set has {len(infos)} samples: "
            "use the config (data.test) that the results were made with"
        )
    return {info["token"]: detection for info, detection in zip(infos, detections)}


def _load_nuscenes_json(
    path: Path, infos: Sequence[Mapping[str, Any]], class_names: Sequence[str], config: Any
) -> Dict[str, Dict[str, Any]]:
    if config is None:
        from nuscenes.eval.detection.config import config_factory

        config = config_factory("detection_cvpr_2019")
    tokens = [info["token"] for info in infos]
    boxes, found = read_results_of(str(path), tokens, config)
    if not found:
        raise ValueError(
            f"none of the samples of {path} is among the {len(infos)} of the data set: use the config "
            "(data.test) that the results were made with"
        )
    names = np.array(list(config.class_range))[boxes.label]  # (M,)
    unknown = sorted(set(names) - set(class_names))
    if unknown:
        raise ValueError(
            f"{path}: detection_name {', '.join(unknown)} is not a class of the data set "
            f"({', '.join(class_names)}): use the config that the results were made with"
        )
    labels = np.array([class_names.index(name) for name in names], dtype=int)
    detections = dict(zip(tokens, lidar_detections(boxes, infos, labels)))
    return {token: detections[token] for token in found}

"""Boxes in the global frame -> detections in the lidar frame: the inverse of `results.detected_boxes`.

Shape legend: M boxes, F frames.
"""

from typing import Any, Dict, List, Mapping, Sequence

import numpy as np
import torch

from projects.bevformer.geometry import rotations
from projects.bevformer.geometry.poses import inverse_poses
from projects.bevformer.nuscenes.evaluation.metrics import Boxes
from projects.bevformer.nuscenes.records import lidar2global_of


def lidar_detections(
    boxes: Boxes, infos: Sequence[Mapping[str, Any]], labels: np.ndarray
) -> List[Dict[str, Any]]:
    """Boxes of many frames as result dicts of a detector.

    Args:
        boxes: M boxes; `sample` is an index into infos.
        infos: the F info records.
        labels: (M,) class of each box.

    Returns:
        F "pts_bbox" dicts: `boxes_3d` (LiDARInstance3DBoxes, 9 columns, NaN velocity where unknown),
        `scores_3d`, `labels_3d`.
    """
    from mmdet3d.core.bbox import LiDARInstance3DBoxes

    global2lidar = np.stack([inverse_poses(lidar2global_of(info)) for info in infos])[boxes.sample]

    def turned(vectors_global: np.ndarray) -> np.ndarray:
        return np.einsum("mij,mj->mi", global2lidar[:, :3, :3], vectors_global)

    quaternions = rotations.normalise(boxes.box[:, 6:])
    headings = turned(rotations.rotate(quaternions, np.array([[1.0, 0.0, 0.0]])))
    columns = np.column_stack(
        (
            turned(boxes.box[:, :3]) + global2lidar[:, :3, 3],
            boxes.box[:, [4, 3, 5]],
            np.arctan2(headings[:, 1], headings[:, 0]),
            turned(np.pad(boxes.velocity, ((0, 0), (0, 1))))[:, :2],
        )
    )
    detections = []
    for frame in range(len(infos)):
        rows = boxes.sample == frame
        tensor = torch.from_numpy(columns[rows]).float()
        detections.append(
            {
                "boxes_3d": LiDARInstance3DBoxes(tensor, box_dim=9, origin=(0.5, 0.5, 0.5)),
                "scores_3d": torch.from_numpy(boxes.score[rows]).float(),
                "labels_3d": torch.from_numpy(labels[rows]).long(),
            }
        )
    return detections

"""A small data set with own classes and five cameras, written by the code of docs/own_data.md."""

import re
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import torch

PAGE = Path(__file__).parents[2] / "docs" / "own_data.md"
IMAGE_HW = (64, 96)
_YAWS_DEG = (0.0, 60.0, -60.0, 140.0, -140.0, 100.0, -100.0)  # of the cameras, to the left


def page_blocks():
    """The Python code of the page."""
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def page_writer(cameras=None):
    """`write_infos` and what else the first block of the page defines; `cameras` instead of its own."""
    names = {}
    exec(page_blocks()[0], names)
    names["CAMERAS"] = names["CAMERAS"] if cameras is None else list(cameras)
    return SimpleNamespace(**names)


def made_up_object(name, x, y, velocity=(0.0, 0.0), attribute="", points=5, yaw=0.3):
    return SimpleNamespace(
        name=name, center=(x, y, -1.0), size_lwh=(4.0, 2.0, 1.5), yaw=yaw, velocity=velocity,
        attribute=attribute, points=points,
    )  # fmt: skip


def drive_of(name, objects, frames=2, cameras=()):
    """A drive straight ahead, at the same objects in every frame."""
    turns = [np.deg2rad(yaw) for yaw in _YAWS_DEG]
    camera2lidar = np.tile(np.eye(4), (len(turns), 1, 1))
    for matrix, turn in zip(camera2lidar, turns):
        ahead, right = (-np.sin(turn), np.cos(turn), 0.0), (np.cos(turn), np.sin(turn), 0.0)
        matrix[:3, :3] = np.array([right, (0.0, 0.0, -1.0), ahead]).T
    height, width = IMAGE_HW
    intrinsic = np.array([[60.0, 0.0, width / 2], [0.0, 60.0, height / 2], [0.0, 0.0, 1.0]])
    return [
        SimpleNamespace(
            name=f"{name}-{i}", drive=name, time_s=10.0 + 0.5 * i, objects=objects,
            lidar2ego_translation=[0.5, 0.0, 1.8],
            lidar2ego_rotation=[np.sqrt(0.5), 0.0, 0.0, -np.sqrt(0.5)],
            ego2global_translation=[100.0, 50.0 + i, 0.0],
            ego2global_rotation=[np.cos(0.2), 0.0, 0.0, np.sin(0.2)],
            picture={camera: f"pictures/{camera}/{name}-{i}.png" for camera in cameras},
            camera2lidar=dict(zip(cameras, camera2lidar)),
            intrinsic=dict.fromkeys(cameras, intrinsic),
        )
        for i in range(frames)
    ]  # fmt: skip


def write_pictures(root, drives):
    """A picture of noise for every camera and frame."""
    noise = np.random.RandomState(0).randint(0, 255, (*IMAGE_HW, 3), dtype=np.uint8)
    for frame in (frame for frames in drives for frame in frames):
        for path in frame.picture.values():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(root / path), noise)


def truth_as_results(dataset, scores=None):
    """The objects of a data set as its detections."""
    from mmdet3d.core.bbox import LiDARInstance3DBoxes

    results = []
    for index in range(len(dataset)):
        truth = dataset.get_ann_info(index)
        known = truth["gt_labels_3d"] >= 0
        boxes = truth["gt_bboxes_3d"].tensor[torch.from_numpy(known)]
        results.append(
            {
                "pts_bbox": {
                    "boxes_3d": LiDARInstance3DBoxes(boxes.clone(), box_dim=9),
                    "scores_3d": torch.ones(len(boxes)),
                    "labels_3d": torch.from_numpy(truth["gt_labels_3d"][known]),
                }
            }
        )
    return results

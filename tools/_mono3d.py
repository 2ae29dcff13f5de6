"""Boxes in each camera image, in the format of mmdet3d's monocular detectors (COCO with 3D fields).

Frames: matrices are named `src2dst`, are 4x4 float64 and act on column vectors; metres. Camera axes: x
right, y down, z forward.

Shape legend: G ground truths of a key frame.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
from shapely.geometry import MultiPoint, box

from projects.bevformer.files.writing import atomic_write
from projects.bevformer.geometry import rotations
from projects.bevformer.geometry.poses import inverse_poses, pose_matrix
from projects.bevformer.nuscenes.camera_objects import box_corners
from projects.bevformer.nuscenes.create_infos import run_jobs
from projects.bevformer.nuscenes.infos import load_infos
from projects.bevformer.nuscenes.records import boxes_global, velocities_global
from projects.bevformer.nuscenes.table_rows import Table

# The index is the id; the order is mmdet3d's.
_CATEGORIES = (
    "car",
    "truck",
    "trailer",
    "bus",
    "construction_vehicle",
    "bicycle",
    "motorcycle",
    "pedestrian",
    "traffic_cone",
    "barrier",
)
_ATTRIBUTES = (
    "cycle.with_rider",
    "cycle.without_rider",
    "pedestrian.moving",
    "pedestrian.standing",
    "pedestrian.sitting_lying_down",
    "vehicle.moving",
    "vehicle.parked",
    "vehicle.stopped",
    "None",
)


def write_mono3d(info_file: str, root_path: str, workers: int = 1) -> Path | None:
    """Write `{info file without .pkl}_mono3d.coco.json`.

    Args:
        info_file: written by `create_nuscenes_infos`.
        root_path: nuScenes root; the tables hold the sizes of the images.
        workers: processes.

    Returns:
        path of the file; None for the test split, for which there is none.
    """
    infos, metadata = load_infos(info_file)
    if not all("gt_boxes" in info for info in infos):
        return None
    sizes = {}
    Table(str(Path(root_path) / metadata["version"]), "sample_data").read(
        lambda row: sizes.update({row["token"]: (row["width"], row["height"])})
    )
    categories = [{"id": i, "name": name} for i, name in enumerate(_CATEGORIES)]
    images, number = [], 0
    path = Path(info_file).with_suffix("")
    path = path.with_name(f"{path.name}_mono3d.coco.json")
    with atomic_write(path) as file:
        file.write('{"annotations": [')
        for of_frame, boxes in run_jobs(partial(mono3d_of_frame, sizes), infos, workers):
            images += of_frame
            for annotation in boxes:
                file.write(f'{", " if number else ""}{annotation[:-1]}, "id": {number}}}')
                number += 1
        file.write(f'], "images": [{", ".join(images)}], "categories": {json.dumps(categories)}}}')
    return path


def mono3d_of_frame(sizes: dict, info: dict) -> tuple[list[str], list[str]]:
    """Images and annotations of an info record.

    Args:
        sizes: sample_data token -> (width, height) of the image.
        info: info record with annotations.

    Returns:
        images: JSON objects as text.
        annotations: JSON objects as text, without their `id`.
    """
    images, annotations = [], []
    for camera in info["cams"].values():
        width, height = sizes[camera["sample_data_token"]]
        image = {
            "file_name": camera["data_path"],
            "id": camera["sample_data_token"],
            "token": info["token"],
            "cam2ego_rotation": camera["sensor2ego_rotation"],
            "cam2ego_translation": camera["sensor2ego_translation"],
            "ego2global_rotation": camera["ego2global_rotation"],
            "ego2global_translation": camera["ego2global_translation"],
            "cam_intrinsic": camera["cam_intrinsic"].tolist(),
            "width": width,
            "height": height,
        }
        images.append(json.dumps(image))
        annotations += map(json.dumps, _annotations(info, camera, width, height))
    return images, annotations


def _annotations(info, camera, width, height):
    """Objects of the ten classes that are at least partly in an image."""
    ego2global, cam2ego = (
        pose_matrix(camera[f"{name}_rotation"], camera[f"{name}_translation"])
        for name in ("ego2global", "sensor2ego")
    )
    global2cam = inverse_poses(ego2global @ cam2ego)
    boxes = boxes_global(info)
    if len(boxes) == 0:
        return []
    centers = boxes[:, :3] @ global2cam[:3, :3].T + global2cam[:3, 3]  # (G, 3)
    box2cam = global2cam[:3, :3] @ rotations.matrices(boxes[:, 6:])
    velocities = velocities_global(info) @ global2cam[:3, :2].T  # (G, 3)
    corners = box_corners(box2cam, centers, boxes[:, 3:6])  # (G, 8, 3)

    annotations = []
    for i in np.flatnonzero(centers[:, 2] > 0):
        name = info["gt_names"][i]
        if name not in _CATEGORIES:
            continue
        bounds = _bounds(corners[i], camera["cam_intrinsic"], width, height)
        if bounds is None:
            continue
        x1, y1, x2, y2 = bounds
        u, v, depth = camera["cam_intrinsic"] @ centers[i]
        attribute = info["gt_attributes"][i] or "None"
        box_wlh, rotation = boxes[i, 3:6], box2cam[i]
        yaw = np.arctan2(-rotation[0, 1], rotation[0, 0])  # pyquaternion's yaw_pitch_roll[0]
        annotations.append(
            {
                "file_name": camera["data_path"],
                "image_id": camera["sample_data_token"],
                "area": (y2 - y1) * (x2 - x1),
                "category_name": str(name),
                "category_id": _CATEGORIES.index(name),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "iscrowd": 0,
                # Centre, length, height, width, turn about the camera's vertical axis.
                "bbox_cam3d": [*centers[i].tolist(), *box_wlh[[1, 2, 0]].tolist(), -float(yaw)],
                "velo_cam3d": velocities[i, [0, 2]].tolist(),
                "center2d": [u / depth, v / depth, depth],
                "attribute_name": str(attribute),
                "attribute_id": _ATTRIBUTES.index(attribute),
                "segmentation": [],
            }
        )
    return annotations


def _bounds(corners, intrinsic, width, height):
    """x1, y1, x2, y2 around the part of a box that is in the image, or None."""
    corners = corners[corners[:, 2] > 0]
    if len(corners) == 0:
        return None
    projected = corners @ intrinsic.T
    points = projected[:, :2] / projected[:, 2:]
    visible = MultiPoint(points).convex_hull.intersection(box(0, 0, width, height))
    return None if visible.is_empty else visible.bounds

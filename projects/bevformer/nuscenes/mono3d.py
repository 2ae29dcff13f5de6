"""Boxes of each camera image in the format of mmdet3d's monocular detectors (COCO with 3D fields).

Frames: matrices are named `src2dst`, are 4x4 float64 and act on column vectors; metres. Camera axes: x
right, y down, z forward.

Shape legend: G ground truths of a key frame.
"""

import json

import numpy as np
from scipy.spatial.transform import Rotation
from shapely.geometry import MultiPoint, box

from projects.bevformer.geometry.poses import inverse_poses, pose_matrix
from projects.bevformer.nuscenes.evaluation.ground_truth import boxes_global, velocities_global
from projects.bevformer.nuscenes.spec import CAMERAS

# Their places are the ids; the orders are mmdet3d's.
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


def mono3d_of_scene(infos, image_sizes):
    """Images and annotations of a scene's info records.

    Args:
        infos: info records with annotations.
        image_sizes: sample_data token -> (width, height).

    Returns:
        images: list of JSON objects as text.
        annotations: list of JSON objects as text, without their `id`.
    """
    images, annotations = [], []
    for info in infos:
        for name in CAMERAS:
            camera = info["cams"][name]
            width, height = image_sizes[camera["sample_data_token"]]
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


def write_mono3d(file, images, annotations):
    """Write all of it; the annotations get their ids.

    Args:
        file: open for text.
        images, annotations: as `mono3d_of_scene` gives them, of all scenes.
    """
    categories = [{"id": i, "name": name} for i, name in enumerate(_CATEGORIES)]
    file.write('{"annotations": [')
    for number, annotation in enumerate(annotations):
        file.write(f'{", " if number else ""}{annotation[:-1]}, "id": {number}}}')
    file.write(f'], "images": [{", ".join(images)}], "categories": {json.dumps(categories)}}}')


def _annotations(info, camera, width, height):
    """Objects of the ten classes of which a part is in an image."""
    ego2global, cam2ego = (
        pose_matrix(camera[f"{name}_rotation"], camera[f"{name}_translation"])
        for name in ("ego2global", "sensor2ego")
    )
    global2cam = inverse_poses(ego2global @ cam2ego)
    boxes = boxes_global(info)
    if len(boxes) == 0:
        return []
    centers = boxes[:, :3] @ global2cam[:3, :3].T + global2cam[:3, 3]  # (G, 3)
    rotations = (
        global2cam[:3, :3] @ Rotation.from_quat(np.roll(boxes[:, 6:], -1, axis=1)).as_matrix()
    )
    velocities = velocities_global(info) @ global2cam[:3, :2].T  # (G, 3)
    corners = _corners(centers, boxes[:, 3:6], rotations)  # (G, 8, 3)

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
        box_wlh, rotation = boxes[i, 3:6], rotations[i]
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


def _corners(centers, sizes_wlh, rotations):
    """(G, 8, 3) corners of boxes."""
    signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    offsets = signs * sizes_wlh[:, None, [1, 0, 2]] / 2  # (G, 8, 3) along length, width, height
    return centers[:, None] + np.einsum("gij,gcj->gci", rotations, offsets)


def _bounds(corners, intrinsic, width, height):
    """x1, y1, x2, y2 of what an image shows of a box, or None."""
    corners = corners[corners[:, 2] > 0]
    if len(corners) == 0:
        return None
    projected = corners @ intrinsic.T
    points = projected[:, :2] / projected[:, 2:]
    visible = MultiPoint(points).convex_hull.intersection(box(0, 0, width, height))
    return None if visible.is_empty else visible.bounds

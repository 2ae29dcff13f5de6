"""The annotated objects of a frame as its single cameras see them, for a perspective head.

Shape legend: N cameras, G objects.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Mapping

import numpy as np

from projects.bevformer.nuscenes.records import (
    cam2img_of_camera,
    lidar2cam_of_camera,
    lidar2global_of,
)

# DD3D distinguishes three attributes per class.
_ATTRIBUTE_INDEX = {
    "vehicle.moving": 0,
    "vehicle.parked": 1,
    "vehicle.stopped": 2,
    "pedestrian.moving": 0,
    "pedestrian.standing": 1,
    "pedestrian.sitting_lying_down": 2,
    "cycle.with_rider": 0,
    "cycle.without_rider": 1,
}
_UNKNOWN = -1
# As in the devkit, an object is in an image if all of it is this far ahead and a corner is in the image.
_NEAREST_CORNER_M = 0.1
_NEAREST_SEEN_CORNER_M = 1.0
_SMALLEST_SIDE_PX = 1e-5


@dataclass(frozen=True)
class CameraObjects:
    """Objects in the frame of one camera, wherever they are.

    Attributes:
        intrinsics: (3, 3) camera matrix of the image as it was recorded.
        label: (G,) int64.
        rotation: (G, 3, 3) box to camera; a box has its length along x, width along y, height along z.
        center: (G, 3) metres, camera frame.
        size_wlh: (G, 3) metres.
        attribute: (G,) int64, -1 where unknown.
        speed: (G,) m/s, NaN where unknown.
        min_visibility: share of the box around an object's projection that must lie within the image.
    """

    intrinsics: np.ndarray
    label: np.ndarray
    rotation: np.ndarray
    center: np.ndarray
    size_wlh: np.ndarray
    attribute: np.ndarray
    speed: np.ndarray
    min_visibility: float

    def in_image(
        self, intrinsics: np.ndarray, source_hw: tuple[int, int], image_hw: tuple[int, int]
    ) -> dict[str, np.ndarray]:
        """The objects that a network sees in the image after augmentation.

        Args:
            intrinsics: (3, 3) camera matrix of that image: cropped and scaled, not turned.
            source_hw: height and width of the image as it was recorded, pixels.
            image_hw: height and width of that image without padding, pixels.

        Returns:
            dict of float32 and int64 arrays: intrinsics (3, 3), bbox (G, 4) x1, y1, x2, y2 in pixels,
            label, rotation, center, size_wlh, attribute, speed. G is 0 if it sees none.
        """
        corners = box_corners(self.rotation, self.center, self.size_wlh)
        depth = corners[..., 2]
        with np.errstate(divide="ignore", invalid="ignore"):  # corners behind the camera are unused
            uv = corners @ self.intrinsics.T
            uv = uv[..., :2] / uv[..., 2:]
        size = np.array(source_hw[::-1])
        corner_seen = ((uv > 0) & (uv < size)).all(axis=-1) & (depth > _NEAREST_SEEN_CORNER_M)
        whole = np.concatenate((uv.min(axis=1), uv.max(axis=1)), axis=-1)
        inside = np.clip(whole, 0, np.tile(size, 2))
        keep = (depth > _NEAREST_CORNER_M).all(axis=1) & corner_seen.any(axis=1)
        keep &= _area(inside) >= self.min_visibility * _area(whole)

        moved = intrinsics @ np.linalg.inv(self.intrinsics)
        scale, shift = np.tile(moved[[0, 1], [0, 1]], 2), np.tile(moved[:2, 2], 2)
        boxes = np.clip(inside * scale + shift, 0, np.tile(image_hw[::-1], 2))
        keep &= (boxes[:, 2:] - boxes[:, :2] > _SMALLEST_SIDE_PX).all(axis=1)
        return {
            "intrinsics": np.asarray(intrinsics, dtype=np.float32),
            "bbox": boxes[keep].astype(np.float32),
            "label": self.label[keep],
            "rotation": self.rotation[keep].astype(np.float32),
            "center": self.center[keep].astype(np.float32),
            "size_wlh": self.size_wlh[keep].astype(np.float32),
            "attribute": self.attribute[keep],
            "speed": self.speed[keep].astype(np.float32),
        }


def camera_objects(
    info: Mapping, class_index: Mapping[str, int], min_points: int, min_visibility: float
) -> list[CameraObjects]:
    """Objects of an info record in the frame of each camera.

    Takes every annotated object of a known class with enough points, regardless of the dataset's
    `use_valid_flag` and range filter.

    Args:
        info: record of an info file. `gt_attributes` (G,) of str is optional.
        class_index: class name -> label.
        min_points: lidar and radar points that an object must have.
        min_visibility: see CameraObjects.

    Returns:
        list of N CameraObjects, in the order of `info["cams"]`.
    """
    points = info["num_lidar_pts"] + info["num_radar_pts"]
    keep = (points >= min_points) & np.isin(info["gt_names"], list(class_index))
    boxes = info["gt_boxes"][keep].astype(np.float64)
    labels = np.array([class_index[name] for name in info["gt_names"][keep]], dtype=np.int64)
    attributes = np.full(len(boxes), _UNKNOWN, dtype=np.int64)
    if "gt_attributes" in info:
        names = info["gt_attributes"][keep]
        attributes[:] = [_ATTRIBUTE_INDEX.get(name, _UNKNOWN) for name in names]
    box2lidar = upright_rotations(boxes[:, 6], lidar2global_of(info)[:3, :3])

    cameras = []
    for camera in info["cams"].values():
        lidar2cam = lidar2cam_of_camera(camera)[:3, :3]
        cameras.append(
            CameraObjects(
                intrinsics=cam2img_of_camera(camera)[:3, :3],
                label=labels,
                rotation=lidar2cam @ box2lidar,
                center=(boxes[:, :3] - camera["sensor2lidar_translation"]) @ lidar2cam.T,
                size_wlh=np.ascontiguousarray(boxes[:, [4, 3, 5]]),
                attribute=attributes,
                speed=np.linalg.norm(info["gt_velocity"][keep], axis=1),
                min_visibility=min_visibility,
            )
        )
    return cameras


def box_corners(rotations: np.ndarray, centers: np.ndarray, sizes_wlh: np.ndarray) -> np.ndarray:
    """(G, 3, 3) box to camera, (G, 3) and (G, 3) metres -> (G, 8, 3) corners in the camera frame."""
    signs = np.array(list(itertools.product((1, -1), repeat=3)))
    offsets = signs * sizes_wlh[:, None, [1, 0, 2]] / 2  # (G, 8, 3) along length, width, height
    return (rotations[:, None] * offsets[:, :, None]).sum(axis=-1) + centers[:, None]


def upright_rotations(yaws: np.ndarray, lidar2global: np.ndarray) -> np.ndarray:
    """Rotations of boxes that are upright in the world, as in nuScenes, not in the lidar frame.

    Args:
        yaws: (G,) radians, heading of the boxes seen along the lidar's z axis.
        lidar2global: (3, 3) rotation of the lidar, which leans by some degrees.

    Returns:
        (G, 3, 3) box to lidar.
    """
    up = lidar2global[2]  # the world's up in the lidar frame
    ahead = np.stack((np.cos(yaws), np.sin(yaws), np.zeros_like(yaws)), axis=-1)
    ahead[:, 2] = -(ahead @ up) / up[2]  # level in the world
    ahead /= np.linalg.norm(ahead, axis=-1, keepdims=True)
    return np.stack((ahead, np.cross(up, ahead), np.broadcast_to(up, ahead.shape)), axis=-1)


def _area(boxes):
    """(G, 4) x1, y1, x2, y2 -> (G,)."""
    return (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)

"""The sensors of the ego vehicle: six pinhole cameras and a lidar, placed as in nuScenes.

Frames: ego x forward, y left, z up, on the ground; camera x right, y down, z forward; lidar x right,
y forward, z up. Pixel (0, 0) covers [0, 1) x [0, 1).
"""

from dataclasses import dataclass
from typing import Dict

import numpy as np
from pyquaternion import Quaternion

from projects.bevformer.nuscenes.spec import CAMERAS
from projects.synthetic_nuscenes.poses import rigid

# nuScenes pictures are this large; intrinsics scale with the picture.
REFERENCE_WIDTH = 1600

# Yaw of the optical axis in degrees, position in metres (ego frame), focal length in pixels of a
# picture of REFERENCE_WIDTH, and when it fires relative to the lidar in milliseconds.
_MOUNTING = {
    "CAM_FRONT": (0.0, (1.70, 0.0, 1.51), 1266.0, -35.0),
    "CAM_FRONT_RIGHT": (-55.5, (1.55, -0.49, 1.50), 1261.0, -27.0),
    "CAM_FRONT_LEFT": (55.5, (1.53, 0.50, 1.51), 1272.0, -43.0),
    "CAM_BACK": (180.0, (0.03, 0.0, 1.57), 809.0, -10.0),
    "CAM_BACK_LEFT": (108.5, (1.03, 0.48, 1.59), 1257.0, 0.0),
    "CAM_BACK_RIGHT": (-109.5, (1.02, -0.48, 1.56), 1260.0, -19.0),
}
_PRINCIPAL_POINT = (816.0, 471.0)  # of a 1600 x 900 picture

# Columns: camera axes; rows: the axes of an upright frame x forward, y left, z up.
_CAMERA_TO_FORWARD = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
_LIDAR_TO_FORWARD = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])


@dataclass(frozen=True)
class Camera:
    """One calibrated camera.

    Attributes:
        intrinsic: (3, 3), pixels of the rendered picture.
        camera2ego: (4, 4).
        delay_s: when it fires, relative to the lidar.
    """

    intrinsic: np.ndarray
    camera2ego: np.ndarray
    delay_s: float


@dataclass(frozen=True)
class SensorRig:
    """All sensors of one scene.

    Attributes:
        image_hw: height and width of the pictures.
        cameras: {channel: Camera} in the order of CAMERAS.
        lidar2ego: (4, 4).
    """

    image_hw: tuple
    cameras: Dict[str, Camera]
    lidar2ego: np.ndarray


def _tilt(rng, degrees):
    """A small random rotation, (3, 3): no mounting is perfect."""
    angles = np.radians(np.clip(rng.normal(0.0, degrees, 3), -2 * degrees, 2 * degrees))
    rotation = Quaternion(axis=[0, 0, 1], radians=angles[0])
    rotation = rotation * Quaternion(axis=[0, 1, 0], radians=angles[1])
    return (rotation * Quaternion(axis=[1, 0, 0], radians=angles[2])).rotation_matrix


def draw_rig(image_hw, rng):
    """The sensors of a scene; each vehicle is calibrated a little differently.

    A picture whose shape is not 9:16 keeps the horizontal field of view and its vertical middle.
    """
    height, width = image_hw
    scale = width / REFERENCE_WIDTH
    cameras = {}
    for channel in CAMERAS:
        yaw_deg, position, focal, delay_ms = _MOUNTING[channel]
        axis = Quaternion(axis=[0, 0, 1], degrees=yaw_deg).rotation_matrix
        rotation = axis @ _tilt(rng, 0.5) @ _CAMERA_TO_FORWARD
        translation = np.array(position) + rng.normal(0.0, 0.01, 3)
        focal = focal * scale * (1.0 + np.clip(rng.normal(0.0, 0.006), -0.02, 0.02))
        center_x = (_PRINCIPAL_POINT[0] + rng.normal(0.0, 8.0)) * scale
        center_y = height / 2 + (_PRINCIPAL_POINT[1] - 450.0 + rng.normal(0.0, 8.0)) * scale
        intrinsic = np.array([[focal, 0.0, center_x], [0.0, focal, center_y], [0.0, 0.0, 1.0]])
        cameras[channel] = Camera(intrinsic, rigid(rotation, translation), delay_ms / 1e3)
    lidar_position = np.array([0.94, 0.0, 1.84]) + rng.normal(0.0, 0.01, 3)
    lidar2ego = rigid(_tilt(rng, 0.4) @ _LIDAR_TO_FORWARD, lidar_position)
    return SensorRig(tuple(image_hw), cameras, lidar2ego)

"""The sensors of the ego vehicle: a rig of pinhole cameras and a lidar, placed as in nuScenes.

Frames: ego x forward, y left, z up, on the ground; camera x right, y down, z forward; lidar x right,
y forward, z up. Pixel (0, 0) covers [0, 1) x [0, 1).
"""

import math
from dataclasses import dataclass
from typing import Dict, Sequence, Tuple

import numpy as np

from projects.bevformer.geometry.poses import rigid_matrix
from projects.synthetic_nuscenes.rotations import matrix_from_angles

# nuScenes images are this wide; intrinsics scale with the image.
REFERENCE_WIDTH = 1600
_PRINCIPAL_POINT = (816.0, 471.0)  # of a 1600 x 900 image

# Columns: camera axes; rows: the axes of an upright frame x forward, y left, z up.
_CAMERA_TO_FORWARD = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
_LIDAR_TO_FORWARD = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])


@dataclass(frozen=True)
class CameraMount:
    """Where a camera is mounted on the vehicle.

    Attributes:
        channel: its name, which is also the name of its folder.
        yaw_deg: heading of the optical axis, to the left of straight ahead.
        position_m: (3,) ego frame.
        focal_px: focal length in pixels of an image of REFERENCE_WIDTH.
        delay_ms: when it fires, relative to the lidar.
    """

    channel: str
    yaw_deg: float
    position_m: Tuple[float, float, float]
    focal_px: float
    delay_ms: float


# In the order of `nuscenes.spec.CAMERAS`.
NUSCENES_RIG = (
    CameraMount("CAM_FRONT", 0.0, (1.70, 0.0, 1.51), 1266.0, -35.0),
    CameraMount("CAM_FRONT_RIGHT", -55.5, (1.55, -0.49, 1.50), 1261.0, -27.0),
    CameraMount("CAM_FRONT_LEFT", 55.5, (1.53, 0.50, 1.51), 1272.0, -43.0),
    CameraMount("CAM_BACK", 180.0, (0.03, 0.0, 1.57), 809.0, -10.0),
    CameraMount("CAM_BACK_LEFT", 108.5, (1.03, 0.48, 1.59), 1257.0, 0.0),
    CameraMount("CAM_BACK_RIGHT", -109.5, (1.02, -0.48, 1.56), 1260.0, -19.0),
)


def camera_ring(count: int) -> Tuple[CameraMount, ...]:
    """A rig of `count` cameras, CAM_0 straight ahead and the others at equal angles to its left.

    Neighbouring images overlap by a tenth of their width.

    Raises:
        ValueError: count is less than 1.
    """
    if count < 1:
        raise ValueError(f"a rig has at least one camera, got {count}")
    half_view_rad = min(1.1 * math.pi / count, math.radians(60.0))
    focal_px = REFERENCE_WIDTH / 2 / math.tan(half_view_rad)
    rig = []
    for i in range(count):
        yaw_rad = 2 * math.pi * i / count
        position_m = (1.0 + 0.7 * math.cos(yaw_rad), 0.5 * math.sin(yaw_rad), 1.5)
        yaw_deg = math.degrees(yaw_rad)
        rig.append(CameraMount(f"CAM_{i}", yaw_deg, position_m, focal_px, -5.0 * i))
    return tuple(rig)


@dataclass(frozen=True)
class Camera:
    """One calibrated camera.

    Attributes:
        intrinsic: (3, 3), pixels of the rendered image.
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
        image_hw: height and width of the images.
        cameras: channel -> Camera, in the order of the rig.
        lidar2ego: (4, 4).
    """

    image_hw: Tuple[int, int]
    cameras: Dict[str, Camera]
    lidar2ego: np.ndarray


def _tilt(rng: np.random.Generator, degrees: float) -> np.ndarray:
    """A small random rotation, (3, 3): no mounting is perfect."""
    return matrix_from_angles(
        *np.radians(np.clip(rng.normal(0.0, degrees, 3), -2 * degrees, 2 * degrees))
    )


def draw_rig(
    image_hw: Tuple[int, int],
    rng: np.random.Generator,
    mounts: Sequence[CameraMount] = NUSCENES_RIG,
) -> SensorRig:
    """Draw the sensors of a scene; each vehicle is calibrated a little differently.

    An image whose shape is not 9:16 keeps the horizontal field of view and its vertical middle.
    """
    height, width = image_hw
    scale = width / REFERENCE_WIDTH
    cameras = {}
    for mount in mounts:
        axis = matrix_from_angles(mount.yaw_deg / 180 * math.pi, 0.0, 0.0)
        rotation = axis @ _tilt(rng, 0.5) @ _CAMERA_TO_FORWARD
        translation = np.array(mount.position_m) + rng.normal(0.0, 0.01, 3)
        camera2ego = rigid_matrix(rotation, translation)
        focal = mount.focal_px * scale * (1.0 + np.clip(rng.normal(0.0, 0.006), -0.02, 0.02))
        center_x = (_PRINCIPAL_POINT[0] + rng.normal(0.0, 8.0)) * scale
        center_y = height / 2 + (_PRINCIPAL_POINT[1] - 450.0 + rng.normal(0.0, 8.0)) * scale
        intrinsic = np.array([[focal, 0.0, center_x], [0.0, focal, center_y], [0.0, 0.0, 1.0]])
        cameras[mount.channel] = Camera(intrinsic, camera2ego, mount.delay_ms / 1e3)
    lidar_position = np.array([0.94, 0.0, 1.84]) + rng.normal(0.0, 0.01, 3)
    lidar2ego = rigid_matrix(_tilt(rng, 0.4) @ _LIDAR_TO_FORWARD, lidar_position)
    return SensorRig((height, width), cameras, lidar2ego)

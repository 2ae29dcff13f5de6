"""The image and lidar files that an info record names."""

import os.path as osp

import cv2
import numpy as np

from projects.bevformer.io import jpeg_damage

_LIDAR_COLUMNS = 5  # x, y, z, intensity, ring: float32 each in a nuScenes file


def read_image(path):
    """Read a camera image.

    Returns:
        (H, W, 3) uint8 BGR.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file cannot be decoded or is damaged.
    """
    if not osp.isfile(path):
        raise FileNotFoundError(
            f"image {path} does not exist: check data_root and that the download is complete"
        )
    with open(path, "rb") as file:
        content = file.read()
    damage = jpeg_damage(content)
    image = None
    if damage is None:  # cv2.imread would answer a part of a file with grey
        image = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"image {path} {damage or 'cannot be decoded'}: download it again")
    return image


def read_lidar_points(path):
    """Read a lidar sweep.

    Returns:
        (P, 5) float32: x, y, z in metres in the lidar frame, intensity, ring; None where the file is
        absent, as in a download with cameras only.

    Raises:
        ValueError: the file does not hold whole points.
    """
    if not osp.isfile(path):
        return None
    numbers = np.fromfile(path, dtype=np.float32)
    if osp.getsize(path) % (numbers.itemsize * _LIDAR_COLUMNS):
        raise ValueError(f"lidar file {path} is cut off: download it again")
    return numbers.reshape(-1, _LIDAR_COLUMNS)

"""The image and lidar files that an info record names."""

import os.path as osp

import cv2
import numpy as np

_LIDAR_COLUMNS = 5  # x, y, z, intensity, ring: float32 each in a nuScenes file


def join_root(data_root, path):
    """Info paths are relative to data_root; older files hold absolute ones or include data_root."""
    if not data_root or osp.normpath(path).startswith(osp.normpath(data_root) + osp.sep):
        return path
    return osp.join(data_root, path)  # an absolute path stays as it is


def read_image(path):
    """Read a camera image.

    Returns:
        (H, W, 3) uint8 BGR.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file cannot be decoded.
    """
    if not osp.isfile(path):
        raise FileNotFoundError(
            f"image {path} does not exist: check data_root and that the download is complete"
        )
    image = cv2.imread(path, cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"image {path} cannot be decoded: download it again")
    return image


def read_lidar_points(path):
    """Read a lidar sweep.

    Returns:
        (P, 5) float32: x, y, z in metres in the lidar frame, intensity, ring; None where the file is
        absent, as in a download with cameras only.
    """
    if not osp.isfile(path):
        return None
    return np.fromfile(path, dtype=np.float32).reshape(-1, _LIDAR_COLUMNS)

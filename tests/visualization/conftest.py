"""A sample with cameras of 200 x 100 pixels, each image solid grey."""

import cv2
import numpy as np
import pytest
import torch

from projects.bevformer import compat  # noqa: F401

TOKEN = "0123456789abcdef"
FOCAL = 100.0  # pixels
# Degrees to the left of straight ahead.
CAMERA_HEADINGS = {
    "CAM_FRONT": 0,
    "CAM_FRONT_RIGHT": -60,
    "CAM_FRONT_LEFT": 60,
    "CAM_BACK": 180,
    "CAM_BACK_LEFT": 120,
    "CAM_BACK_RIGHT": -120,
}


def camera_to_lidar(heading_deg):
    """A camera in the lidar's place, level: image x is right, image y is down, depth is ahead."""
    angle = np.deg2rad(heading_deg)
    ahead = np.array([-np.sin(angle), np.cos(angle), 0.0])
    right = np.array([np.cos(angle), np.sin(angle), 0.0])
    return np.stack([right, [0.0, 0.0, -1.0], ahead], axis=1)


@pytest.fixture
def make_sample(tmp_path):
    """Makes (info, data_root) of a sample: camera name -> degrees to the left; there is no lidar file."""

    def make(headings_deg):
        info = {
            "token": TOKEN,
            "timestamp": 1533151605047769,
            "lidar_path": "samples/LIDAR_TOP/none.bin",
            # As on the nuScenes vehicle, but exactly: lidar x is to the right, ego x is ahead.
            "lidar2ego_rotation": [np.sqrt(0.5), 0.0, 0.0, -np.sqrt(0.5)],
            "lidar2ego_translation": [0.94, 0.0, 1.84],
            "ego2global_rotation": [1.0, 0.0, 0.0, 0.0],
            "ego2global_translation": [0.0, 0.0, 0.0],
            "cams": {},
        }
        for name, heading_deg in headings_deg.items():
            image = np.full((100, 200, 3), 128, dtype=np.uint8)
            path = tmp_path / f"samples/{name}.png"
            path.parent.mkdir(exist_ok=True)
            cv2.imwrite(str(path), image)
            info["cams"][name] = {
                "data_path": f"samples/{name}.png",
                "sensor2lidar_rotation": camera_to_lidar(heading_deg),
                "sensor2lidar_translation": np.zeros(3),
                "cam_intrinsic": np.array([[FOCAL, 0, 100.0], [0, FOCAL, 50.0], [0, 0, 1.0]]),
            }
        return info, str(tmp_path)

    return make


@pytest.fixture
def sample(make_sample):
    """(info, data_root) of a sample with the six cameras of nuScenes."""
    return make_sample(CAMERA_HEADINGS)


@pytest.fixture
def make_boxes():
    """Rows [x, y, z of the centre, l, w, h, yaw, vx, vy] -> annotations of cars."""
    from mmdet3d.core.bbox import LiDARInstance3DBoxes

    def make(*rows, scores=None, labels=None):
        columns = torch.tensor(rows, dtype=torch.float32).reshape(-1, 9)
        annotations = {
            "boxes_3d": LiDARInstance3DBoxes(columns, box_dim=9, origin=(0.5, 0.5, 0.5)),
            "labels_3d": np.zeros(len(rows), dtype=int) if labels is None else np.array(labels),
        }
        if scores is not None:
            annotations["scores_3d"] = torch.tensor(scores)
            annotations["labels_3d"] = torch.as_tensor(annotations["labels_3d"])
        return annotations

    return make

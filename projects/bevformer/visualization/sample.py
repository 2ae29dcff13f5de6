"""Both pictures of one sample, written to a folder."""

import os.path as osp
from pathlib import Path
from typing import Optional, Sequence, Tuple, Union

import cv2
import numpy as np
from matplotlib.figure import Figure

from projects.bevformer.files.data_files import join_root
from projects.bevformer.files.writing import atomic_write
from projects.bevformer.messages import file_name
from projects.bevformer.nuscenes.spec import CLASSES
from projects.bevformer.visualization.bev import BEV_RANGE_M, draw_bev
from projects.bevformer.visualization.boxes import Annotations, Info
from projects.bevformer.visualization.cameras import draw_cameras

_LIDAR_COLUMNS = 5  # x, y, z, intensity, ring: float32 each in a nuScenes file


def draw_sample(
    out_dir: Union[str, Path],
    info: Info,
    predictions: Optional[Annotations],
    ground_truth: Optional[Annotations],
    data_root: Optional[str],
    score_threshold: float = 0.3,
    class_names: Sequence[str] = CLASSES,
    range_m: float = BEV_RANGE_M,
) -> Tuple[Path, Path]:
    """Write `<token>_bev.png` and `<token>_camera.png`; see `file_name` for unusual tokens.

    Blue is prediction, green is ground truth. Lidar points are a grey backdrop of the first picture
    where their file exists; a download with cameras only gives the same picture without them.

    Args:
        out_dir: folder; it is made if it does not exist.
        info: an entry of `dataset.data_infos`.
        predictions: the "pts_bbox" dict of a result (`boxes_3d` LiDARInstance3DBoxes of 1.0.0rc6,
            `scores_3d`, `labels_3d`), or None.
        ground_truth: dict of `boxes_3d` and `labels_3d`, or None (test split).
        data_root: folder that the paths of `info` are relative to.
        score_threshold: predictions below it are left out.
        class_names: the name of each label.
        range_m: of the first picture, from the lidar to each side.

    Returns:
        (bev_path, camera_path), both Path.

    Raises:
        FileNotFoundError: a camera image is missing.
        ValueError: a camera image or the lidar file is damaged.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    bev_path, camera_path = (
        out_dir / file_name(info["token"], end) for end in ("_bev.png", "_camera.png")
    )

    points_lidar = read_lidar_points(join_root(data_root, info["lidar_path"]))
    cameras = draw_cameras(info, predictions, ground_truth, data_root, score_threshold)
    write_picture(camera_path, cameras)
    bev = draw_bev(
        info, predictions, ground_truth, score_threshold, points_lidar, class_names, range_m
    )
    write_picture(bev_path, bev)
    return bev_path, camera_path


def write_picture(path: Path, picture: Union[np.ndarray, Figure]) -> None:
    """Write a PNG file. A link in its place is replaced, not followed.

    Args:
        path: of the file.
        picture: (H, W, 3) uint8 BGR, or a figure with a canvas.

    Raises:
        OSError: it cannot be written.
    """
    with atomic_write(str(path), "wb") as file:
        if isinstance(picture, Figure):
            picture.canvas.print_png(file)
        else:
            file.write(cv2.imencode(".png", picture)[1].tobytes())


def read_lidar_points(path: str) -> Optional[np.ndarray]:
    """Read a lidar sweep.

    Returns:
        (P, 5) float32: x, y, z in metres in the lidar frame, intensity, ring; None if there is no such
        file, as in a download with cameras only.

    Raises:
        ValueError: the file does not hold whole points.
    """
    if not osp.isfile(path):
        return None
    numbers = np.fromfile(path, dtype=np.float32)
    if osp.getsize(path) % (numbers.itemsize * _LIDAR_COLUMNS):
        raise ValueError(f"lidar file {path} is cut off: download it again")
    return numbers.reshape(-1, _LIDAR_COLUMNS)

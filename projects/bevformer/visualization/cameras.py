"""The camera images of a sample with the boxes as 3D wireframes, arranged as the cameras are.

Images are uint8 in BGR, as OpenCV reads and writes them.
"""

from typing import List, Mapping, Optional, Sequence, Tuple

import cv2
import numpy as np

from projects.bevformer.files.data_files import join_root, read_image
from projects.bevformer.messages import printable
from projects.bevformer.nuscenes.records import lidar2img_of_camera
from projects.bevformer.visualization.boxes import (
    FRONT_FACE,
    REAR_FACE,
    Annotations,
    DrawableBoxes,
    Info,
    drawable_boxes,
    sample_title,
)  # fmt: skip

MAX_VIEW_WIDTH = 800  # pixels; the three views of a row of nuScenes make a picture of about 2400
NEAR_PLANE_M = 0.1
_THIN_LINES_M = 20.0  # objects that lie deeper are small: one pixel, not to cover them
_FRONT_OPACITY = 0.25
_GAP = 6  # pixels between views
_BACKGROUND = (32, 32, 32)
_TEXT_COLOR = (240, 240, 240)
_FONT = cv2.FONT_HERSHEY_SIMPLEX

# Pairs of corners.
_FRONT_EDGES = tuple(zip(FRONT_FACE, FRONT_FACE[1:] + FRONT_FACE[:1]))
_REAR_EDGES = tuple(zip(REAR_FACE, REAR_FACE[1:] + REAR_FACE[:1]))
_EDGES = _FRONT_EDGES + _REAR_EDGES + tuple(zip(REAR_FACE, FRONT_FACE))


def camera_rows(info: Info) -> List[List[str]]:
    """Arrange the cameras of a sample as someone in the car sees their images.

    Args:
        info: an entry of the info file.

    Returns:
        The names of each row: the cameras that look ahead from left to right, then those that look back,
        as seen over the shoulder. A row without cameras is left out.
    """
    to_the_left = {}  # degrees from straight ahead to the optical axis
    for name, camera in info["cams"].items():
        x, y, _ = np.asarray(camera["sensor2lidar_rotation"])[:, 2]
        to_the_left[name] = np.degrees(np.arctan2(-x, y))
    ahead = [name for name, angle in to_the_left.items() if abs(angle) <= 90]
    back = [name for name in to_the_left if name not in ahead]
    ahead.sort(key=lambda name: -to_the_left[name])
    back.sort(key=lambda name: to_the_left[name] % 360)
    return [row for row in (ahead, back) if row]


def draw_cameras(
    info: Info,
    predictions: Optional[Annotations],
    ground_truth: Optional[Annotations],
    data_root: Optional[str],
    score_threshold: float = 0.3,
) -> np.ndarray:
    """Draw the boxes into the camera images of one sample.

    Args:
        info: an entry of the info file.
        predictions: the "pts_bbox" dict of a result, or None.
        ground_truth: dict of `boxes_3d` and `labels_3d`, or None.
        data_root: folder that the image paths of `info` are relative to.
        score_threshold: predictions below it are left out.

    Returns:
        (H, W, 3) uint8 BGR: the rows of `camera_rows`, each view at most MAX_VIEW_WIDTH wide.

    Raises:
        FileNotFoundError: an image is missing.
        ValueError: an image cannot be decoded.
    """
    box_sets = drawable_boxes(predictions, ground_truth, score_threshold)
    views = {}
    for name, camera in info["cams"].items():
        image = read_image(join_root(data_root, camera["data_path"]), cv2.IMREAD_COLOR)
        views[name] = image, lidar2img_of_camera(camera)
    return draw_views(info, views, box_sets)


def draw_views(
    info: Info,
    views: Mapping[str, Tuple[np.ndarray, np.ndarray]],
    box_sets: Sequence[DrawableBoxes],
) -> np.ndarray:
    """Draw boxes into images of any size, and arrange these as the cameras are.

    Args:
        info: an entry of the info file, for the arrangement and the header of the picture.
        views: camera name -> ((H, W, 3) uint8 BGR, (4, 4) lidar to image in pixels of that image).
        box_sets: list of DrawableBoxes.

    Returns:
        (H, W, 3) uint8 BGR, see `draw_cameras`.
    """
    rows = [[_draw_view(name, *views[name], box_sets) for name in row] for row in camera_rows(info)]
    picture = arrange(rows)
    return np.concatenate([_header(picture.shape[1], info, box_sets), picture])


def _draw_view(
    camera_name: str, image: np.ndarray, lidar2img: np.ndarray, box_sets: Sequence[DrawableBoxes]
) -> np.ndarray:
    scale = min(1.0, MAX_VIEW_WIDTH / image.shape[1])
    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    lidar2img = np.diag([scale, scale, 1.0, 1.0]) @ lidar2img
    line_width = max(1, round(image.shape[1] / 400))
    for boxes in box_sets:
        draw_boxes(image, boxes, lidar2img, line_width)
    draw_caption(image, camera_name)
    return image


def draw_caption(image: np.ndarray, text: str) -> None:
    """Write a line into the upper left corner of `image` (in place)."""
    font_scale = image.shape[1] / 1200
    (width, height), pad = cv2.getTextSize(printable(text), _FONT, font_scale, 1)
    cv2.rectangle(image, (0, 0), (width + 2 * pad, height + 2 * pad), _BACKGROUND, cv2.FILLED)
    _put_text(image, text, (pad, height + pad), font_scale, _TEXT_COLOR)


def _header(width: int, info: Info, box_sets: Sequence[DrawableBoxes]) -> np.ndarray:
    """A strip of the picture's width: token and time, then the title of each colour."""
    header = np.full((max(12, width // 60), width, 3), _BACKGROUND, dtype=np.uint8)
    texts = [("  ".join(sample_title(info)), _TEXT_COLOR)]
    texts += [(f"{boxes.title}: {len(boxes)}", boxes.color_rgb[::-1]) for boxes in box_sets]
    font_scale = width / 3600
    x, baseline_y = width // 240, round(0.7 * header.shape[0])
    for text, color_bgr in texts:
        _put_text(header, text, (x, baseline_y), font_scale, color_bgr)
        x += cv2.getTextSize(printable(text), _FONT, font_scale, 1)[0][0] + width // 60
    return header


def _put_text(image, text, origin, font_scale, color_bgr):
    cv2.putText(image, printable(text), origin, _FONT, font_scale, color_bgr, 1, cv2.LINE_AA)


def arrange(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Rows of images -> one image: cells of the largest image's size, each image in the corner of one."""
    shapes = [view.shape for row in rows for view in row]
    step_y, step_x = (max(shape[i] for shape in shapes) + _GAP for i in (0, 1))
    size = (len(rows) * step_y - _GAP, max(map(len, rows)) * step_x - _GAP, 3)
    picture = np.full(size, _BACKGROUND, dtype=np.uint8)
    for i, row in enumerate(rows):
        for j, view in enumerate(row):
            picture[i * step_y :, j * step_x :][: view.shape[0], : view.shape[1]] = view
    return picture


def clip_to_near_plane(
    start: np.ndarray, end: np.ndarray, near: float = NEAR_PLANE_M
) -> np.ndarray:
    """Cut a segment at the plane of depth `near`.

    Args:
        start: (3,) as (u*d, v*d, d), which is linear in space: it can be cut as metric points are.
        end: (3,) likewise.
        near: metres.

    Returns:
        (2, 3) the part with d >= near, or (0, 3) where all of it lies behind.
    """
    segment = np.array([start, end], dtype=np.float64)
    behind = segment[:, 2] < near
    if behind.all():
        return segment[:0]
    if behind.any():
        fraction = (near - start[2]) / (end[2] - start[2])
        segment[behind] = start + fraction * (end - start)
    return segment


def draw_boxes(
    image: np.ndarray, boxes: DrawableBoxes, lidar2img: np.ndarray, line_width: int
) -> None:
    """Draw wireframes with tinted fronts into `image` (in place).

    Args:
        image: (H, W, 3) uint8 BGR.
        boxes: DrawableBoxes.
        lidar2img: (4, 4), see `records.lidar2img_of_camera`, in pixels of `image`.
        line_width: pixels; far boxes have thin lines.
    """
    homogeneous = np.concatenate(
        [boxes.corners_lidar, np.ones(boxes.corners_lidar.shape[:2] + (1,))], axis=2
    )
    corners = (homogeneous @ lidar2img.T)[..., :3]  # (M, 8, 3) as (u*d, v*d, d)
    color_bgr = boxes.color_rgb[::-1]

    tinted = image.copy()
    for box in corners:
        # Clipped edges in turn are the clipped face: what is cut off leaves a straight edge.
        front = [clip_to_near_plane(box[start], box[end]) for start, end in _FRONT_EDGES]
        front = np.concatenate(front)
        if len(front):
            cv2.fillConvexPoly(tinted, _to_pixels(front), color_bgr)
    cv2.addWeighted(tinted, _FRONT_OPACITY, image, 1 - _FRONT_OPACITY, 0, dst=image)

    for box in corners:
        width = line_width if box[:, 2].min() < _THIN_LINES_M else 1
        for start, end in _EDGES:
            segment = clip_to_near_plane(box[start], box[end])
            if len(segment):
                _draw_segment(image, _to_pixels(segment), color_bgr, width)


def _to_pixels(points):
    return np.rint(points[:, :2] / points[:, 2:]).astype(np.int32)


def _draw_segment(image, segment, color_bgr, line_width):
    height, width = image.shape[:2]
    # A point just before the lens lies up to a million pixels outside: cut before drawing.
    area = (-line_width, -line_width, width + 2 * line_width, height + 2 * line_width)
    visible, first, last = cv2.clipLine(area, *segment.tolist())
    if visible:
        cv2.line(image, first, last, color_bgr, line_width, cv2.LINE_AA)

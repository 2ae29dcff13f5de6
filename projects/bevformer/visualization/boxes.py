"""Sets of boxes ready to draw: corners in the lidar frame, speeds, labels, colour.

Letters: M boxes. Corner order is that of mmdet3d 1.0.0rc6 (`LiDARInstance3DBoxes.corners`), with
the box's own axes: x towards its front, y to its left, z up.

           6 ---------- 5
          /|           /|        front face   4 5 6 7
         / |          / |        rear face    0 1 2 3
        2 ---------- 1  |        bottom face  0 3 7 4
        |  7 --------|- 4        top face     1 2 6 5
        | /          | /
        3 ---------- 0           seen from behind and above
"""

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, List, Mapping, Optional, Tuple

import numpy as np

from projects.bevformer.messages import printable

Info = Mapping[str, Any]  # an entry of the info file
Annotations = Mapping[str, Any]  # `boxes_3d`, `labels_3d` and maybe `scores_3d`

PREDICTION_RGB = (31, 111, 255)
GROUND_TRUTH_RGB = (22, 168, 70)

BOTTOM_FACE = (0, 3, 7, 4)
FRONT_FACE = (4, 5, 6, 7)
REAR_FACE = (0, 1, 2, 3)
BOTTOM_FRONT_EDGE = (4, 7)


@dataclass(frozen=True)
class DrawableBoxes:
    """Boxes of one colour, ready to draw.

    Attributes:
        title: what the boxes are, for a legend.
        color_rgb: red, green, blue, 0 to 255.
        corners_lidar: (M, 8, 3) metres, lidar frame, in the order of the module's drawing.
        velocity_lidar: (M, 2) metres per second, lidar frame; NaN where it is not known.
        labels: (M,) class indices.
    """

    title: str
    color_rgb: Tuple[int, int, int]
    corners_lidar: np.ndarray
    velocity_lidar: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def drawable_boxes(
    predictions: Optional[Annotations], ground_truth: Optional[Annotations], score_threshold: float
) -> List[DrawableBoxes]:
    """Choose the boxes to draw.

    Args:
        predictions: the "pts_bbox" dict of a result: `boxes_3d` (LiDARInstance3DBoxes of
            1.0.0rc6), `scores_3d` (M,), `labels_3d` (M,); or None.
        ground_truth: dict of `boxes_3d` (LiDARInstance3DBoxes of 1.0.0rc6) and `labels_3d` (M,),
            where -1 marks an object of none of the classes, which is left out; or None.
        score_threshold: predictions that score less are left out.

    Returns:
        list of DrawableBoxes in drawing order: ground truth, then predictions, as far as given.

    Raises:
        ValueError: the numbers of boxes and labels differ, or a box is not finite.
    """
    sets = []
    if ground_truth is not None:
        kept = _to_numpy(ground_truth["labels_3d"]) >= 0
        sets.append(_drawable("ground truth", GROUND_TRUTH_RGB, ground_truth, kept))
    if predictions is not None:
        # A NaN is kept here, and refused below.
        kept = ~(_to_numpy(predictions["scores_3d"]) < score_threshold)
        title = f"prediction, score >= {score_threshold:g}"
        sets.append(_drawable(title, PREDICTION_RGB, predictions, kept))
    return sets


def sample_title(info: Info) -> Tuple[str, str]:
    """Sample token and the time of its key frame, for the head of a picture."""
    time = datetime.fromtimestamp(info["timestamp"] / 1e6, tz=timezone.utc)
    return info["token"], f"{time:%Y-%m-%d %H:%M:%S.%f} UTC"


def figure_text(text: str) -> str:
    """A text from data for matplotlib, which would take what stands between two `$` for a formula."""
    return printable(text, keep="\n").replace("$", r"\$")


def _drawable(
    title: str, color_rgb: Tuple[int, int, int], annotations: Annotations, kept: np.ndarray
) -> DrawableBoxes:
    boxes, labels = annotations["boxes_3d"], _to_numpy(annotations["labels_3d"])
    if len(boxes) != len(labels):
        raise ValueError(f"{title}: {len(boxes)} boxes_3d, but {len(labels)} labels_3d")
    corners, columns = _to_numpy(boxes.corners)[kept], _to_numpy(boxes.tensor)[kept]
    scores = _to_numpy(annotations.get("scores_3d", np.zeros(len(labels))))[kept]
    if not (np.isfinite(corners).all() and np.isfinite(scores).all()):
        raise ValueError(
            f"{title}: a box or score has a NaN or infinite number, it cannot be drawn"
        )
    unknown = np.full((len(columns), 2), np.nan)
    return DrawableBoxes(
        title=title,
        color_rgb=color_rgb,
        corners_lidar=corners,
        velocity_lidar=columns[:, 7:9] if columns.shape[1] >= 9 else unknown,
        labels=labels[kept],
    )


def _to_numpy(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    return np.asarray(values)

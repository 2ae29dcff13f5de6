"""The bird's-eye view of a sample: boxes, headings, speeds and the ego vehicle, in metres."""

from typing import Optional, Sequence, Tuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from projects.bevformer.geometry.poses import inverse_poses, pose_matrix
from projects.bevformer.nuscenes.spec import CLASSES
from projects.bevformer.visualization.boxes import (
    BOTTOM_FACE,
    BOTTOM_FRONT_EDGE,
    Annotations,
    DrawableBoxes,
    Info,
    drawable_boxes,
    figure_text,
    sample_title,
)

BEV_RANGE_M = 51.2  # the side of the published BEV grid is twice this
MIN_ARROW_SPEED = 0.2  # m/s; nuScenes calls what is slower stopped
FIGURE_SIZE = (10.0, 10.2)  # inches
DPI = 110

# The nuScenes vehicle is a Renault Zoe; its ego frame lies on the ground below the rear axle.
_EGO_REAR_M, _EGO_FRONT_M, _EGO_HALF_WIDTH_M = -0.66, 3.43, 0.87
_EGO_COLOR = "#c0392b"
_POINT_COLOR = "#b8b8b8"
_SHORT_NAMES = {
    "construction_vehicle": "constr",
    "motorcycle": "moto",
    "bicycle": "bike",
    "pedestrian": "ped",
    "traffic_cone": "cone",
}


def draw_bev(
    info: Info,
    predictions: Optional[Annotations],
    ground_truth: Optional[Annotations],
    score_threshold: float = 0.3,
    points_lidar: Optional[np.ndarray] = None,
    class_names: Sequence[str] = CLASSES,
    range_m: float = BEV_RANGE_M,
) -> Figure:
    """Draw one sample from above, the lidar in the middle, x to the right and y upwards.

    A tick leaves each box through its front; an arrow shows where an object moves in one second.

    Args:
        info: an entry of the info file (`token`, `timestamp` in microseconds, `lidar2ego_*`).
        predictions: the "pts_bbox" dict of a result, or None.
        ground_truth: dict of `boxes_3d` and `labels_3d`, or None.
        score_threshold: predictions below it are left out.
        points_lidar: (P, >=2) metres, lidar frame, drawn as a backdrop, or None.
        class_names: the name of each label.
        range_m: of the picture, from the lidar to each side.

    Returns:
        matplotlib Figure with an Agg canvas and one Axes; nothing is shown or saved, and pyplot's
        global state is not touched.
    """
    figure = Figure(figsize=FIGURE_SIZE, dpi=DPI)
    FigureCanvasAgg(figure)
    axes = figure.add_axes([0.07, 0.055, 0.915, 0.897])
    _prepare_axes(axes, info, range_m)
    if points_lidar is not None:
        axes.scatter(points_lidar[:, 0], points_lidar[:, 1], s=0.4, c=_POINT_COLOR, linewidths=0)
    _draw_ego(axes, info)
    box_sets = drawable_boxes(predictions, ground_truth, score_threshold)
    for boxes, label_side in zip(box_sets, ("left", "right")):
        _draw_boxes(axes, boxes, class_names, label_side)
    if box_sets:
        handles = [
            Line2D([], [], color=_unit_rgb(boxes), label=f"{boxes.title}: {len(boxes)}")
            for boxes in box_sets
        ]
        axes.legend(handles=handles, loc="upper right", fontsize=9, framealpha=0.9)
    return figure


def _prepare_axes(axes: Axes, info: Info, range_m: float) -> None:
    axes.set_title(figure_text("\n".join(sample_title(info))), fontsize=9)
    last = int(range_m // 10) * 10
    axes.set_xlim(-range_m, range_m)
    axes.set_ylim(-range_m, range_m)
    axes.set_aspect("equal")
    axes.set_xticks(range(-last, last + 1, 10))
    axes.set_yticks(range(-last, last + 1, 10))
    axes.set_xlabel("x, right of the lidar (m)")
    axes.set_ylabel("y, ahead of the lidar (m)")
    axes.grid(color="#ececec", linewidth=0.6)
    axes.set_axisbelow(True)


def _draw_ego(axes: Axes, info: Info) -> None:
    rear, front, side = _EGO_REAR_M, _EGO_FRONT_M, _EGO_HALF_WIDTH_M
    outline_ego = [(rear, side), (front, side), (front, -side), (rear, -side)]
    heading_ego = [((rear + front) / 2, 0.0), (front + 1.0, 0.0)]
    points_ego = np.array([(x, y, 0.0, 1.0) for x, y in outline_ego + heading_ego])
    lidar2ego = pose_matrix(info["lidar2ego_rotation"], info["lidar2ego_translation"])
    points_lidar = points_ego @ inverse_poses(lidar2ego).T
    outline, heading = points_lidar[:4, :2], points_lidar[4:, :2]
    axes.add_collection(
        PolyCollection([outline], facecolors="#f5d5d0", edgecolors=_EGO_COLOR, linewidths=1.2)
    )
    axes.add_collection(LineCollection([heading], colors=_EGO_COLOR, linewidths=1.2))


def _draw_boxes(
    axes: Axes, boxes: DrawableBoxes, class_names: Sequence[str], label_side: str
) -> None:
    if len(boxes) == 0:
        return
    color = _unit_rgb(boxes)
    outlines = boxes.corners_lidar[:, BOTTOM_FACE, :2]  # (M, 4, 2)
    centers = outlines.mean(axis=1)  # (M, 2)
    fronts = boxes.corners_lidar[:, BOTTOM_FRONT_EDGE, :2].mean(axis=1)  # (M, 2)
    axes.add_collection(
        PolyCollection(outlines, facecolors=color + (0.15,), edgecolors=color, linewidths=1.2)
    )
    ticks = np.stack([centers, centers + 1.25 * (fronts - centers)], axis=1)  # (M, 2, 2)
    axes.add_collection(LineCollection(ticks, colors=[color], linewidths=1.2))

    # A comparison with NaN, the velocity of an object seen once, is false: no arrow.
    moving = np.linalg.norm(boxes.velocity_lidar, axis=1) > MIN_ARROW_SPEED
    axes.quiver(
        *centers[moving].T, *boxes.velocity_lidar[moving].T, color=color,
        angles="xy", scale_units="xy", scale=1.0, width=0.0018,
    )  # fmt: skip
    for outline, label in zip(outlines, boxes.labels):
        name, x = figure_text(class_names[label]), outline[:, 0]
        right = label_side == "right"
        axes.text(
            x.max() + 0.4 if right else x.min() - 0.4, outline[:, 1].mean(), _SHORT_NAMES.get(name, name),
            color=color, fontsize=6, ha="left" if right else "right", va="center",
            clip_on=True,
        )  # fmt: skip


def _unit_rgb(boxes: DrawableBoxes) -> Tuple[float, ...]:
    return tuple(channel / 255 for channel in boxes.color_rgb)

"""Pictures of what the network gets: the images of the queue, and the BEV with the ego motion.

Images are uint8 in BGR. Shape legend: T frames, Hb, Wb rows and columns of the BEV grid.
"""

from typing import Mapping, Optional, Sequence, Tuple

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from projects.bevformer.nuscenes.spec import CLASSES
from projects.bevformer.visualization.bev import draw_bev
from projects.bevformer.visualization.boxes import Annotations, Info, figure_text
from projects.bevformer.visualization.cameras import arrange, camera_rows, draw_caption

QUEUE_VIEW_WIDTH = 320  # pixels
_TRACK_COLOR = "#8e44ad"
_TICK_M = 1.5
# Cells seen by 0, 1, 2, 3 and more cameras.
_COUNT_COLORS = ("#4d4d4d", "#f7f7f7", "#fdd49e", "#fc8d59")


def draw_queue(info: Info, queue: Sequence[Tuple[str, Mapping[str, np.ndarray]]]) -> np.ndarray:
    """A row of small images per frame, the oldest frame first.

    Args:
        info: entry of the info file, for the arrangement of the cameras.
        queue: T pairs of a caption and camera name -> (H, W, 3) uint8.

    Returns:
        (H, W, 3) uint8 BGR; the columns are the rows of `camera_rows` one after the other.
    """
    names = [name for row in camera_rows(info) for name in row]
    rows = []
    for caption, images in queue:
        height, width = images[names[0]].shape[:2]
        size = (QUEUE_VIEW_WIDTH, round(height * QUEUE_VIEW_WIDTH / width))
        row = [cv2.resize(images[name], size, interpolation=cv2.INTER_AREA) for name in names]
        draw_caption(row[0], caption)
        rows.append(row)
    return arrange(rows)


def draw_input_bev(
    info: Info,
    ground_truth: Optional[Annotations],
    seen: Mapping[str, np.ndarray],
    pc_range: Sequence[float],
    track: np.ndarray,
    track_yaws: np.ndarray,
    class_names: Sequence[str] = CLASSES,
) -> Figure:
    """The BEV: boxes and earlier ego positions on the left, what each camera sees on the right.

    Args:
        info: entry of the info file.
        ground_truth: dict of `boxes_3d` and `labels_3d`, or None.
        seen: camera name -> (Hb, Wb) bool, the cells that the camera sees; row 0 is behind the vehicle,
            column 0 to its left.
        pc_range: (x_min, y_min, z_min, x_max, y_max, z_max), metres.
        track: (K, 2) metres, ego positions in the lidar frame of the sample, the last is (0, 0).
        track_yaws: (K,) radians, headings relative to the sample's.
        class_names: the name of each label.

    Returns:
        matplotlib Figure with an Agg canvas; axes 0 is the BEV, the others are one per camera in the
        order of `camera_rows`.
    """
    figure = draw_bev(info, None, ground_truth, class_names=class_names)
    figure.set_size_inches(18.0, 10.2)
    (bev,) = figure.axes
    bev.set_position([0.04, 0.055, 0.51, 0.897])
    x_min, y_min, _, x_max, y_max, _ = pc_range
    extent = (x_min, x_max, y_min, y_max)
    count = np.sum(list(seen.values()), axis=0).clip(max=3)
    bev.imshow(
        count, origin="lower", extent=extent, cmap=ListedColormap(_COUNT_COLORS), vmin=0, vmax=3,
        interpolation="nearest", zorder=0,
    )  # fmt: skip
    _draw_track(bev, track, track_yaws)
    share = " ".join(f"{cameras}: {np.mean(count == cameras):.1%}" for cameras in range(4))
    figure.text(
        0.58,
        0.2,
        f"cells by number of cameras that see them\n{share}\n"
        "on the left: dark none, white one, light orange two, orange three or more\n"
        "violet: earlier ego positions and headings, by the motion that the network is told",
        fontsize=9,
    )
    rows = camera_rows(info)
    shrink = min(1.0, 3 / max(map(len, rows)))  # three cameras in a row fill the width
    for i, row in enumerate(rows):
        for j, name in enumerate(row):
            axes = figure.add_axes(
                [0.58 + 0.143 * shrink * j, 0.64 - 0.32 * i, 0.125 * shrink, 0.25]
            )
            axes.imshow(
                seen[name], origin="lower", extent=extent, vmin=0, vmax=1, interpolation="nearest",
                cmap=ListedColormap((_COUNT_COLORS[0], _COUNT_COLORS[2])),
            )  # fmt: skip
            axes.plot(0, 0, "+", color="black", markersize=6)
            title = f"{figure_text(name)}: {seen[name].sum()} cells"
            axes.set_title(title, fontsize=8 * shrink)
            axes.tick_params(labelsize=6)
    return figure


def _draw_track(axes: Axes, track: np.ndarray, yaws: np.ndarray) -> None:
    """Dots where the ego vehicle was, with a tick ahead."""
    ahead = np.stack([-np.sin(yaws), np.cos(yaws)], axis=1)  # the lidar's y axis is ahead
    axes.plot(*track.T, "-o", color=_TRACK_COLOR, markersize=3, linewidth=1.0, zorder=4)
    ticks = np.stack([track, track + _TICK_M * ahead], axis=1)
    axes.add_collection(LineCollection(ticks, colors=_TRACK_COLOR, linewidths=1.2, zorder=4))

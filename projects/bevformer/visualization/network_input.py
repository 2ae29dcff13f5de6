"""Pictures of what the network gets: the queue, the cameras with boxes, the BEV with the ego motion.

Images are uint8 in BGR. Shape legend: T frames, N cameras, Hb, Wb rows and columns of the BEV grid.
"""

import cv2
import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap

from projects.bevformer.nuscenes.spec import CAMERAS, CLASSES
from projects.bevformer.visualization.bev import draw_bev
from projects.bevformer.visualization.boxes import drawable_boxes
from projects.bevformer.visualization.cameras import ARRANGEMENT, arrange, draw_caption, draw_views

QUEUE_VIEW_WIDTH = 320  # pixels
_TRACK_COLOR = "#8e44ad"
_TICK_M = 1.5
# Cells seen by 0, 1, 2, 3 and more cameras.
_COUNT_COLORS = ("#4d4d4d", "#f7f7f7", "#fdd49e", "#fc8d59")


def draw_input_cameras(info, images_bgr, lidar2img, ground_truth):
    """The images of a sample with the boxes where the network's matrices put them.

    Args:
        info: entry of the info file, for the title.
        images_bgr: (N, H, W, 3) uint8 in the order of `nuscenes_spec.CAMERAS`.
        lidar2img: (N, 4, 4) lidar points to pixels of these images.
        ground_truth: dict of `boxes_3d` and `labels_3d`, or None.

    Returns:
        (H, W, 3) uint8 BGR.
    """
    views = dict(zip(CAMERAS, zip(images_bgr, lidar2img)))
    return draw_views(info, views, drawable_boxes(None, ground_truth, 0.0))


def draw_queue(queue):
    """A row of small images for each frame, the oldest first.

    Args:
        queue: T pairs of a caption and (N, H, W, 3) uint8 in the order of `nuscenes_spec.CAMERAS`.

    Returns:
        (H, W, 3) uint8 BGR; columns from front left to back right.
    """
    columns = [CAMERAS.index(name) for row in ARRANGEMENT for name in row]
    rows = []
    for caption, images_bgr in queue:
        height, width = images_bgr.shape[1:3]
        size = (QUEUE_VIEW_WIDTH, round(height * QUEUE_VIEW_WIDTH / width))
        row = [cv2.resize(images_bgr[i], size, interpolation=cv2.INTER_AREA) for i in columns]
        draw_caption(row[0], caption)
        rows.append(row)
    return arrange(rows)


def draw_input_bev(info, ground_truth, seen, pc_range, track, track_yaws, class_names=CLASSES):
    """The BEV: boxes and earlier ego positions on the left, what each camera sees on the right.

    Args:
        info: entry of the info file.
        ground_truth: dict of `boxes_3d` and `labels_3d`, or None.
        seen: (N, Hb, Wb) bool, which cells see which camera; row 0 is behind, column 0 is left.
        pc_range: (x_min, y_min, z_min, x_max, y_max, z_max), metres.
        track: (K, 2) metres, ego positions in the lidar frame of the sample, the last is (0, 0).
        track_yaws: (K,) radians, headings relative to the sample's.
        class_names: the name of each label.

    Returns:
        matplotlib Figure with an Agg canvas; axes 0 is the BEV, then one a camera in the order of
        `ARRANGEMENT`.
    """
    figure = draw_bev(info, None, ground_truth, class_names=class_names)
    figure.set_size_inches(18.0, 10.2)
    (bev,) = figure.axes
    bev.set_position([0.04, 0.055, 0.51, 0.897])
    x_min, y_min, _, x_max, y_max, _ = pc_range
    extent = (x_min, x_max, y_min, y_max)
    count = seen.sum(axis=0).clip(max=3)
    bev.imshow(
        count, origin="lower", extent=extent, cmap=ListedColormap(_COUNT_COLORS), vmin=0, vmax=3,
        interpolation="nearest", zorder=0,
    )  # fmt: skip
    _draw_track(bev, track, track_yaws)
    share = " ".join(
        f"{cameras}: {np.mean(seen.sum(axis=0) == cameras):.1%}" for cameras in range(4)
    )
    figure.text(
        0.58,
        0.2,
        f"cells by number of cameras that see them\n{share}\n"
        "on the left: dark none, white one, light orange two, orange three or more\n"
        "violet: earlier ego positions and headings, by the motion that the network is told",
        fontsize=9,
    )
    for i, row in enumerate(ARRANGEMENT):
        for j, name in enumerate(row):
            axes = figure.add_axes([0.58 + 0.143 * j, 0.64 - 0.32 * i, 0.125, 0.25])
            cells = seen[CAMERAS.index(name)]
            axes.imshow(
                cells, origin="lower", extent=extent, vmin=0, vmax=1, interpolation="nearest",
                cmap=ListedColormap((_COUNT_COLORS[0], _COUNT_COLORS[2])),
            )  # fmt: skip
            axes.plot(0, 0, "+", color="black", markersize=6)
            axes.set_title(f"{name}: {cells.sum()} cells", fontsize=8)
            axes.tick_params(labelsize=6)
    return figure


def _draw_track(axes, track, yaws):
    """Dots where the ego was, with a tick ahead."""
    ahead = np.stack([-np.sin(yaws), np.cos(yaws)], axis=1)  # the lidar's y axis is ahead
    axes.plot(*track.T, "-o", color=_TRACK_COLOR, markersize=3, linewidth=1.0, zorder=4)
    ticks = np.stack([track, track + _TICK_M * ahead], axis=1)
    axes.add_collection(LineCollection(ticks, colors=_TRACK_COLOR, linewidths=1.2, zorder=4))

"""What the steps of a pipeline share."""

from __future__ import annotations

from typing import Any, Sequence

import mmcv
import numpy as np

from projects.bevformer.geometry.camera import image_scaling


class Step:
    """A step that prints as its name and its settings."""

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({options})"


def resize_images(
    results: dict[str, Any],
    images: Sequence[np.ndarray],
    scale: float,
    origin: tuple[int, int] = (0, 0),
) -> None:
    """Replace `img` by scaled images; the pixel rows of `lidar2img` and `cam2img` follow.

    Args:
        results: of the frame; modified.
        images: N (H, W, 3), all of one size, which are parts of `img`.
        scale: factor; the size is rounded down.
        origin: x, y of the first pixel of the parts.
    """
    height, width = images[0].shape[:2]
    size = (int(scale * width), int(scale * height))
    if min(size) < 1:
        raise ValueError(f"images of {width} x {height}, scaled by {scale}, have no pixel left")
    results["img"] = [mmcv.imresize(image, size) for image in images]
    matrix = image_scaling((height, width), size[::-1])
    matrix[:2, 2] = -matrix[[0, 1], [0, 1]] * origin
    for key in ("lidar2img", "cam2img"):
        results[key] = [matrix @ camera for camera in results[key]]
    shapes = [image.shape for image in results["img"]]
    results["img_shape"] = results["ori_shape"] = results["pad_shape"] = shapes

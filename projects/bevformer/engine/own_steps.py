"""Pipeline steps of a user's own, tried on one frame before anything runs.

Published steps are judged by name (`datasets.pipelines.check_steps`); of others it is only known what they do.
"""

from __future__ import annotations

import copy
from typing import Any, Callable, Iterable

import cv2
import numpy as np
from torch.utils.data import Dataset

from projects.bevformer.datasets import TemporalNuScenesDataset
from projects.bevformer.datasets.pipelines.checks import GEOMETRY_FOLLOWS
from projects.bevformer.datasets.pipelines.format import image_hw, metas_of
from projects.bevformer.engine.build import data_sets_inside
from projects.bevformer.engine.seed import seeded

_KNOWN = ("projects.bevformer.", "mmdet3d.", "mmdet.")
_DRAWS = 8  # a step may do something only now and then
_FRAMES = 20  # among which one with objects is looked for
_COMPARED_WIDTH = 200  # pixels, about, in which images are compared
_SHIFT = 0.01  # part of the width by which images may be shifted unseen


def check_own_steps(dataset: Dataset, key: str) -> None:
    """Refuse steps that move boxes, images or cameras without the others.

    It finds moved or added boxes, images that are not where their cameras say, by more than about a hundredth
    of the width, and a wrong `img_shape`.

    Args:
        dataset: one or several TemporalNuScenesDataset, also wrapped; others are not checked.
        key: of the config, for messages.

    Raises:
        ValueError: naming the step.
        FileNotFoundError, ValueError: a frame cannot be loaded. Only pipelines with own steps load one.
    """
    for inner in data_sets_inside(dataset):
        if isinstance(inner, TemporalNuScenesDataset) and inner.pipeline is not None:
            steps = list(_flat(inner.pipeline.transforms))
            if any(map(_is_own, steps)):
                with seeded(0):
                    _try_steps(inner, steps, key)


def _flat(steps: Iterable[Callable]) -> Iterable[Callable]:
    for step in steps:
        # MultiScaleFlipAug3D holds a Compose.
        inside = getattr(getattr(step, "transforms", None), "transforms", None)
        yield from [step] if inside is None else _flat(inside)


def _is_own(step: Callable) -> bool:
    module = f"{type(step).__module__}."
    return not module.startswith(_KNOWN) and not getattr(step, GEOMETRY_FOLLOWS, False)


def _try_steps(dataset: TemporalNuScenesDataset, steps: list[Callable], key: str) -> None:
    index = 0
    if not dataset.test_mode:
        few = range(min(len(dataset), _FRAMES))
        index = next((i for i in few if len(dataset.get_ann_info(i)["gt_labels_3d"])), 0)
    frame: dict[str, Any] = dict(dataset.get_data_info(index), aug_param={}, mono_input_dict=None)
    dataset.pre_pipeline(frame)
    for step in steps:
        after = None
        for _ in range(_DRAWS if _is_own(step) else 1):
            after = step(copy.deepcopy(frame))
            what = _is_own(step) and after is not None and _moved_alone(frame, after)
            if what:
                raise ValueError(
                    f"{key}: pipeline step {type(step).__name__} {what}; remove it, or, where boxes, images, "
                    f"cameras and ego motion of a whole queue do follow, say so by {GEOMETRY_FOLLOWS} = True "
                    "in its class"
                )
        if after is None:
            return
        frame = after
    size, noted = image_hw(frame["img"].data), metas_of(frame)[0].get("img_shape")
    if noted is not None and size != tuple(noted[0][:2]):
        raise ValueError(
            f"{key}: after the pipeline the images are {size}, but img_shape, by which the network divides "
            f"pixels, is {tuple(noted[0][:2])}: set it in the step of yours that changes the size"
        )


def _moved_alone(before: dict, after: dict) -> str | None:
    """What a step does that the rest does not follow, or None."""
    if "gt_bboxes_3d" in before and hasattr(after.get("gt_bboxes_3d"), "tensor"):
        old, new = (_places(frame["gt_bboxes_3d"].tensor.numpy()) for frame in (before, after))
        distances = np.abs(new[:, None] - old[None]).max(axis=2, initial=0)
        if len(new) and distances.min(axis=1, initial=np.inf).max() > 1e-3:
            return "moves, turns or adds boxes, and images and ego motion do not follow"
    images = [frame.get("img") for frame in (before, after)]
    if not all(isinstance(of_frame, list) and np.ndim(of_frame[0]) == 3 for of_frame in images):
        return None
    for old_camera, new_camera, old, new in zip(before["lidar2img"], after["lidar2img"], *images):
        moved = (new_camera @ np.linalg.inv(old_camera))[:3, :3]  # pixels to pixels
        expected = cv2.warpPerspective(np.asarray(old, np.float32), moved, new.shape[1::-1])
        if old.shape[2] == new.shape[2] and not _in_place(expected, np.asarray(new, np.float32)):
            return "moves images or cameras (lidar2img), and the others do not follow"
    return None


def _places(boxes: np.ndarray) -> np.ndarray:
    """(G, 7 or more) boxes -> (G, 5): centres, and headings as cosine and sine."""
    return np.column_stack((boxes[:, :3], np.cos(boxes[:, 6]), np.sin(boxes[:, 6])))


def _in_place(old: np.ndarray, new: np.ndarray) -> bool:
    """Whether two (H, W, 3) images show things in the same places; colours may differ."""
    if np.array_equal(old, new):
        return True
    stride = max(1, old.shape[1] // _COMPARED_WIDTH)
    first, second = (one[::stride, ::stride].mean(axis=2) for one in (old, new))
    # In quarters, because turns and zooms shift them differently.
    rows, columns = ((slice(0, size // 2), slice(size // 2, None)) for size in first.shape)
    shifts = [_shift(first[r, c], second[r, c]) for r in rows for c in columns]
    return sum(shift > _SHIFT * first.shape[1] for shift in shifts) < 2


def _shift(old: np.ndarray, new: np.ndarray) -> int:
    """Pixels by which (H, W) `new` is shifted against `old`, by phase correlation; anything if they differ."""
    window = np.outer(*map(np.hanning, old.shape))  # the borders of both are at the same place
    first, second = (np.fft.rfft2((one - one.mean()) * window) for one in (old, new))
    cross = first * second.conj()
    fit = np.abs(
        np.fft.irfft2(cross / (np.abs(cross) + 1e-6 * np.abs(cross).max() + 1e-9), s=old.shape)
    )
    peak = np.unravel_index(fit.argmax(), fit.shape)
    return max(min(at, size - at) for at, size in zip(peak, fit.shape))

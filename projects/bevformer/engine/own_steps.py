"""Pipeline steps of a user's own, tried on one frame before anything runs.

Published steps are judged by name (`datasets.pipelines.check_steps`); of others it is only known what they do.
"""

from __future__ import annotations

import copy
from typing import Any, Callable, Iterable

import numpy as np
from torch.utils.data import Dataset

from projects.bevformer.datasets import TemporalNuScenesDataset
from projects.bevformer.datasets.pipelines.checks import GEOMETRY_FOLLOWS
from projects.bevformer.engine.seed import seeded

_KNOWN = ("projects.bevformer.", "mmdet3d.", "mmdet.")
_DRAWS = 8  # a step may do something only now and then
_FRAMES = 20  # among which one with objects is looked for


def check_own_steps(dataset: Dataset, key: str) -> None:
    """Refuse steps that move boxes, images or cameras without the others.

    It finds moved or added boxes, cameras moved on their own, images that change their size or are mirrored
    without their cameras; it cannot find small shifts and turns of images.

    Args:
        dataset: one or several TemporalNuScenesDataset, also wrapped; others are not checked.
        key: of the config, for messages.

    Raises:
        ValueError: naming the step.
        FileNotFoundError, ValueError: a frame cannot be loaded. Only pipelines with own steps load one.
    """
    for inner in (getattr(dataset, "dataset", None), *getattr(dataset, "datasets", ())):
        if inner is not None:
            check_own_steps(inner, key)
    if isinstance(dataset, TemporalNuScenesDataset) and dataset.pipeline is not None:
        steps = list(_flat(dataset.pipeline.transforms))
        if any(map(_is_own, steps)):
            with seeded(0):
                _try_steps(dataset, steps, key)


def _flat(steps: Iterable[Callable]) -> Iterable[Callable]:
    for step in steps:
        inside = getattr(
            getattr(step, "transforms", None), "transforms", None
        )  # MultiScaleFlipAug3D
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
    last = max(i for i, step in enumerate(steps) if _is_own(step))
    for step in steps[: last + 1]:
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


def _moved_alone(before: dict, after: dict) -> str | None:
    """What a step does that the rest does not follow, or None."""
    if "gt_bboxes_3d" in before and hasattr(after.get("gt_bboxes_3d"), "tensor"):
        old, new = (frame["gt_bboxes_3d"].tensor[:, :3].numpy() for frame in (before, after))
        distances = np.abs(new[:, None] - old[None]).max(axis=2, initial=0)
        if len(new) and distances.min(axis=1, initial=np.inf).max() > 1e-3:
            return "moves or adds boxes, and images and ego motion do not follow"
    images = [frame.get("img") for frame in (before, after)]
    if not all(isinstance(of_frame, list) and of_frame for of_frame in images):
        return None
    cameras = [np.stack(frame["lidar2img"]) for frame in (before, after)]
    same_cameras = np.array_equal(*cameras)
    old, new = (np.asarray(of_frame[0], np.float32) for of_frame in images)
    if not same_cameras and old.shape == new.shape and np.array_equal(old, new):
        return "moves cameras (lidar2img), and images and boxes do not follow"
    if same_cameras and old.shape[2:] == new.shape[2:] and not _in_place(old, new):
        return "scales, crops or mirrors images, and cameras (lidar2img) do not follow"
    return None


def _in_place(old: np.ndarray, new: np.ndarray) -> bool:
    """Whether (H, W, 3) pixels are where they were; padding at the right and at the bottom moves none."""
    height, width = old.shape[:2]
    if new.shape[0] < height or new.shape[1] < width:
        return False
    inside = new[:height, :width]
    if new.shape != old.shape:
        return np.array_equal(inside, old)
    mirrored = (old[:, ::-1], old[::-1], old[::-1, ::-1])
    return all(_likeness(inside, old) >= _likeness(inside, other) for other in mirrored)


def _likeness(one: np.ndarray, other: np.ndarray) -> float:
    """Absolute correlation of two images; 0 where one has no contrast."""
    one, other = one - one.mean(), other - other.mean()
    norm = float(np.linalg.norm(one) * np.linalg.norm(other))
    return abs(float((one * other).sum())) / norm if norm else 0.0

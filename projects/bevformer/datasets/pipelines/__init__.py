"""Pipeline steps, most of them under the names that the published configs use.

Each step takes and returns the dict of one frame. `img` is a list of N (H, W, 3) arrays, one per camera;
`lidar2img` and `cam2img` are lists of N (4, 4) arrays that follow the images through scaling.
No step edits an array that it was given.
"""

from __future__ import annotations

import logging
from typing import Any, Sequence

from mmdet3d.datasets.builder import PIPELINES
from mmdet3d.datasets.pipelines import LoadMultiViewImageFromFiles, ObjectRangeFilter

from projects.bevformer.datasets.pipelines import (  # noqa: F401
    color,
    format,
    loading,
    mono,
    objects,
    size,
    view_augmentation,
)
from projects.bevformer.datasets.pipelines.checks import check_steps, is_one_scale  # noqa: F401
from projects.bevformer.published import translate

# Published name, which belongs to mmdet3d -> its class there and the step that is used instead.
_OWN_STEPS = {
    "LoadMultiViewImageFromFiles": (LoadMultiViewImageFromFiles, loading.LoadCameraImages),
    "ObjectRangeFilter": (ObjectRangeFilter, objects.FilterObjectsByRange),
}


def with_own_steps(pipeline: Sequence[Any], logger: logging.Logger) -> Sequence[Any]:
    """A pipeline config with this package's steps for those of mmdet3d that fail on newer stacks.

    Args:
        pipeline: step configs, also within wrappers such as MultiScaleFlipAug3D. It is not modified. A step
            that somebody else registered under the name of mmdet3d's stays.
        logger: receives the names of the replaced steps.

    Raises:
        ValueError: files are to be read in a way that is not supported, see `check_file_client`.
    """

    def replace(step: dict) -> dict:
        registered = PIPELINES.get(step["type"])
        if getattr(registered, "__module__", "").startswith("mmdet"):
            loading.check_file_client(step.get("file_client_args") or {})
        theirs, ours = _OWN_STEPS.get(step["type"], (None, None))
        if ours is not None and registered is theirs:
            step["type"] = ours.__name__
        if is_one_scale(step.get("img_scale")):
            step["img_scale"] = tuple(step["img_scale"])
        return step

    return translate(pipeline, replace, logger)

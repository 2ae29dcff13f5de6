"""Which steps keep boxes, images, cameras and ego motion consistent; checked before anything runs."""

from __future__ import annotations

from typing import Any, Iterator, Mapping

from mmdet.datasets.builder import PIPELINES as MMDET_PIPELINES
from mmdet3d.datasets.builder import PIPELINES

# Class attribute by which a step of your own says that boxes, images, cameras and ego motion follow it.
GEOMETRY_FOLLOWS = "geometry_follows"
_LIBRARIES = ("mmdet3d", "mmdet")
# Their steps that leave boxes, images and cameras where they are, or read lidar points only.
_IN_PLACE = frozenset(
    (
        "BrightnessTransform Collect Collect3D ColorTransform Compose ContrastTransform CutOut "
        "DefaultFormatBundle DefaultFormatBundle3D EqualizeTransform ImageToTensor LoadAnnotations3D "
        "LoadMultiViewImageFromFiles LoadPointsFromDict LoadPointsFromFile LoadPointsFromMultiSweeps "
        "MultiScaleFlipAug3D MultiViewWrapper Normalize NormalizePointsColor ObjectNameFilter "
        "ObjectRangeFilter PhotoMetricDistortion PointSample PointShuffle PointsRangeFilter "
        "RandomDropPointsColor RandomJitterPoints ToDataContainer ToTensor VoxelBasedPointSampler "
        "YOLOXHSVRandomAug"
    ).split()
)
# Arguments of MultiScaleFlipAug3D that would ask for more than the one version that is tested.
_ONE_VERSION = {
    "flip": False,
    "pcd_horizontal_flip": False,
    "pcd_vertical_flip": False,
    "pts_scale_ratio": 1,
}
_FOLLOWED = (
    "they follow RandomScaleImageMultiViewImage, PadMultiViewImage and CropResizeFlipImage, and in "
    "CustomNuScenesDatasetV2 also GlobalRotScaleTransImage"
)


def check_steps(pipeline: Any, dataset: str, moves_scene: bool) -> None:
    """Refuse published steps that move boxes or images without cameras and ego motion.

    Args:
        pipeline: step configs, also within wrappers. Steps that are not of mmdet3d, mmdet or this package
            are not judged here.
        dataset: name of the data set, for messages.
        moves_scene: whether it moves all frames of an item as GlobalRotScaleTransImage moves the boxes.

    Raises:
        ValueError: naming the step.
    """
    for step in _steps(pipeline):
        theirs = _library_step(step["type"])
        if theirs is not None and theirs not in _IN_PLACE:
            raise ValueError(
                f"pipeline step {step['type']}: cameras, images, boxes and ego motion of {dataset} do not "
                f"all follow it; remove it ({_FOLLOWED})"
            )
        if step["type"] == "GlobalRotScaleTransImage" and not moves_scene:
            raise ValueError(
                f"pipeline step {step['type']}: the ego motion and the history of {dataset} do not follow "
                "it; remove it, or use CustomNuScenesDatasetV2"
            )
        if theirs == "MultiScaleFlipAug3D":
            _check_one_version(step)


def _steps(part: Any) -> Iterator[Mapping[str, Any]]:
    """The step configs in a pipeline, those within others too."""
    if isinstance(part, Mapping):
        if isinstance(part.get("type"), str):
            yield part
        part = list(part.values())
    if isinstance(part, (list, tuple)):
        for item in part:
            yield from _steps(item)


def _library_step(name: str) -> str | None:
    """Name of the step of mmdet3d or mmdet that `name` is or is derived from; None for others."""
    name = name.split(".")[-1]
    found = PIPELINES.module_dict.get(name) or MMDET_PIPELINES.module_dict.get(name)
    if not isinstance(found, type) or getattr(found, GEOMETRY_FOLLOWS, False):
        return None
    known = {**MMDET_PIPELINES.module_dict, **PIPELINES.module_dict}
    for base in found.__mro__:
        if base.__module__.split(".")[0] in _LIBRARIES and base.__name__ in known:
            return base.__name__
    return None


def is_one_scale(given: Any) -> bool:
    """Whether a list is one `img_scale`: JSON and YAML have no tuples."""
    return isinstance(given, list) and [type(part) for part in given] == [int, int]


def _check_one_version(step: Mapping[str, Any]) -> None:
    for name, only in _ONE_VERSION.items():
        given = step.get(name, only)
        if (given[0] if isinstance(given, (list, tuple)) and len(given) == 1 else given) != only:
            raise ValueError(
                f"MultiScaleFlipAug3D({name}={given}): the network tests each frame once, as it is; set "
                f"{name}={only}"
            )
    for name in ("img_scale", "flip_direction"):
        given = step.get(name)
        if isinstance(given, list) and len(given) > 1 and not is_one_scale(given):
            raise ValueError(
                f"MultiScaleFlipAug3D({name}={given}): the network tests each frame once; give one {name}"
            )

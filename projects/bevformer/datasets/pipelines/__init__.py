"""Pipeline steps under the names that the published configs use.

Every step takes and returns the dict of one frame. `img` is a list of N (H, W, 3) arrays, one a camera;
`lidar2img` and `cam2img` are lists of N (4, 4) arrays that follow the images through scaling.
No step edits an array that it was given.
"""

from projects.bevformer.datasets.pipelines.color import (
    DrawColorDistortion,
    NormalizeMultiviewImage,
    PhotoMetricDistortionMultiViewImage,
)
from projects.bevformer.datasets.pipelines.format import ByteImageFormatBundle3D, CustomCollect3D
from projects.bevformer.datasets.pipelines.loading import LoadMultiViewImageFromFiles
from projects.bevformer.datasets.pipelines.mono import DD3DMapper
from projects.bevformer.datasets.pipelines.objects import ObjectRangeFilter
from projects.bevformer.datasets.pipelines.size import (
    PadMultiViewImage,
    RandomScaleImageMultiViewImage,
)
from projects.bevformer.datasets.pipelines.view_augmentation import (
    CropResizeFlipImage,
    GlobalRotScaleTransImage,
)

__all__ = [
    "ByteImageFormatBundle3D",
    "CropResizeFlipImage",
    "CustomCollect3D",
    "DD3DMapper",
    "DrawColorDistortion",
    "GlobalRotScaleTransImage",
    "LoadMultiViewImageFromFiles",
    "NormalizeMultiviewImage",
    "ObjectRangeFilter",
    "PadMultiViewImage",
    "PhotoMetricDistortionMultiViewImage",
    "RandomScaleImageMultiViewImage",
]

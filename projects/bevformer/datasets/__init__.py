"""nuScenes: info files, the temporal dataset, its pipelines, samplers and evaluation.

`compat` comes first: every module below may import mmdet3d because this file ran before it.
"""

from projects.bevformer import compat  # noqa: F401
from projects.bevformer.datasets import pipelines
from projects.bevformer.datasets.fused_frames import CustomNuScenesDatasetV2
from projects.bevformer.datasets.samplers import EpochShuffleSampler, SceneSampler
from projects.bevformer.datasets.temporal_nuscenes import TemporalNuScenesDataset

__all__ = [
    "CustomNuScenesDatasetV2",
    "EpochShuffleSampler",
    "SceneSampler",
    "TemporalNuScenesDataset",
    "pipelines",
]

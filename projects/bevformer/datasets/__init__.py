"""nuScenes as queues of frames: data sets, pipelines, samplers and evaluators.

`compat` is imported first, so that every module below can import mmdet3d.
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

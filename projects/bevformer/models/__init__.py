"""The network: registers its modules on import."""

from projects.bevformer import compat, layers, matching  # noqa: F401

from .bevformer import BEVFormer
from .bevformer_head import BEVFormerHead
from .decoder import DetectionTransformerDecoder
from .encoder import BEVFormerEncoder
from .image_preprocessor import ImagePreprocessor
from .losses import TorchFocalLoss
from .perception_transformer import PerceptionTransformer
from .temporal_memory import TemporalMemory

__all__ = [
    "BEVFormer",
    "BEVFormerEncoder",
    "BEVFormerHead",
    "DetectionTransformerDecoder",
    "ImagePreprocessor",
    "PerceptionTransformer",
    "TemporalMemory",
    "TorchFocalLoss",
]

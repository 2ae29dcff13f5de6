"""The network: registers its modules on import."""

from projects.bevformer import compat, layers, matching  # noqa: F401

from .bevformer import BEVFormer
from .bevformer_head import BEVFormerHead
from .bevformer_v2 import BEVFormerV2
from .decoder import DetectionTransformerDecoder
from .encoder import BEVFormerEncoder
from .image_preprocessor import ImagePreprocessor
from .losses import TorchFocalLoss
from .mono_head import NuscenesDD3D
from .perception_transformer import PerceptionTransformer
from .perception_transformer_v2 import PerceptionTransformerV2
from .temporal_memory import TemporalMemory

__all__ = [
    "BEVFormer",
    "BEVFormerEncoder",
    "BEVFormerHead",
    "BEVFormerV2",
    "DetectionTransformerDecoder",
    "ImagePreprocessor",
    "NuscenesDD3D",
    "PerceptionTransformer",
    "PerceptionTransformerV2",
    "TemporalMemory",
    "TorchFocalLoss",
]

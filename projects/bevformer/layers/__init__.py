"""nn.Modules whose parameter names are those of the official checkpoints."""

from . import mmcv_deform_attn  # noqa: F401, registers a backend of ops
from .batch_norm import LeanBatchNorm2d
from .decoder_layer import BEVFormerDecoderLayer, CustomMSDeformableAttention
from .deform_conv import TorchvisionDCNv2
from .encoder_layer import BEVFormerLayer
from .frame_context import CameraHits, FrameContext
from .grid_mask import GridMask
from .group_attention import GroupMultiheadAttention
from .layer_norm import WeightPrecisionLayerNorm
from .spatial_cross_attention import MSDeformableAttention3D, SpatialCrossAttention
from .sync_batch_norm import SyncBatchNormOnGPU, on_any_device
from .temporal_self_attention import TemporalSelfAttention

__all__ = [
    "BEVFormerDecoderLayer",
    "BEVFormerLayer",
    "CameraHits",
    "CustomMSDeformableAttention",
    "FrameContext",
    "GridMask",
    "GroupMultiheadAttention",
    "LeanBatchNorm2d",
    "MSDeformableAttention3D",
    "SpatialCrossAttention",
    "SyncBatchNormOnGPU",
    "TemporalSelfAttention",
    "TorchvisionDCNv2",
    "WeightPrecisionLayerNorm",
    "on_any_device",
]

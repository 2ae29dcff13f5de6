"""The network: importing this package registers its modules.

`compat` comes first: every module below may import mmdet3d because this file ran before it.
"""

from projects.bevformer import compat  # noqa: F401
from projects.bevformer.model.bev_encoder.encoder import BEVFormerEncoder
from projects.bevformer.model.bevformer import BEVFormer
from projects.bevformer.model.detection import (  # noqa: F401
    assigner,
    box_coder,
    group_attention,
    match_costs,
)
from projects.bevformer.model.detection.decoder import DetectionTransformerDecoder
from projects.bevformer.model.detection.head import BEVFormerHead
from projects.bevformer.model.image_preprocessor import ImagePreprocessor
from projects.bevformer.model.mm import batch_norm, deform_conv, mmcv_deform_attn  # noqa: F401
from projects.bevformer.model.mm.focal_loss import TorchFocalLoss
from projects.bevformer.model.perception_transformer import PerceptionTransformer
from projects.bevformer.model.temporal_memory import TemporalMemory
from projects.bevformer.model.v2.bevformer_v2 import BEVFormerV2
from projects.bevformer.model.v2.dd3d_head import NuscenesDD3D
from projects.bevformer.model.v2.perception_transformer_v2 import PerceptionTransformerV2

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

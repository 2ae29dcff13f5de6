"""The network: importing this package registers its modules.

`compat` comes first: every module below may import mmdet3d because this file ran before it.
"""

from projects.bevformer import compat  # noqa: F401
from projects.bevformer.model.bev_encoder import (  # noqa: F401
    encoder,
    layer,
    spatial_cross_attention,
    temporal_self_attention,
)
from projects.bevformer.model.bev_head import BEVHead
from projects.bevformer.model.bevformer import BEVFormer
from projects.bevformer.model.detection import (  # noqa: F401
    assigner,
    bev_attention,
    box_coder,
    decoder,
    head,
    match_costs,
)
from projects.bevformer.model.detection import layer as decoder_layer  # noqa: F401
from projects.bevformer.model.frame import Frame
from projects.bevformer.model.image_preprocessor import ImagePreprocessor
from projects.bevformer.model.mm import (  # noqa: F401
    backbone,
    deform_conv,
    focal_loss,
    mmcv_deform_attn,
    norms,
    vovnet,
)
from projects.bevformer.model.temporal_memory import BEVState
from projects.bevformer.model.v2 import dd3d_head, perception_transformer_v2  # noqa: F401
from projects.bevformer.model.v2.bevformer_v2 import BEVFormerV2

__all__ = ["BEVFormer", "BEVFormerV2", "BEVHead", "BEVState", "Frame", "ImagePreprocessor"]

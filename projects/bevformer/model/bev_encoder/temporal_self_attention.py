"""Temporal self-attention: BEV queries attend to the previous BEV and to themselves.

Shape legend: B batch, Q BEV queries, C channels, M heads, T = 2 frames (previous, current),
L = 1 level, P points.
"""

import torch
from einops import rearrange
from mmcv.cnn.bricks.registry import ATTENTION
from torch import nn

from projects.bevformer.model.deformable import DeformableAttention
from projects.bevformer.ops import multi_scale_deformable_attn
from projects.bevformer.published import published

FRAMES = 2


@ATTENTION.register_module()
@published(
    ignores=("im2col_step", "batch_first"),
    only={"num_levels": 1, "num_bev_queue": FRAMES, "norm_cfg": None},
)
class TemporalSelfAttention(DeformableAttention):
    """Deformable attention over the stacked previous and current BEV, averaged over the two.

    Args:
        embed_dims: C.
        num_heads: M.
        num_points: P, samples per head and frame.
        dropout: after the output projection.

    Raises:
        ValueError: C is not a multiple of M.

    Source: BEVFormer (arXiv 2203.17270), section 3.4, equation 5.
    """

    def __init__(self, embed_dims=256, num_heads=8, num_points=4, dropout=0.1, init_cfg=None):
        super().__init__(
            embed_dims,
            num_heads,
            num_groups=FRAMES,
            num_points=num_points,
            query_dims=FRAMES * embed_dims,
            init_cfg=init_cfg,
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, query, context):
        """Attend.

        Args:
            query: (B, Q, C) BEV queries.
            context: FrameContext of the frame.

        Returns:
            (B, Q, C), the input added.
        """
        # 1. predict offsets and weights from both frames; the previous one comes first in the 2C channels
        values = context.temporal_values(query)  # (B, T, Q, C)
        joint = torch.cat((values[:, 0], query + context.bev_pos), dim=-1)
        samples = self.samples(joint, values, context.reference_bev, context.bev_hw)
        # 2. sample each frame around its reference points
        attended = multi_scale_deformable_attn(*samples, default_backend=self.default_backend)
        # 3. average over the frames
        mean = rearrange(attended, "(b t) q c -> b t q c", t=FRAMES).mean(dim=1)
        return self.dropout(self.output_proj(mean)) + query

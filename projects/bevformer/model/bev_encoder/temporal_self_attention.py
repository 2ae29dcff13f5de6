"""Temporal self-attention: BEV queries look at the previous BEV and at themselves.

Shape legend: B batch, Q BEV queries, C channels, M heads, T = 2 frames (previous, current),
L = 1 level, P points.
"""

import torch
from einops import rearrange
from mmcv.cnn.bricks.registry import ATTENTION
from mmcv.runner import BaseModule
from torch import nn

from projects.bevformer.model.deform_common import (
    check_heads,
    init_projection,
    init_sampling_offsets,
)
from projects.bevformer.model.locations import sampling_locations
from projects.bevformer.ops import multi_scale_deformable_attn


@ATTENTION.register_module()
class TemporalSelfAttention(BaseModule):
    """Deformable attention over the stacked previous and current BEV, averaged over the two.

    Args:
        embed_dims: C.
        num_heads: M.
        num_levels: levels of the BEV map; 1.
        num_points: P, samples per head and frame.
        num_bev_queue: frames that are attended to; 2.
        dropout: after the output projection.

    Raises:
        ValueError: C is not a multiple of M, `num_levels` is not 1, or `num_bev_queue` is not 2.

    Source: BEVFormer (arXiv 2203.17270), section 3.4, equation 5.
    """

    default_backend = None  # see ops.set_default_backend

    def __init__(
        self,
        embed_dims=256,
        num_heads=8,
        num_levels=1,
        num_points=4,
        num_bev_queue=2,
        dropout=0.1,
        init_cfg=None,
    ):
        super().__init__(init_cfg)
        check_heads(embed_dims, num_heads)
        if num_levels != 1 or num_bev_queue != 2:
            raise ValueError(
                "TemporalSelfAttention works on one BEV level and two frames, got "
                f"num_levels={num_levels}, num_bev_queue={num_bev_queue}"
            )
        self.num_heads = num_heads
        self.num_points = num_points
        self.num_bev_queue = num_bev_queue
        samples = num_bev_queue * num_heads * num_points
        self.sampling_offsets = nn.Linear(embed_dims * num_bev_queue, samples * 2)
        self.attention_weights = nn.Linear(embed_dims * num_bev_queue, samples)
        self.value_proj = nn.Linear(embed_dims, embed_dims)
        self.output_proj = nn.Linear(embed_dims, embed_dims)
        self.dropout = nn.Dropout(dropout)
        self.init_weights()

    def init_weights(self):
        """Offsets as rays, equal attention, Xavier projections."""
        init_sampling_offsets(
            self.sampling_offsets, self.num_heads, self.num_bev_queue, self.num_points
        )
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        init_projection(self.value_proj)
        init_projection(self.output_proj)

    def forward(self, query, context):
        """Attend.

        Args:
            query: (B, Q, C) BEV queries.
            context: FrameContext of the frame.

        Returns:
            (B, Q, C), the input added.
        """
        values = context.temporal_values(query)  # (B, T, Q, C)
        # The previous frame comes first in the 2C channels that predict offsets and weights.
        joint = torch.cat((values[:, 0], query + context.bev_pos), dim=-1)

        offsets = rearrange(
            self.sampling_offsets(joint).float(),
            "b q (m t p xy) -> (b t) q m 1 p xy",
            m=self.num_heads,
            t=self.num_bev_queue,
            xy=2,
        )
        weights = rearrange(
            self.attention_weights(joint).float(),
            "b q (m t p) -> (b t) q m 1 p",
            m=self.num_heads,
            t=self.num_bev_queue,
        ).softmax(dim=-1)
        reference = rearrange(context.reference_bev, "b t q xy -> (b t) q 1 1 1 xy")
        locations = sampling_locations(reference, offsets, [context.bev_hw])

        values = rearrange(self.value_proj(values), "b t q (m c) -> (b t) q m c", m=self.num_heads)
        attended = multi_scale_deformable_attn(
            values,
            [context.bev_hw],
            locations,
            weights,
            default_backend=self.default_backend,
        )
        mean = rearrange(attended, "(b t) q c -> b t q c", t=self.num_bev_queue).mean(dim=1)
        return self.dropout(self.output_proj(mean)) + query

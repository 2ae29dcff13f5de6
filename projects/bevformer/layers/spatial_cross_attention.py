"""Spatial cross-attention: BEV queries look at the cameras that see their pillar.

Shape legend: B batch, N cameras, Q BEV queries, S slots (hits of the fullest camera), C channels,
M heads, L levels, D pillar heights, P points per level (P / D around each height).
"""

import torch
from einops import rearrange, repeat
from mmcv.cnn.bricks.registry import ATTENTION
from mmcv.cnn.bricks.transformer import build_attention
from mmcv.runner import BaseModule
from torch import nn

from projects.bevformer.ops import multi_scale_deformable_attn

from .init import check_heads, init_projection, init_sampling_offsets


def gather_queries(per_query, query_index):
    """Copy rows of a per-query tensor into camera slots.

    Args:
        per_query: (B, Q, F).
        query_index: (B, N, S) long.

    Returns:
        (B, N, S, F).
    """
    flat = rearrange(query_index, "b n s -> b (n s) 1").expand(-1, -1, per_query.shape[-1])
    gathered = torch.gather(per_query, 1, flat)
    return rearrange(gathered, "b (n s) f -> b n s f", n=query_index.shape[1])


@ATTENTION.register_module()
class MSDeformableAttention3D(BaseModule):
    """Deformable attention of slots in one camera, around the projected pillar points.

    It has no output projection: that belongs to SpatialCrossAttention, after the camera mean.

    Args:
        embed_dims: C.
        num_heads: M.
        num_levels: L feature levels.
        num_points: P samples per head and level, shared evenly among the D heights.

    Source: BEVFormer (arXiv 2203.17270), section 3.3, equation 4.
    """

    def __init__(self, embed_dims=256, num_heads=8, num_levels=4, num_points=8, init_cfg=None):
        super().__init__(init_cfg)
        check_heads(embed_dims, num_heads)
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = num_points
        samples = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(embed_dims, samples * 2)
        self.attention_weights = nn.Linear(embed_dims, samples)
        self.value_proj = nn.Linear(embed_dims, embed_dims)
        self.init_weights()

    def init_weights(self):
        """Offsets as rays, equal attention, Xavier projection."""
        init_sampling_offsets(
            self.sampling_offsets, self.num_heads, self.num_levels, self.num_points
        )
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        init_projection(self.value_proj)

    def forward(self, query, image_features, image_shapes, hits):
        """Sample every camera for the queries that it sees.

        Offsets and weights depend on the query alone, so they are computed once a query, not once
        a camera.

        Args:
            query: (B, Q, C) BEV queries.
            image_features: (B, N, S_img, C) all levels, flattened.
            image_shapes: L pairs (h, w).
            hits: CameraHits.

        Returns:
            (B, N, S, C) float32, meaningless where a slot is not filled.
        """
        batch, cameras = image_features.shape[:2]
        heights = hits.reference_uv.shape[3]
        if self.num_points % heights != 0:
            raise ValueError(
                f"num_points ({self.num_points}) must be divisible by the number of points in a "
                f"pillar ({heights})"
            )
        offsets = self.sampling_offsets(query).float()  # (B, Q, M*L*P*2)
        weights = rearrange(
            self.attention_weights(query).float(), "b q (m lp) -> b q m lp", m=self.num_heads
        ).softmax(dim=-1)

        # Point p of a level belongs to height p % D: the points are laid out (P / D, D).
        offsets = rearrange(
            gather_queries(offsets, hits.query_index),
            "b n s (m l p d xy) -> (b n) s m l p d xy",
            m=self.num_heads,
            l=self.num_levels,
            d=heights,
            xy=2,
        )
        weights = rearrange(
            gather_queries(rearrange(weights, "b q m lp -> b q (m lp)"), hits.query_index),
            "b n s (m l p) -> (b n) s m l p",
            m=self.num_heads,
            l=self.num_levels,
        )
        level_wh = offsets.new_tensor([(w, h) for h, w in image_shapes])
        level_wh = rearrange(level_wh, "l xy -> l 1 1 xy")
        reference = rearrange(hits.reference_uv, "b n s d xy -> (b n) s 1 1 1 d xy")
        locations = rearrange(
            reference + offsets / level_wh, "bn s m l p d xy -> bn s m l (p d) xy"
        )

        values = rearrange(
            self.value_proj(image_features), "b n s (m c) -> (b n) s m c", m=self.num_heads
        )
        attended = multi_scale_deformable_attn(values, image_shapes, locations, weights)
        return rearrange(attended, "(b n) s c -> b n s c", b=batch, n=cameras)


@ATTENTION.register_module()
class SpatialCrossAttention(BaseModule):
    """Each query attends in the cameras that see it; the mean over those is projected and added.

    Args:
        embed_dims: C.
        num_cams: N.
        pc_range: accepted because published configs give it; the encoder has the range.
        dropout: after the output projection.
        deformable_attention: config of the per-camera attention.

    Source: BEVFormer (arXiv 2203.17270), section 3.3, equation 3.
    """

    def __init__(
        self,
        embed_dims=256,
        num_cams=6,
        pc_range=None,
        dropout=0.1,
        deformable_attention=None,
        init_cfg=None,
    ):
        super().__init__(init_cfg)
        self.num_cams = num_cams
        self.pc_range = pc_range
        deformable_attention = deformable_attention or dict(
            type="MSDeformableAttention3D", embed_dims=embed_dims
        )
        self.deformable_attention = build_attention(deformable_attention)
        self.output_proj = nn.Linear(embed_dims, embed_dims)
        self.dropout = nn.Dropout(dropout)
        self.init_weights()

    def init_weights(self):
        """Xavier projection; the inner attention initialises itself."""
        init_projection(self.output_proj)

    def forward(self, query, context):
        """Attend.

        Args:
            query: (B, Q, C) BEV queries, without positional encoding (as in the original).
            context: FrameContext of the frame.

        Returns:
            (B, Q, C), the input added. A query that no camera sees gets the projection of zeros.
        """
        hits = context.hits
        per_slot = self.deformable_attention(
            query, context.image_features, context.image_shapes, hits
        )  # (B, N, S, C)
        per_slot = per_slot * hits.filled[..., None]
        index = repeat(hits.query_index, "b n s -> b (n s) c", c=query.shape[-1])
        total = torch.zeros_like(query, dtype=per_slot.dtype).scatter_add(
            1, index, rearrange(per_slot, "b n s c -> b (n s) c")
        )
        mean = total / hits.views_per_query[..., None]
        return self.dropout(self.output_proj(mean)) + query

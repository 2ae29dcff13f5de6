"""Spatial cross-attention: BEV queries attend to the cameras that see their pillar.

Shape legend: B batch, N cameras, Q BEV queries, R rows (visible queries of all cameras of all samples),
C channels, M heads, L levels, D pillar heights, P points per level (P / D around each height).
"""

from einops import rearrange, repeat
from mmcv.cnn.bricks.registry import ATTENTION
from mmcv.cnn.bricks.transformer import build_attention
from mmcv.runner import BaseModule
from torch import nn

from projects.bevformer.model.deformable import (
    DeformableAttention,
    init_projection,
    sampling_locations,
)
from projects.bevformer.ops import packed_multi_scale_deformable_attn
from projects.bevformer.published import published


@ATTENTION.register_module()
@published(ignores=("im2col_step", "batch_first", "dropout"), only={"norm_cfg": None})
class MSDeformableAttention3D(DeformableAttention):
    """Deformable attention of each row in its camera, around the projected pillar points.

    It has no output projection: that belongs to SpatialCrossAttention, after the mean over cameras.

    Args:
        embed_dims: C.
        num_heads: M.
        num_levels: L feature levels.
        num_points: P samples per head and level, shared evenly among the D heights.

    Raises:
        ValueError: C is not a multiple of M.

    Source: BEVFormer (arXiv 2203.17270), section 3.3, equation 4.
    """

    def __init__(self, embed_dims=256, num_heads=8, num_levels=4, num_points=8, init_cfg=None):
        super().__init__(
            embed_dims, num_heads, num_levels, num_points, output_proj=False, init_cfg=init_cfg
        )

    def forward(self, query, context):
        """Sample every camera for the queries that it sees.

        Args:
            query: (B, Q, C) BEV queries.
            context: FrameContext of the frame.

        Returns:
            (R, C) float32, one row per visible query and camera.

        Raises:
            ValueError: the features do not have L levels, or P is not a multiple of D.
        """
        visible, shapes, levels = context.visible, context.image_shapes, self.num_groups
        heights = visible.reference_uv.shape[1]
        if len(shapes) != levels:
            raise ValueError(f"num_levels is {levels}, num_outs of the neck {len(shapes)}: set one")
        if self.num_points % heights != 0:
            what = f"num_points ({self.num_points}) must be divisible by num_points_in_pillar"
            raise ValueError(f"{what} ({heights})")
        # 1. predict offsets and weights once per query, not once per camera, and pack them;
        #    point p of a level belongs to height p % D: the points are laid out (P / D, D)
        offsets = rearrange(
            visible.pack(self.sampling_offsets(query)).float(),
            "r (m l pd xy) -> r m l pd xy",
            m=self.num_heads,
            l=levels,
            xy=2,
        )
        weights = rearrange(
            visible.pack(self.attention_weights(query)).float(),
            "r (m lp) -> r m lp",
            m=self.num_heads,
        ).softmax(dim=-1)
        weights = rearrange(weights, "r m (l p) -> r m l p", l=levels)
        # 2. sample each camera around the projected pillar points
        reference = repeat(
            visible.reference_uv, "r d xy -> r 1 1 (p d) xy", p=self.num_points // heights
        )
        locations = sampling_locations(reference, offsets, shapes)
        values = rearrange(
            self.value_proj(context.image_features), "b n s (m c) -> (b n) s m c", m=self.num_heads
        )
        return packed_multi_scale_deformable_attn(
            values,
            shapes,
            locations,
            weights,
            visible.lengths,
            default_backend=self.default_backend,
        )


@ATTENTION.register_module()
@published(ignores=("num_cams", "pc_range", "batch_first"))
class SpatialCrossAttention(BaseModule):
    """Each query attends to the cameras that see it; the mean over those is projected and added.

    Args:
        embed_dims: C.
        dropout: after the output projection.
        deformable_attention: config of the per-camera attention.

    Source: BEVFormer (arXiv 2203.17270), section 3.3, equation 3.
    """

    def __init__(self, embed_dims=256, dropout=0.1, deformable_attention=None, init_cfg=None):
        super().__init__(init_cfg)
        self.deformable_attention = build_attention(
            deformable_attention or dict(type="MSDeformableAttention3D", embed_dims=embed_dims)
        )
        self.output_proj = nn.Linear(embed_dims, embed_dims)
        self.dropout = nn.Dropout(dropout)
        init_projection(self.output_proj)

    def forward(self, query, context):
        """Attend.

        Args:
            query: (B, Q, C) BEV queries, without positional encoding (as in the original).
            context: FrameContext of the frame.

        Returns:
            (B, Q, C), the input added. A query that no camera sees gets the projection of zeros.
        """
        mean = context.visible.mean_over_views(self.deformable_attention(query, context))
        return self.dropout(self.output_proj(mean)) + query

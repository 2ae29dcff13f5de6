"""Spatial cross-attention: BEV queries look at the cameras that see their pillar.

Shape legend: B batch, N cameras, Q BEV queries, R rows (hits of all cameras of all samples),
C channels, M heads, L levels, D pillar heights, P points per level (P / D around each height).
"""

from einops import rearrange, repeat
from mmcv.cnn.bricks.registry import ATTENTION
from mmcv.cnn.bricks.transformer import build_attention
from mmcv.runner import BaseModule
from torch import nn

from projects.bevformer.model.deform_common import (
    check_heads,
    init_projection,
    init_sampling_offsets,
)
from projects.bevformer.model.locations import sampling_locations
from projects.bevformer.ops import packed_multi_scale_deformable_attn


@ATTENTION.register_module()
class MSDeformableAttention3D(BaseModule):
    """Deformable attention of rows in their camera, around the projected pillar points.

    It has no output projection: that belongs to SpatialCrossAttention, after the camera mean.

    Args:
        embed_dims: C.
        num_heads: M.
        num_levels: L feature levels.
        num_points: P samples per head and level, shared evenly among the D heights.

    Raises:
        ValueError: C is not a multiple of M.

    Source: BEVFormer (arXiv 2203.17270), section 3.3, equation 4.
    """

    default_backend = None  # see ops.set_default_backend

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
            (R, C) float32, a row for each hit.

        Raises:
            ValueError: the features have not L levels, or P is not a multiple of D.
        """
        if len(image_shapes) != self.num_levels:
            raise ValueError(
                f"num_levels of MSDeformableAttention3D is {self.num_levels}, but the neck gives "
                f"{len(image_shapes)} levels: num_levels and num_outs of the neck must be equal"
            )
        heights = hits.reference_uv.shape[1]
        if self.num_points % heights != 0:
            raise ValueError(
                f"num_points ({self.num_points}) must be divisible by the number of points in a "
                f"pillar ({heights})"
            )
        # Point p of a level belongs to height p % D: the points are laid out (P / D, D).
        offsets = rearrange(
            hits.to_rows(self.sampling_offsets(query)).float(),
            "r (m l pd xy) -> r m l pd xy",
            m=self.num_heads,
            l=self.num_levels,
            xy=2,
        )
        weights = rearrange(
            hits.to_rows(self.attention_weights(query)).float(),
            "r (m lp) -> r m lp",
            m=self.num_heads,
        ).softmax(dim=-1)
        weights = rearrange(weights, "r m (l p) -> r m l p", l=self.num_levels)
        reference = repeat(
            hits.reference_uv, "r d xy -> r 1 1 (p d) xy", p=self.num_points // heights
        )
        locations = sampling_locations(reference, offsets, image_shapes)
        values = rearrange(
            self.value_proj(image_features), "b n s (m c) -> (b n) s m c", m=self.num_heads
        )
        return packed_multi_scale_deformable_attn(
            values,
            image_shapes,
            locations,
            weights,
            hits.rows_per_map,
            default_backend=self.default_backend,
        )


@ATTENTION.register_module()
class SpatialCrossAttention(BaseModule):
    """Each query attends in the cameras that see it; the mean over those is projected and added.

    Args:
        embed_dims: C.
        num_cams: accepted because published configs give it; the features say how many there are.
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
        per_row = self.deformable_attention(
            query, context.image_features, context.image_shapes, hits
        )  # (R, C)
        mean = hits.to_queries(per_row) / hits.views_per_query[..., None]
        return self.dropout(self.output_proj(mean)) + query

"""One layer of the detection decoder, and its attention on the BEV map.

Shape legend: B batch, O object queries, R groups of them, Q BEV queries (= Hb * Wb),
C channels, M heads, P points.
"""

from einops import rearrange
from mmcv.cnn import build_norm_layer
from mmcv.cnn.bricks.registry import ATTENTION, TRANSFORMER_LAYER
from mmcv.cnn.bricks.transformer import build_attention
from mmcv.runner import BaseModule, ModuleList
from torch import nn

from projects.bevformer.model.bev_encoder.layer import (
    OPERATION_ORDER,
    build_ffn,
    check_operation_order,
    shared_embed_dims,
)
from projects.bevformer.model.deform_common import (
    check_heads,
    init_projection,
    init_sampling_offsets,
)
from projects.bevformer.model.locations import sampling_locations
from projects.bevformer.ops import multi_scale_deformable_attn


@ATTENTION.register_module()
class CustomMSDeformableAttention(BaseModule):
    """Deformable attention of object queries on the BEV map.

    Args:
        embed_dims: C.
        num_heads: M.
        num_levels: levels of the BEV map; 1.
        num_points: P.
        dropout: after the output projection.

    Raises:
        ValueError: C is not a multiple of M, or `num_levels` is not 1.

    Source: Deformable DETR (arXiv 2010.04159), section 4.1, on BEV features.
    """

    default_backend = None  # see ops.set_default_backend

    def __init__(
        self, embed_dims=256, num_heads=8, num_levels=1, num_points=4, dropout=0.1, init_cfg=None
    ):
        super().__init__(init_cfg)
        check_heads(embed_dims, num_heads)
        if num_levels != 1:
            raise ValueError(f"the decoder attends to one BEV level, got num_levels={num_levels}")
        self.num_heads = num_heads
        self.num_points = num_points
        samples = num_heads * num_points
        self.sampling_offsets = nn.Linear(embed_dims, samples * 2)
        self.attention_weights = nn.Linear(embed_dims, samples)
        self.value_proj = nn.Linear(embed_dims, embed_dims)
        self.output_proj = nn.Linear(embed_dims, embed_dims)
        self.dropout = nn.Dropout(dropout)
        self.init_weights()

    def init_weights(self):
        """Offsets as rays, equal attention, Xavier projections."""
        init_sampling_offsets(self.sampling_offsets, self.num_heads, 1, self.num_points)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        init_projection(self.value_proj)
        init_projection(self.output_proj)

    def forward(self, query, query_pos, bev, bev_hw, reference_xy):
        """Attend.

        Args:
            query: (B, O, C) object queries.
            query_pos: (B, O, C) their positional part.
            bev: (B, Q, C) BEV features.
            bev_hw: rows and columns of the BEV grid.
            reference_xy: (B, O, 2) where each object is sought, fractions of the grid.

        Returns:
            (B, O, C), the input added.
        """
        located = query + query_pos
        offsets = rearrange(
            self.sampling_offsets(located).float(),
            "b o (m p xy) -> b o m 1 p xy",
            m=self.num_heads,
            xy=2,
        )
        weights = rearrange(
            self.attention_weights(located).float(), "b o (m p) -> b o m 1 p", m=self.num_heads
        ).softmax(dim=-1)
        reference = rearrange(reference_xy.float(), "b o xy -> b o 1 1 1 xy")
        locations = sampling_locations(reference, offsets, [bev_hw])
        values = rearrange(self.value_proj(bev), "b q (m c) -> b q m c", m=self.num_heads)
        attended = multi_scale_deformable_attn(
            values, [bev_hw], locations, weights, default_backend=self.default_backend
        )
        return self.dropout(self.output_proj(attended)) + query


@TRANSFORMER_LAYER.register_module()
class BEVFormerDecoderLayer(BaseModule):
    """Self-attention among objects, attention on the BEV, feed-forward; each with a norm after it.

    Args:
        attn_cfgs: configs of the two attentions: mmcv's MultiheadAttention and
            CustomMSDeformableAttention.
        feedforward_channels: hidden width of the FFN.
        ffn_dropout: in the FFN.
        operation_order: accepted because published configs give it; only theirs is possible.

    Raises:
        ValueError: another order, or attentions that do not fit each other.
    """

    def __init__(
        self,
        attn_cfgs,
        feedforward_channels=512,
        ffn_dropout=0.0,
        operation_order=OPERATION_ORDER,
        init_cfg=None,
    ):
        super().__init__(init_cfg)
        check_operation_order(operation_order)
        embed_dims = shared_embed_dims(attn_cfgs)
        self_attention, cross_attention = attn_cfgs
        check_heads(embed_dims, self_attention["num_heads"])
        self.attentions = ModuleList(
            [
                build_attention(dict(self_attention, batch_first=True)),
                build_attention(cross_attention),
            ]
        )
        self.ffns = ModuleList([build_ffn(embed_dims, feedforward_channels, ffn_dropout)])
        self.norms = ModuleList(
            [build_norm_layer(dict(type="LN"), embed_dims)[1] for _ in range(3)]
        )

    def forward(self, query, query_pos, bev, bev_hw, reference_xy, num_groups=1):
        """Refine the object queries.

        Args:
            query: (B, R * O, C) object queries.
            query_pos: (B, R * O, C) their positional part.
            bev: (B, Q, C) BEV features.
            bev_hw: rows and columns of the BEV grid.
            reference_xy: (B, R * O, 2) where each object is sought, fractions of the grid.
            num_groups: R; queries attend to one another only within their group.

        Returns:
            (B, R * O, C).
        """
        self_attention, bev_attention = self.attentions
        grouped = rearrange(query, "b (r o) c -> (b r) o c", r=num_groups)
        grouped_pos = rearrange(query_pos, "b (r o) c -> (b r) o c", r=num_groups)
        grouped = self_attention(grouped, query_pos=grouped_pos, key_pos=grouped_pos)
        query = self.norms[0](rearrange(grouped, "(b r) o c -> b (r o) c", r=num_groups))
        query = self.norms[1](bev_attention(query, query_pos, bev, bev_hw, reference_xy))
        return self.norms[2](self.ffns[0](query))

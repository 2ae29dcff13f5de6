"""The attentions of the decoder: of object queries to the BEV map, and among object queries.

Shape legend: B batch, O object queries, Q BEV queries (= Hb * Wb), C channels, M heads, P points.
"""

from mmcv.cnn.bricks.registry import ATTENTION
from mmcv.cnn.bricks.transformer import MultiheadAttention
from torch import nn

from projects.bevformer.model.deformable import DeformableAttention
from projects.bevformer.ops import multi_scale_deformable_attn
from projects.bevformer.published import published


@ATTENTION.register_module()
@published(ignores=("im2col_step", "batch_first"), only={"num_levels": 1, "norm_cfg": None})
class CustomMSDeformableAttention(DeformableAttention):
    """Deformable attention of object queries to the BEV map.

    Args:
        embed_dims: C.
        num_heads: M.
        num_points: P.
        dropout: after the output projection.

    Raises:
        ValueError: C is not a multiple of M.

    Source: Deformable DETR (arXiv 2010.04159), section 4.1, on BEV features.
    """

    def __init__(self, embed_dims=256, num_heads=8, num_points=4, dropout=0.1, init_cfg=None):
        super().__init__(embed_dims, num_heads, 1, num_points, init_cfg=init_cfg)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query, reference_xy, context):
        """Attend.

        Args:
            query: (B, O, C) object queries.
            reference_xy: (B, O, 2) where each object is searched, fractions of the grid.
            context: ObjectContext.

        Returns:
            (B, O, C), the input added.
        """
        located, reference = query + context.query_pos, reference_xy.float()[:, None]
        samples = self.samples(located, context.bev[:, None], reference, context.bev_hw)
        attended = multi_scale_deformable_attn(*samples, default_backend=self.default_backend)
        return self.dropout(self.output_proj(attended)) + query


@ATTENTION.register_module()
class GroupMultiheadAttention(MultiheadAttention):
    """The name under which published configs ask for self-attention within groups of queries.

    It is mmcv's MultiheadAttention; BEVFormerDecoderLayer passes one group at a time.

    Args:
        embed_dims: C.
        num_heads: M.
        dropout: sets `attn_drop` and the probability of `dropout_layer`; None leaves them.
        attn_drop: dropout of the attention weights.
        proj_drop: dropout after the output projection.
        dropout_layer: config of another one after that.
        group: the `group_detr` of the head; None for any.
        batch_first: the batch comes before the queries.
    """

    def __init__(
        self,
        embed_dims,
        num_heads,
        dropout=None,
        attn_drop=0.0,
        proj_drop=0.0,
        dropout_layer=None,
        group=None,
        batch_first=False,
        init_cfg=None,
    ):
        if dropout is not None:
            attn_drop, dropout_layer = dropout, dict(type="Dropout", drop_prob=dropout)
        super().__init__(
            embed_dims,
            num_heads,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
            dropout_layer=dropout_layer or dict(type="Dropout", drop_prob=0.0),
            init_cfg=init_cfg,
            batch_first=batch_first,
        )
        self.group = group

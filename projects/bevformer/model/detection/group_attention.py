"""The name under which published configs ask for self-attention within groups of queries."""

from mmcv.cnn.bricks.registry import ATTENTION
from mmcv.cnn.bricks.transformer import MultiheadAttention


@ATTENTION.register_module()
class GroupMultiheadAttention(MultiheadAttention):
    """mmcv's MultiheadAttention; BEVFormerDecoderLayer calls it with one group of queries at a time.

    Args:
        embed_dims: C.
        num_heads: M.
        group: accepted because published configs give it; the head's `group_detr` counts.
        dropout: of the attention weights and after the output projection.
        batch_first: the batch comes before the queries.
    """

    def __init__(
        self, embed_dims, num_heads, group=1, dropout=0.0, batch_first=False, init_cfg=None
    ):
        super().__init__(
            embed_dims,
            num_heads,
            attn_drop=dropout,
            dropout_layer=dict(type="Dropout", drop_prob=dropout),
            init_cfg=init_cfg,
            batch_first=batch_first,
        )

"""One layer of the BEV encoder."""

from mmcv.cnn import build_norm_layer
from mmcv.cnn.bricks.registry import TRANSFORMER_LAYER
from mmcv.cnn.bricks.transformer import FFN, build_attention
from mmcv.runner import BaseModule, ModuleList

OPERATION_ORDER = ("self_attn", "norm", "cross_attn", "norm", "ffn", "norm")


def check_operation_order(operation_order):
    """Raise ValueError unless the order is the one that the published configs name."""
    if tuple(operation_order) != OPERATION_ORDER:
        raise ValueError(
            f"operation_order must be {OPERATION_ORDER} (post-norm), got {tuple(operation_order)}"
        )


def shared_embed_dims(attn_cfgs):
    """Channels of the two attentions of a layer.

    Args:
        attn_cfgs: their configs; an attention without `embed_dims` has 256.

    Raises:
        ValueError: there are not two, or their channels differ.
    """
    if len(attn_cfgs) != 2:
        raise ValueError(f"attn_cfgs must hold two attentions, got {len(attn_cfgs)}")
    inner = [cfg["deformable_attention"] for cfg in attn_cfgs if cfg.get("deformable_attention")]
    widths = {cfg.get("embed_dims", 256) for cfg in [*attn_cfgs, *inner]}
    if len(widths) != 1:
        raise ValueError(
            f"the attentions of a layer have embed_dims {sorted(widths)}: set one for all"
        )
    return widths.pop()


def build_ffn(embed_dims, feedforward_channels, ffn_dropout):
    """mmcv's two-layer FFN with ReLU; adds its input."""
    return FFN(
        embed_dims=embed_dims, feedforward_channels=feedforward_channels, ffn_drop=ffn_dropout
    )


@TRANSFORMER_LAYER.register_module()
class BEVFormerLayer(BaseModule):
    """Temporal self-attention, spatial cross-attention, feed-forward; each with a norm after it.

    Args:
        attn_cfgs: configs of the two attentions, in that order.
        feedforward_channels: hidden width of the FFN.
        ffn_dropout: in the FFN.
        operation_order: accepted because published configs give it; only theirs is possible.

    Raises:
        ValueError: another order, or attentions that do not fit each other.

    Source: BEVFormer (arXiv 2203.17270), figure 2.
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
        self.attentions = ModuleList([build_attention(cfg) for cfg in attn_cfgs])
        self.ffns = ModuleList([build_ffn(embed_dims, feedforward_channels, ffn_dropout)])
        self.norms = ModuleList(
            [build_norm_layer(dict(type="LN"), embed_dims)[1] for _ in range(3)]
        )

    def forward(self, query, context):
        """Refine the BEV queries.

        Args:
            query: (B, Q, C) BEV queries.
            context: FrameContext of the frame.

        Returns:
            (B, Q, C).
        """
        temporal_self_attention, spatial_cross_attention = self.attentions
        query = self.norms[0](temporal_self_attention(query, context))
        query = self.norms[1](spatial_cross_attention(query, context))
        return self.norms[2](self.ffns[0](query))

"""Base class of encoder and decoder layers."""

from mmcv.cnn import build_norm_layer
from mmcv.cnn.bricks.transformer import FFN, build_attention
from mmcv.runner import BaseModule, ModuleList

from projects.bevformer.model.deformable import check_heads

# The order of the published configs, the only one supported.
POST_NORM = ("self_attn", "norm", "cross_attn", "norm", "ffn", "norm")


class PostNormLayer(BaseModule):
    """Two attentions and a feed-forward network, a norm after each.

    Args:
        attn_cfgs: configs of the two attentions; one without `embed_dims` has 256.
        feedforward_channels: hidden width of the FFN.
        ffn_dropout: in the FFN.

    Raises:
        ValueError: there are not two attentions, or their channels differ or do not divide by the heads.
    """

    def __init__(self, attn_cfgs, feedforward_channels=512, ffn_dropout=0.0, init_cfg=None):
        super().__init__(init_cfg)
        if len(attn_cfgs) != 2:
            raise ValueError(f"attn_cfgs must hold two attentions, got {len(attn_cfgs)}")
        inner = [c["deformable_attention"] for c in attn_cfgs if c.get("deformable_attention")]
        widths = {cfg.get("embed_dims", 256) for cfg in [*attn_cfgs, *inner]}
        if len(widths) != 1:
            raise ValueError(f"attentions with embed_dims {sorted(widths)}: set one for all")
        embed_dims = widths.pop()
        for cfg in attn_cfgs:
            check_heads(embed_dims, cfg.get("num_heads", 1))
        self.attentions = ModuleList([build_attention(cfg) for cfg in attn_cfgs])
        self.ffns = ModuleList(
            [
                FFN(
                    embed_dims=embed_dims,
                    feedforward_channels=feedforward_channels,
                    ffn_drop=ffn_dropout,
                )
            ]
        )
        self.norms = ModuleList(
            [build_norm_layer(dict(type="LN"), embed_dims)[1] for _ in range(3)]
        )

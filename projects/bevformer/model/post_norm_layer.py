"""Base class of encoder and decoder layers."""

from mmcv.cnn import build_norm_layer
from mmcv.cnn.bricks.transformer import (
    build_attention,
    build_feedforward_network,
    build_transformer_layer,
)
from mmcv.runner import BaseModule, ModuleList

from projects.bevformer.model.deformable import check_heads
from projects.bevformer.published import merged_config, one_per_layer

# The order of the published configs, the only one supported.
POST_NORM = ("self_attn", "norm", "cross_attn", "norm", "ffn", "norm")


class PostNormLayer(BaseModule):
    """Two attentions and a feed-forward network, a norm after each.

    Args:
        attn_cfgs: configs of the two attentions; one without `embed_dims` has 256.
        feedforward_channels: hidden width of the FFN; 512 where neither this nor `ffn_cfgs` says it.
        ffn_dropout: in the FFN; 0 likewise.
        act_cfg: config of the FFN's activation; ReLU likewise.
        ffn_num_fcs: linear layers of the FFN; 2 likewise.
        ffn_cfgs: config of the FFN, or a list with it: the four above as `feedforward_channels`,
            `ffn_drop`, `act_cfg` and `num_fcs`, and whatever else the FFN takes.
        norm_cfg: config of the norms; LayerNorm where None.

    Raises:
        ValueError: there are not two attentions, their channels differ or do not divide by the heads, or
            `ffn_cfgs` contradicts another argument.
    """

    attention_options = ({}, {})  # of a kind of layer, in place of those in `attn_cfgs`

    def __init__(
        self,
        attn_cfgs,
        feedforward_channels=None,
        ffn_dropout=None,
        act_cfg=None,
        ffn_num_fcs=None,
        ffn_cfgs=None,
        norm_cfg=None,
        init_cfg=None,
    ):
        super().__init__(init_cfg)
        number = 1 if isinstance(attn_cfgs, dict) else len(attn_cfgs)
        if number != 2:
            raise ValueError(f"attn_cfgs must hold two attentions, got {number}")
        (ffn,) = ffn_cfgs if isinstance(ffn_cfgs, (list, tuple)) else [ffn_cfgs or {}]
        inner = [c["deformable_attention"] for c in attn_cfgs if c.get("deformable_attention")]
        widths = {cfg.get("embed_dims", 256) for cfg in [*attn_cfgs, *inner]}
        widths.add(ffn.get("embed_dims", min(widths)))
        if len(widths) != 1:
            raise ValueError(
                f"attentions and FFN with embed_dims {sorted(widths)}: set one for all"
            )
        embed_dims = widths.pop()
        for cfg in attn_cfgs:
            check_heads(embed_dims, cfg.get("num_heads", 1))
        options = zip(attn_cfgs, self.attention_options)
        self.attentions = ModuleList([build_attention({**cfg, **own}) for cfg, own in options])
        given = {
            "feedforward_channels": ("feedforward_channels", feedforward_channels),
            "ffn_drop": ("ffn_dropout", ffn_dropout),
            "act_cfg": ("act_cfg", act_cfg),
            "num_fcs": ("ffn_num_fcs", ffn_num_fcs),
        }
        ffn = merged_config("ffn_cfgs", ffn, given)
        defaults = dict(type="FFN", embed_dims=embed_dims, feedforward_channels=512)
        self.ffns = ModuleList([build_feedforward_network({**defaults, **ffn})])
        norm_cfg = norm_cfg or dict(type="LN")
        self.norms = ModuleList([build_norm_layer(norm_cfg, embed_dims)[1] for _ in range(3)])


def build_layers(transformerlayers, num_layers):
    """The layers of an encoder or decoder, from one config for all or a list with one for each."""
    configs = one_per_layer(transformerlayers, num_layers)
    return ModuleList([build_transformer_layer(config) for config in configs])

import torch
from mmcv.cnn.bricks.transformer import build_attention, build_transformer_layer

from projects.bevformer.model.detection.bev_attention import GroupMultiheadAttention
from projects.bevformer.model.detection.context import ObjectContext

SELF = dict(type="MultiheadAttention", embed_dims=8, num_heads=2, dropout=0.0)
CROSS = dict(
    type="CustomMSDeformableAttention", embed_dims=8, num_heads=2, num_points=2, dropout=0.0
)


def layer(self_attention):
    torch.manual_seed(0)
    return build_transformer_layer(
        dict(
            type="BEVFormerDecoderLayer",
            attn_cfgs=[self_attention, CROSS],
            feedforward_channels=16,
        )
    )


def test_in_a_decoder_layer_it_is_mmcvs_attention():
    plain, grouped = layer(SELF), layer(dict(SELF, type="GroupMultiheadAttention", group=3))
    assert isinstance(grouped.attentions[0], GroupMultiheadAttention)
    grouped.load_state_dict(plain.state_dict())
    query, query_pos = torch.randn(2, 2, 6, 8)
    context = ObjectContext(query_pos, torch.randn(2, 20, 8), (4, 5), num_groups=3)
    reference = torch.rand(2, 6, 2)
    torch.testing.assert_close(grouped(query, reference, context), plain(query, reference, context))


def test_dropout_is_of_the_weights_and_of_the_output():
    attention = build_attention(dict(SELF, type="GroupMultiheadAttention", dropout=0.3))
    assert attention.attn.dropout == 0.3
    assert attention.dropout_layer.p == 0.3

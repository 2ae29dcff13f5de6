import pytest
import torch
from mmcv.cnn.bricks.transformer import build_transformer_layer
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttention
from tiny_bevformer import BEV_HW, CHANNELS, decoder_config, shake_weights

from projects.bevformer.model.detection.layer import CustomMSDeformableAttention

OBJECTS = 6


@pytest.fixture
def inputs():
    """query, query_pos, bev, bev_hw and reference_xy of two samples."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape):
        return torch.randn(2, *shape, generator=generator)

    bev = noise(BEV_HW[0] * BEV_HW[1], CHANNELS)
    reference = torch.rand(2, OBJECTS, 2, generator=generator)
    return noise(OBJECTS, CHANNELS), noise(OBJECTS, CHANNELS), bev, BEV_HW, reference


@pytest.fixture
def layer():
    config = dict(decoder_config()["transformerlayers"], type="BEVFormerDecoderLayer")
    layer = build_transformer_layer(config)
    shake_weights(layer)
    return layer


def test_bev_attention_equals_mmcvs(inputs):
    query, query_pos, bev, bev_hw, reference = inputs
    ours = CustomMSDeformableAttention(CHANNELS, num_heads=4, num_points=3, dropout=0.0)
    shake_weights(ours)
    theirs = MultiScaleDeformableAttention(
        CHANNELS, num_heads=4, num_levels=1, num_points=3, dropout=0.0, batch_first=True
    )
    theirs.load_state_dict(ours.state_dict())
    expected = theirs(
        query,
        value=bev,
        query_pos=query_pos,
        reference_points=reference[:, :, None],
        spatial_shapes=torch.tensor([bev_hw]),
        level_start_index=torch.tensor([0]),
    )
    torch.testing.assert_close(ours(*inputs), expected, rtol=1e-5, atol=1e-5)


def test_bev_attention_starts_as_mmcvs():
    ours = CustomMSDeformableAttention(CHANNELS, num_heads=8, num_points=4)
    theirs = MultiScaleDeformableAttention(CHANNELS, num_heads=8, num_levels=1, num_points=4)
    for name in ("sampling_offsets", "attention_weights"):
        for ours_parameter, theirs_parameter in zip(
            getattr(ours, name).parameters(), getattr(theirs, name).parameters()
        ):
            torch.testing.assert_close(ours_parameter, theirs_parameter)


def test_each_step_is_followed_by_its_norm(layer, inputs):
    query, query_pos, bev, bev_hw, reference = inputs
    self_attention, bev_attention = layer.attentions
    located = query + query_pos
    mixed, _ = self_attention.attn(*(t.transpose(0, 1) for t in (located, located, query)))
    expected = layer.norms[0](query + mixed.transpose(0, 1))
    expected = layer.norms[1](bev_attention(expected, query_pos, bev, bev_hw, reference))
    expected = layer.norms[2](layer.ffns[0](expected))
    torch.testing.assert_close(layer(*inputs), expected, rtol=1e-5, atol=1e-5)


def test_two_samples_are_two_times_one(layer, inputs):
    query, query_pos, bev, bev_hw, reference = inputs
    together = layer(*inputs)
    for b in range(2):
        one = slice(b, b + 1)
        alone = layer(query[one], query_pos[one], bev[one], bev_hw, reference[one])
        torch.testing.assert_close(together[one], alone, rtol=1e-5, atol=1e-5)


def test_groups_do_not_see_one_another(layer, inputs):
    query, query_pos, bev, bev_hw, reference = inputs
    together = layer(*inputs, num_groups=2)
    assert not torch.allclose(together, layer(*inputs), atol=1e-3)
    for group in (slice(0, OBJECTS // 2), slice(OBJECTS // 2, OBJECTS)):
        alone = layer(query[:, group], query_pos[:, group], bev, bev_hw, reference[:, group])
        torch.testing.assert_close(together[:, group], alone, rtol=1e-5, atol=1e-5)


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match="one BEV level"):
        CustomMSDeformableAttention(CHANNELS, num_levels=4)
    with pytest.raises(ValueError, match="divisible by num_heads"):
        CustomMSDeformableAttention(CHANNELS, num_heads=3)
    config = dict(decoder_config()["transformerlayers"], type="BEVFormerDecoderLayer")
    with pytest.raises(ValueError, match="operation_order must be"):
        build_transformer_layer(dict(config, operation_order=("cross_attn", "norm")))
    with pytest.raises(ValueError, match="must hold two attentions, got 1"):
        build_transformer_layer(dict(config, attn_cfgs=config["attn_cfgs"][:1]))
    self_attention, bev_attention = config["attn_cfgs"]
    for wrong, message in (
        (
            [dict(self_attention, num_heads=3), bev_attention],
            r"\(16\) must be divisible by num_heads",
        ),
        ([self_attention, dict(bev_attention, embed_dims=32)], r"embed_dims \[16, 32\]"),
    ):
        with pytest.raises(ValueError, match=message):
            build_transformer_layer(dict(config, attn_cfgs=wrong))

from dataclasses import replace

import pytest
import torch
from mmcv.cnn.bricks.transformer import build_transformer_layer
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttention
from tiny_bevformer import BEV_HW, CHANNELS, decoder_config, shake_weights

from projects.bevformer.model.detection.bev_attention import CustomMSDeformableAttention
from projects.bevformer.model.detection.context import ObjectContext

OBJECTS = 6


@pytest.fixture
def inputs():
    """query, reference_xy and ObjectContext of two samples."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape):
        return torch.randn(2, *shape, generator=generator)

    bev = noise(BEV_HW[0] * BEV_HW[1], CHANNELS)
    reference = torch.rand(2, OBJECTS, 2, generator=generator)
    context = ObjectContext(noise(OBJECTS, CHANNELS), bev, BEV_HW)
    return noise(OBJECTS, CHANNELS), reference, context


def part_of(context, **index):
    """The context of some samples or objects."""
    samples, objects = index.get("samples", slice(None)), index.get("objects", slice(None))
    return replace(context, query_pos=context.query_pos[samples, objects], bev=context.bev[samples])


@pytest.fixture
def layer():
    config = dict(decoder_config()["transformerlayers"], type="BEVFormerDecoderLayer")
    layer = build_transformer_layer(config)
    shake_weights(layer)
    return layer


def test_bev_attention_equals_mmcvs(inputs):
    query, reference, context = inputs
    ours = CustomMSDeformableAttention(CHANNELS, num_heads=4, num_points=3, dropout=0.0)
    shake_weights(ours)
    theirs = MultiScaleDeformableAttention(
        CHANNELS, num_heads=4, num_levels=1, num_points=3, dropout=0.0, batch_first=True
    )
    theirs.load_state_dict(ours.state_dict())
    expected = theirs(
        query,
        value=context.bev,
        query_pos=context.query_pos,
        reference_points=reference[:, :, None],
        spatial_shapes=torch.tensor([context.bev_hw]),
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
    query, reference, context = inputs
    self_attention, bev_attention = layer.attentions
    located = query + context.query_pos
    mixed, _ = self_attention.attn(*(t.transpose(0, 1) for t in (located, located, query)))
    expected = layer.norms[0](query + mixed.transpose(0, 1))
    expected = layer.norms[1](bev_attention(expected, reference, context))
    expected = layer.norms[2](layer.ffns[0](expected))
    torch.testing.assert_close(layer(*inputs), expected, rtol=1e-5, atol=1e-5)


def test_batch_equals_single_samples(layer, inputs):
    query, reference, context = inputs
    together = layer(*inputs)
    for b in range(2):
        one = slice(b, b + 1)
        alone = layer(query[one], reference[one], part_of(context, samples=one))
        torch.testing.assert_close(together[one], alone, rtol=1e-5, atol=1e-5)


def test_groups_do_not_attend_to_each_other(layer, inputs):
    query, reference, context = inputs
    together = layer(query, reference, replace(context, num_groups=2))
    assert not torch.allclose(together, layer(*inputs), atol=1e-3)
    for group in (slice(0, OBJECTS // 2), slice(OBJECTS // 2, OBJECTS)):
        alone = layer(query[:, group], reference[:, group], part_of(context, objects=group))
        torch.testing.assert_close(together[:, group], alone, rtol=1e-5, atol=1e-5)


def test_unsupported_options_are_rejected():
    with pytest.raises(ValueError, match="set num_levels=1"):
        CustomMSDeformableAttention(CHANNELS, num_levels=4)
    with pytest.raises(ValueError, match="divisible by num_heads"):
        CustomMSDeformableAttention(CHANNELS, num_heads=3)
    config = dict(decoder_config()["transformerlayers"], type="BEVFormerDecoderLayer")
    with pytest.raises(ValueError, match="set operation_order="):
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

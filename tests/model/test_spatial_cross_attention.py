from dataclasses import replace

import naive_equations
import numpy as np
import pytest
import torch
from tiny_bevformer import BEV_HW, CAMERAS, CHANNELS, IMAGE_HW, PC_RANGE, make_meta, shake_weights

from projects.bevformer.model.bev_encoder.packed_queries import PackedQueries
from projects.bevformer.model.bev_encoder.spatial_cross_attention import SpatialCrossAttention


def make_attention(num_points=4):
    attention = SpatialCrossAttention(
        CHANNELS,
        num_cams=CAMERAS,
        dropout=0.0,
        deformable_attention=dict(
            type="MSDeformableAttention3D",
            embed_dims=CHANNELS,
            num_heads=2,
            num_levels=2,
            num_points=num_points,
        ),
    )
    shake_weights(attention)
    return attention


@pytest.mark.parametrize("sample", [0, 1])
def test_equals_a_loop(frame_context, bev_query, sample):
    attention, context, query = make_attention(), frame_context((sample,)), bev_query((sample,))
    num_queries = query.shape[1]
    views = context.visible.query_index.bincount(minlength=num_queries)
    assert (views == 0).any() or (views == 2).any()  # the interesting cases occur
    expected = naive_equations.spatial_cross_attention(
        attention,
        query[0].double().numpy(),
        context.image_features[0].double().numpy(),
        context.image_shapes,
        np.stack(make_meta(sample)["lidar2img"]),
        IMAGE_HW,
        [naive_equations.pillar(q, BEV_HW, 2, PC_RANGE) for q in range(num_queries)],
    )
    result = attention(query, context)
    np.testing.assert_allclose(result[0].detach().numpy(), expected, atol=1e-3)


def test_batch_with_mixed_visibility_equals_single_samples(frame_context, bev_query):
    attention, context = make_attention(), frame_context((0, 1), (True, True))
    assert sum(context.visible.lengths[:CAMERAS]) != sum(context.visible.lengths[CAMERAS:])
    together = attention(bev_query((0, 1)), context)
    for sample in (0, 1):
        alone = attention(bev_query((sample,)), frame_context((sample,)))
        torch.testing.assert_close(together[sample], alone[0], rtol=1e-5, atol=1e-5)


def nowhere_visible(queries):
    """No camera sees any query."""
    points_uv = torch.full((1, CAMERAS, queries, 2, 2), 0.5)
    seen = torch.zeros(1, CAMERAS, queries, dtype=torch.bool)
    return PackedQueries.from_visibility(points_uv, seen, [0] * CAMERAS)


def test_no_visible_query_adds_the_bias_only(frame_context, bev_query):
    attention, query = make_attention(), bev_query()
    context = replace(frame_context(), visible=nowhere_visible(query.shape[1]))
    result = attention(query, context)
    torch.testing.assert_close(result, query + attention.output_proj.bias)
    result.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in attention.parameters())


def test_a_camera_that_sees_nothing_changes_nothing(frame_context, bev_query):
    attention, context, query = make_attention(), frame_context(), bev_query()
    visible = replace(context.visible, lengths=(*context.visible.lengths, 0))
    features = torch.cat((context.image_features, context.image_features[:, :1] + 9), dim=1)
    more = replace(context, visible=visible, image_features=features)
    torch.testing.assert_close(attention(query, more), attention(query, context))


def test_points_not_divisible_by_heights_are_rejected(frame_context, bev_query):
    attention = make_attention(num_points=3)
    with pytest.raises(ValueError, match=r"num_points \(3\)"):
        attention(bev_query(), frame_context())


def test_wrong_number_of_levels_is_rejected(frame_context, bev_query):
    context = frame_context()
    fewer = replace(context, image_shapes=context.image_shapes[:1])
    with pytest.raises(ValueError, match="is 2, num_outs of the neck 1"):
        make_attention()(bev_query(), fewer)


def test_the_inner_attention_has_no_output_projection():
    names = {name for name, _ in make_attention().named_children()}
    inner = {name for name, _ in make_attention().deformable_attention.named_children()}
    assert names == {"deformable_attention", "output_proj", "dropout"}
    assert inner == {"sampling_offsets", "attention_weights", "value_proj"}

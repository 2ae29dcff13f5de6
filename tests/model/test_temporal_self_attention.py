import naive_equations
import numpy as np
import pytest
import torch
from tiny_bevformer import BEV_HW, CHANNELS, shake_weights

from projects.bevformer.model.bev_encoder.temporal_self_attention import TemporalSelfAttention


@pytest.fixture
def attention():
    attention = TemporalSelfAttention(CHANNELS, num_heads=2, num_points=3, dropout=0.0)
    shake_weights(attention)
    return attention


@pytest.mark.parametrize("has_prev", [True, False])
def test_equals_a_loop(attention, frame_context, bev_query, has_prev):
    context, query = frame_context((0,), (has_prev,)), bev_query()
    shift = context.reference_bev[0, 0, 0] - context.reference_bev[0, 1, 0]
    expected = naive_equations.temporal_self_attention(
        attention,
        query[0].numpy(),
        context.bev_pos[0].numpy(),
        context.prev_and_current[0, 0].numpy() if has_prev else None,
        context.bev_queries[0].numpy(),
        BEV_HW,
        shift.numpy(),
    )
    result = attention(query, context)
    assert result.shape == query.shape
    np.testing.assert_allclose(result[0].detach().numpy(), expected, atol=1e-4)


def test_mixed_history_batch_equals_single_samples(attention, frame_context, bev_query):
    together = attention(bev_query((0, 1)), frame_context((0, 1), (False, True)))
    for sample, has_prev in ((0, False), (1, True)):
        alone = attention(bev_query((sample,)), frame_context((sample,), (has_prev,)))
        torch.testing.assert_close(together[sample], alone[0], rtol=1e-5, atol=1e-5)


def test_prev_bev_of_a_sample_without_one_is_ignored(attention, frame_context, bev_query):
    context, query = frame_context((0, 1), (False, True)), bev_query((0, 1))
    before = attention(query, context)
    context.prev_and_current[0, 0] = float("nan")
    assert torch.equal(attention(query, context), before)


def test_gradients_reach_query_and_weights(attention, frame_context, bev_query):
    query = bev_query().requires_grad_()
    attention(query, frame_context()).sum().backward()
    assert query.grad.abs().sum() > 0
    for name, parameter in attention.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_offsets_start_as_rays():
    attention = TemporalSelfAttention(CHANNELS, num_heads=4, num_points=2)
    bias = attention.sampling_offsets.bias.reshape(4, 2, 2, 2)  # heads, frames, points, xy
    directions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    for frame in range(2):
        for point in range(2):
            torch.testing.assert_close(
                bias[:, frame, point], directions * (point + 1), rtol=0, atol=1e-5
            )
    for zeros in (attention.sampling_offsets.weight, *attention.attention_weights.parameters()):
        assert not zeros.detach().any()


@pytest.mark.parametrize("wrong", [dict(num_levels=4), dict(num_bev_queue=3), dict(num_heads=3)])
def test_unsupported_options_are_rejected(wrong):
    with pytest.raises(ValueError, match="num_"):
        TemporalSelfAttention(CHANNELS, **wrong)

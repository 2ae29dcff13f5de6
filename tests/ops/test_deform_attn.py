import numpy as np
import pytest
import torch
from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch
from naive_equations import deformable_attention

from projects.bevformer.ops import (
    multi_scale_deformable_attn,
    packed_multi_scale_deformable_attn,
)

SHAPES = [(3, 4), (2, 2)]


def random_inputs(batch=2, queries=5, heads=2, channels=3, points=4, dtype=torch.float32):
    """value, locations partly outside the maps, and normalised weights."""
    generator = torch.Generator().manual_seed(0)
    keys = sum(h * w for h, w in SHAPES)
    levels = len(SHAPES)
    value = torch.randn(batch, keys, heads, channels, generator=generator, dtype=dtype)
    locations = torch.rand(
        batch, queries, heads, levels, points, 2, generator=generator, dtype=dtype
    )
    weights = torch.rand(batch, queries, heads, levels * points, generator=generator, dtype=dtype)
    weights = weights.softmax(dim=-1).reshape(batch, queries, heads, levels, points)
    return value, locations * 1.4 - 0.2, weights


def sample_2x2(x, y):
    """The map [[1, 2], [3, 4]] at (x, y), fractions of its size."""
    value = torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 4, 1, 1)
    location = torch.tensor([x, y]).reshape(1, 1, 1, 1, 1, 2)
    return multi_scale_deformable_attn(value, [(2, 2)], location, torch.ones(1, 1, 1, 1, 1)).item()


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (0.25, 0.25, 1.0),  # the middle of a cell
        (0.75, 0.25, 2.0),
        (0.25, 0.75, 3.0),
        (0.5, 0.5, 2.5),  # between all four
        (0.5, 0.25, 1.5),
        (0.0, 0.25, 0.5),  # the border: half a cell, half nothing
        (1.0, 1.0, 1.0),  # the corner: a quarter of the last cell
        (-0.25, 0.25, 0.0),
        (7.0, 7.0, 0.0),
    ],
)
def test_one_sample_by_hand(x, y, expected):
    assert sample_2x2(x, y) == pytest.approx(expected)


def test_equals_a_loop():
    value, locations, weights = random_inputs()
    result = multi_scale_deformable_attn(value, SHAPES, locations, weights)
    expected = deformable_attention(value.numpy(), SHAPES, locations.numpy(), weights.numpy())
    assert result.shape == (2, 5, 6)
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-5)


def test_equals_mmcvs():
    value, locations, weights = random_inputs(queries=9, heads=4, channels=8, points=3)
    result = multi_scale_deformable_attn(value, SHAPES, locations, weights)
    expected = multi_scale_deformable_attn_pytorch(value, torch.tensor(SHAPES), locations, weights)
    torch.testing.assert_close(result, expected)


def test_shapes_may_be_a_tensor():
    inputs = random_inputs()
    value, locations, weights = inputs
    result = multi_scale_deformable_attn(value, torch.tensor(SHAPES), locations, weights)
    assert torch.equal(result, multi_scale_deformable_attn(value, SHAPES, locations, weights))


def test_two_samples_are_two_times_one():
    value, locations, weights = random_inputs()
    together = multi_scale_deformable_attn(value, SHAPES, locations, weights)
    for b in range(2):
        alone = multi_scale_deformable_attn(
            value[b : b + 1], SHAPES, locations[b : b + 1], weights[b : b + 1]
        )
        torch.testing.assert_close(together[b : b + 1], alone)


@pytest.mark.parametrize("rows_per_map", [(3, 5), (5, 0), (0, 4), (0, 0)])
def test_packed_rows_are_the_rows_of_each_map(rows_per_map):
    value, locations, weights = random_inputs()
    dense = multi_scale_deformable_attn(value, SHAPES, locations, weights)
    packed = packed_multi_scale_deformable_attn(
        value,
        SHAPES,
        torch.cat([locations[v, :rows] for v, rows in enumerate(rows_per_map)]),
        torch.cat([weights[v, :rows] for v, rows in enumerate(rows_per_map)]),
        rows_per_map,
    )
    expected = torch.cat([dense[v, :rows] for v, rows in enumerate(rows_per_map)])
    torch.testing.assert_close(packed, expected)


def test_no_queries():
    value, locations, weights = random_inputs(queries=0)
    assert multi_scale_deformable_attn(value, SHAPES, locations, weights).shape == (2, 0, 6)


def test_gradients():
    value, locations, weights = random_inputs(1, 2, 2, 2, 2, dtype=torch.float64)
    inputs = [tensor.requires_grad_() for tensor in (value, locations, weights)]

    def attend(value, locations, weights):
        return multi_scale_deformable_attn(value, SHAPES, locations, weights)

    assert torch.autograd.gradcheck(attend, inputs)


def test_half_precision_values_are_sampled_in_the_precision_of_the_locations():
    value, locations, weights = random_inputs()
    result = multi_scale_deformable_attn(value.bfloat16(), SHAPES, locations, weights.bfloat16())
    expected = multi_scale_deformable_attn(
        value.bfloat16().float(), SHAPES, locations, weights.bfloat16().float()
    )
    assert result.dtype == torch.float32
    assert torch.equal(result, expected)


def test_far_away_locations_read_zero():
    value, locations, weights = random_inputs()
    for far in (1e4, -1e7, 1e9):
        away = torch.full_like(locations, far)
        result = multi_scale_deformable_attn(value, SHAPES, away, weights)
        assert torch.equal(result, torch.zeros_like(result))


def test_misfits_are_refused():
    value, locations, weights = random_inputs()
    with pytest.raises(ValueError, match="value has 16 keys"):
        multi_scale_deformable_attn(value, [(3, 4)], locations, weights)
    with pytest.raises(ValueError, match="sampling_locations"):
        multi_scale_deformable_attn(value, SHAPES, locations[:1], weights[:1])
    with pytest.raises(ValueError, match="sampling_locations"):
        multi_scale_deformable_attn(value, SHAPES, locations[:, :, :1], weights[:, :, :1])
    with pytest.raises(ValueError, match="attention_weights"):
        multi_scale_deformable_attn(value, SHAPES, locations, weights[..., :1])


def test_misfits_of_packed_rows_are_refused():
    value, locations, weights = random_inputs()
    rows = (locations.flatten(0, 1), weights.flatten(0, 1))
    for rows_per_map in [(5, 4), (10,), (3, 3, 4)]:
        with pytest.raises(ValueError, match="rows_per_map"):
            packed_multi_scale_deformable_attn(value, SHAPES, *rows, rows_per_map)

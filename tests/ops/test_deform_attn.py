"""Every backend of the package that this machine supports computes the same function and gradients.

Triton runs under its interpreter: see test_triton.py.
"""

from functools import partial

import numpy as np
import pytest
import torch
from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch
from naive_equations import deformable_attention

from projects.bevformer import ops
from projects.bevformer.ops.backends import get_backend


def supported_backends():
    """Names, without those that tests and benchmarks register."""
    value, locations = torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 1, 2)
    found = ((name, get_backend(name)) for name in ops.known_backends())
    return [
        name
        for name, backend in found
        if backend.attend.__module__.startswith("projects.bevformer.")
        and backend.unsupported_reason(value, locations) is None
    ]


BACKENDS = supported_backends()

SHAPES = [(3, 4), (2, 2)]


def test_lean_and_reference_are_always_tested():
    assert {"lean", "reference"} <= set(BACKENDS)


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


@pytest.fixture
def attend(backend):
    return partial(ops.multi_scale_deformable_attn, backend=backend)


@pytest.fixture
def attend_packed(backend):
    return partial(ops.packed_multi_scale_deformable_attn, backend=backend)


def random_inputs(batch=2, queries=5, heads=2, channels=4, points=3, dtype=torch.float32):
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


def sample_2x2(attend, x, y):
    """Sample the map [[1, 2], [3, 4]] at (x, y), fractions of its size."""
    value = torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 4, 1, 1)
    location = torch.tensor([x, y]).reshape(1, 1, 1, 1, 1, 2)
    return attend(value, [(2, 2)], location, torch.ones(1, 1, 1, 1, 1)).item()


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (0.25, 0.25, 1.0),  # centre of a cell
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
def test_one_sample_by_hand(attend, x, y, expected):
    assert sample_2x2(attend, x, y) == pytest.approx(expected)


def test_equals_a_loop(attend):
    value, locations, weights = random_inputs()
    result = attend(value, SHAPES, locations, weights)
    expected = deformable_attention(value.numpy(), SHAPES, locations.numpy(), weights.numpy())
    assert result.shape == (2, 5, 8)
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-5)


def test_equals_mmcvs(attend):
    value, locations, weights = random_inputs(queries=9, heads=4, channels=8, points=3)
    result = attend(value, SHAPES, locations, weights)
    expected = multi_scale_deformable_attn_pytorch(value, torch.tensor(SHAPES), locations, weights)
    torch.testing.assert_close(result, expected)


def test_shapes_may_be_a_tensor(attend):
    inputs = random_inputs()
    value, locations, weights = inputs
    result = attend(value, torch.tensor(SHAPES), locations, weights)
    assert torch.equal(result, attend(value, SHAPES, locations, weights))


def test_batch_of_two_equals_two_batches_of_one(attend):
    value, locations, weights = random_inputs()
    together = attend(value, SHAPES, locations, weights)
    for b in range(2):
        alone = attend(value[b : b + 1], SHAPES, locations[b : b + 1], weights[b : b + 1])
        torch.testing.assert_close(together[b : b + 1], alone)


@pytest.mark.parametrize("rows_per_map", [(3, 5), (5, 0), (0, 4), (0, 0)])
def test_packed_rows_equal_dense_rows(attend, attend_packed, rows_per_map):
    value, locations, weights = random_inputs()
    dense = attend(value, SHAPES, locations, weights)
    packed = attend_packed(
        value,
        SHAPES,
        torch.cat([locations[v, :rows] for v, rows in enumerate(rows_per_map)]),
        torch.cat([weights[v, :rows] for v, rows in enumerate(rows_per_map)]),
        rows_per_map,
    )
    expected = torch.cat([dense[v, :rows] for v, rows in enumerate(rows_per_map)])
    torch.testing.assert_close(packed, expected)


def test_no_queries(attend):
    value, locations, weights = random_inputs(queries=0)
    assert attend(value, SHAPES, locations, weights).shape == (2, 0, 8)


def exact_inputs(shapes, rows_per_map, place, heads=2, channels=4, points=3):
    """Float64 inputs whose samples all lie in the same kind of place."""
    generator = torch.Generator().manual_seed(1)
    rows, levels = sum(rows_per_map), len(shapes)
    value = torch.randn(
        len(rows_per_map), sum(h * w for h, w in shapes), heads, channels, generator=generator
    )
    size = torch.tensor([(w, h) for h, w in shapes]).view(levels, 1, 2)
    pixels = torch.rand(rows, heads, levels, points, 2, generator=generator) * size
    if place == "inside":
        pixels = pixels.floor() + 0.1 + 0.8 * torch.rand(pixels.shape, generator=generator)
    elif place == "outside":
        pixels = pixels.floor() + 0.3 + size * torch.tensor([-1.5, 0.5])
    elif place == "border":  # half a cell inside and outside of it
        side = (torch.rand(pixels.shape, generator=generator) < 0.5) * size
        pixels = side + torch.rand(pixels.shape, generator=generator) * 0.8 - 0.4
    elif place == "middle of cells":
        pixels = pixels.floor() + 0.5
    elif place == "between cells":
        pixels = pixels.floor()
    weights = torch.rand(rows, heads, levels, points, generator=generator)
    grad = torch.randn(rows, heads * channels, generator=generator)
    # Rounded to float32, so that all backends sample the same locations.
    locations = (pixels / size).float()
    return [tensor.double() for tensor in (value, locations, weights, grad)]


def values_and_gradients(function, value, shapes, locations, weights, rows_per_map, grad):
    """Output and gradients of value, locations and weights."""
    inputs = [tensor.clone().requires_grad_() for tensor in (value, locations, weights)]
    output = function(inputs[0], shapes, inputs[1], inputs[2], rows_per_map)
    output.backward(grad.to(output.dtype))
    return [output.detach(), *(tensor.grad for tensor in inputs)]


def assert_agree(results, expected, tolerance):
    for name, result, want in zip(("output", "value", "locations", "weights"), results, expected):
        scale = want.abs().max().clamp(min=1e-6)
        error = ((result.double() - want).abs().max() / scale).item()
        assert error < tolerance, f"{name}: {error}"


LEVELS = [[(5, 7)], [(4, 6), (2, 3)], [(6, 5), (3, 3), (1, 2)], [(8, 6), (4, 3), (2, 1), (1, 1)]]
PLACES = ["inside", "outside", "border", "middle of cells", "between cells"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("shapes", LEVELS, ids=len)
@pytest.mark.parametrize("rows_per_map", [(6, 0, 3), (4, 4), (5,)])
def test_values_and_gradients(attend_packed, shapes, rows_per_map, place):
    value, locations, weights, grad = exact_inputs(shapes, rows_per_map, place)
    oracle = partial(ops.packed_multi_scale_deformable_attn, backend="reference")
    expected = values_and_gradients(oracle, value, shapes, locations, weights, rows_per_map, grad)
    results = values_and_gradients(
        attend_packed,
        value.float(),
        shapes,
        locations.float(),
        weights.float(),
        rows_per_map,
        grad.float(),
    )
    if place == "middle of cells":  # the derivative is discontinuous, rounding decides the side
        del results[2], expected[2]
    assert_agree(results, expected, 1e-5)


def test_bfloat16_values(attend_packed):
    shapes, rows_per_map = LEVELS[1], (6, 2)
    value, locations, weights, grad = exact_inputs(shapes, rows_per_map, "inside")
    value = value.bfloat16()
    oracle = partial(ops.packed_multi_scale_deformable_attn, backend="reference")
    expected = values_and_gradients(
        oracle, value.double(), shapes, locations, weights, rows_per_map, grad
    )
    results = values_and_gradients(
        attend_packed, value, shapes, locations.float(), weights.float(), rows_per_map, grad
    )
    assert results[0].dtype == results[2].dtype == torch.float32
    assert results[1].dtype == torch.bfloat16
    assert_agree([results[1]], [expected[1]], 2**-8)  # the gradient of the value is rounded once
    del results[1], expected[1]
    assert_agree(results, expected, 1e-5)


def test_gradients_in_float64(backend, attend_packed):
    if backend == "triton":
        pytest.skip("float32 only")
    shapes, rows_per_map = [(3, 2), (1, 2)], (1, 0, 1)
    value, locations, weights, _ = exact_inputs(
        shapes, rows_per_map, "inside", channels=2, points=1
    )
    inputs = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    assert torch.autograd.gradcheck(
        lambda value, locations, weights: attend_packed(
            value, shapes, locations, weights, rows_per_map
        ),
        inputs,
    )


@pytest.mark.parametrize("wanted", range(3))
def test_gradient_of_a_single_input(attend_packed, wanted):
    shapes, rows_per_map = LEVELS[1], (3, 2)
    *inputs, grad = (t.float() for t in exact_inputs(shapes, rows_per_map, "inside"))
    expected = values_and_gradients(
        attend_packed, inputs[0], shapes, inputs[1], inputs[2], rows_per_map, grad
    )
    inputs[wanted].requires_grad_()
    attend_packed(inputs[0], shapes, *inputs[1:], rows_per_map).backward(grad)
    assert torch.equal(inputs[wanted].grad, expected[1 + wanted])
    assert sum(tensor.grad is not None for tensor in inputs) == 1


def test_nan_location_gives_nan_in_its_row_only(attend):
    value, locations, weights = random_inputs()
    locations[0, 1] = float("nan")
    result = attend(value, SHAPES, locations, weights)
    assert result[0, 1].isnan().all()
    assert result[0, 0].isfinite().all()


def test_half_precision_values_are_sampled_in_the_dtype_of_the_locations(attend):
    value, locations, weights = random_inputs()
    result = attend(value.bfloat16(), SHAPES, locations, weights.bfloat16())
    expected = attend(value.bfloat16().float(), SHAPES, locations, weights.bfloat16().float())
    assert result.dtype == torch.float32
    assert torch.equal(result, expected)


def test_far_away_locations_read_zero(attend):
    value, locations, weights = random_inputs()
    for far in (1e4, -1e7, 1e9):
        away = torch.full_like(locations, far)
        result = attend(value, SHAPES, away, weights)
        assert torch.equal(result, torch.zeros_like(result))


def test_mismatched_shapes_are_refused(attend):
    value, locations, weights = random_inputs()
    with pytest.raises(ValueError, match="value has 16 keys"):
        attend(value, [(3, 4)], locations, weights)
    with pytest.raises(ValueError, match="sampling_locations"):
        attend(value, SHAPES, locations[:1], weights[:1])
    with pytest.raises(ValueError, match="sampling_locations"):
        attend(value, SHAPES, locations[:, :, :1], weights[:, :, :1])
    with pytest.raises(ValueError, match="attention_weights"):
        attend(value, SHAPES, locations, weights[..., :1])


def test_mismatched_rows_per_map_is_refused(attend_packed):
    value, locations, weights = random_inputs()
    rows = (locations.flatten(0, 1), weights.flatten(0, 1))
    for rows_per_map in [(5, 4), (10,), (3, 3, 4)]:
        with pytest.raises(ValueError, match="rows_per_map"):
            attend_packed(value, SHAPES, *rows, rows_per_map)

"""Properties of the lean backend only: saved tensors, chunks, data-independent shapes."""

from functools import partial

import pytest
import torch

from projects.bevformer import ops
from projects.bevformer.ops import deform_attn_lean

SHAPES = [(4, 6), (2, 3)]
ROWS = (7, 0, 4)
attend = partial(ops.packed_multi_scale_deformable_attn, backend="lean")


def make_inputs(rows_per_map=ROWS, shapes=SHAPES, dtype=torch.float32, requires_grad=True):
    generator = torch.Generator().manual_seed(0)
    rows, levels = sum(rows_per_map), len(shapes)
    value = torch.randn(len(rows_per_map), sum(h * w for h, w in shapes), 2, 4, generator=generator)
    locations = torch.rand(rows, 2, levels, 3, 2, generator=generator)
    weights = torch.rand(rows, 2, levels, 3, generator=generator)
    inputs = [value.to(dtype), locations, weights]
    return [tensor.requires_grad_(requires_grad) for tensor in inputs]


def run(rows_per_map=ROWS, **options):
    value, locations, weights = make_inputs(rows_per_map, **options)
    output = attend(value, SHAPES, locations, weights, rows_per_map)
    output.sum().backward()
    return output, value.grad, locations.grad, weights.grad


@pytest.mark.parametrize("num_bytes", [1, 6000, 10**4])
def test_chunk_size_does_not_change_results(monkeypatch, num_bytes):
    expected = run()
    slices = []
    chunks_per_map = deform_attn_lean._chunks_per_map

    def recorded(*args):
        for index, chunks in chunks_per_map(*args):
            slices.extend(chunks)
            yield index, chunks

    for name in ("FORWARD_CHUNK_BYTES", "BACKWARD_CHUNK_BYTES"):
        monkeypatch.setattr(deform_attn_lean, name, {"cpu": num_bytes})
    monkeypatch.setattr(deform_attn_lean, "_chunks_per_map", recorded)
    for result, want in zip(run(), expected):
        torch.testing.assert_close(result, want)
    assert len(slices) > 4  # two maps with rows, forward and backward


def test_backward_is_bit_exact():
    for first, second in zip(run(), run()):
        assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backward_saves_only_the_inputs(dtype):
    inputs = make_inputs(dtype=dtype)
    output = attend(inputs[0], SHAPES, *inputs[1:], ROWS)
    saved = output.grad_fn.saved_tensors
    assert [tensor.data_ptr() for tensor in saved] == [tensor.data_ptr() for tensor in inputs]


def test_second_derivative_is_refused():
    value, locations, weights = make_inputs()
    output = attend(value, SHAPES, locations, weights, ROWS)
    (grad,) = torch.autograd.grad(output.square().sum(), locations, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_float16_locations_are_refused():
    value, locations, weights = make_inputs(requires_grad=False)
    with pytest.raises(ValueError, match="float32"):
        attend(value, SHAPES, locations.half(), weights, ROWS)


def test_autocast_does_not_change_results():
    expected = run()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = run()
    for result, want in zip(results, expected):
        assert torch.equal(result, want)


def test_shapes_do_not_depend_on_data():
    fake_tensor = pytest.importorskip("torch._subclasses.fake_tensor")
    with fake_tensor.FakeTensorMode():
        output, *grads = run()
    assert output.shape == (11, 8)
    assert [grad.shape for grad in grads] == [(3, 30, 2, 4), (11, 2, 2, 3, 2), (11, 2, 2, 3)]

"""Registering backends, and which one a call uses: argument, variable, model, process, automatic."""

import logging
import sys

import pytest
import torch
from tiny_bevformer import build_detector, training_batch

from projects.bevformer import ops, plugin  # noqa: F401, registers the network
from projects.bevformer.model.detection.bev_attention import CustomMSDeformableAttention
from projects.bevformer.model.detection.context import ObjectContext
from projects.bevformer.ops import backends


@pytest.fixture(autouse=True)
def clean_registry(monkeypatch):
    """Hide choices made outside the test and undo those made in it."""
    monkeypatch.delenv(backends.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr(backends, "_process_default", None)
    monkeypatch.setattr(backends, "_backends", dict(backends._backends))
    monkeypatch.setattr(backends, "_logged", set())


@pytest.fixture
def calls():
    """Names of the recording backends "one", "two" and "three" in the order of their calls."""
    names = []
    for name in ("one", "two", "three"):

        def attend(value, shapes, locations, weights, rows_per_map, name=name):
            names.append(name)
            return locations.new_zeros(locations.shape[0], value.shape[2] * value.shape[3])

        ops.register_backend(name, attend, lambda value, locations: None)
    return names


def attend(backend=None, value=None, **options):
    value = torch.zeros(1, 4, 1, 2) if value is None else value
    return ops.multi_scale_deformable_attn(
        value,
        [(2, 2)],
        torch.zeros(1, 3, 1, 1, 1, 2),
        torch.ones(1, 3, 1, 1, 1),
        backend,
        **options,
    )


def bev_attention():
    return CustomMSDeformableAttention(embed_dims=8, num_heads=2, num_points=1, dropout=0.0).eval()


def run_module(attention):
    """Output for zero queries on a random 2 x 3 BEV."""
    bev = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(0))
    query = torch.zeros(1, 3, 8)
    with torch.no_grad():
        context = ObjectContext(query, bev, (2, 3))
        return attention(query, torch.full((1, 3, 2), 0.5), context)


def test_argument_beats_environment_beats_defaults(calls, monkeypatch):
    ops.set_default_backend("one")
    attend()
    attend(default_backend="two")
    monkeypatch.setenv("BEVFORMER_MSDA", "three")
    attend(default_backend="two")
    attend("one")
    monkeypatch.delenv("BEVFORMER_MSDA")
    ops.set_default_backend(None)
    attend()
    assert calls == ["one", "two", "three", "one"]  # the last call used the automatic choice


def test_two_models_in_one_process_use_different_backends(calls, monkeypatch):
    models = [torch.nn.Sequential(bev_attention()) for _ in range(3)]
    ops.set_default_backend("one", models[0])
    ops.set_default_backend("two", models[1])
    ops.set_default_backend("three")
    for model in models:
        run_module(model[0])
    assert calls == ["one", "two", "three"]
    ops.set_default_backend(None, models[0])
    run_module(models[0][0])
    monkeypatch.setenv("BEVFORMER_MSDA", "one")
    run_module(models[1][0])
    assert calls[3:] == ["three", "one"]


def test_default_of_the_model_reaches_all_its_attention_modules():
    lean, used = backends.get_backend("lean"), []

    def spy(*args):
        used.append(1)
        return lean.attend(*args)

    ops.register_backend("spy", spy, lean.unsupported_reason)
    ops.register_backend(
        "never", None, lambda value, locations: "a module did not pass its default"
    )
    ops.set_default_backend("never")
    detector = build_detector().train()
    ops.set_default_backend("spy", detector)
    sum(loss for loss in detector(return_loss=True, **training_batch(frames=1)).values()).backward()
    assert len(used) == sum(hasattr(m, "sampling_offsets") for m in detector.modules())


def test_backend_from_outside_the_package():
    """What docs/performance.md shows: one that takes the mean of all cells and ignores locations."""

    def mean_of_map(value, shapes, locations, weights, rows_per_map):
        assert shapes == [(2, 3)]
        maps = torch.repeat_interleave(torch.arange(len(rows_per_map)), torch.tensor(rows_per_map))
        return value.mean(dim=1).flatten(1)[maps].to(locations.dtype)

    def unsupported_reason(value, locations):
        return None if value.device.type == "cpu" else "it only runs on CPUs"

    ops.register_backend("mean", mean_of_map, unsupported_reason)
    assert "mean" in ops.known_backends()

    value = torch.randn(2, 6, 2, 4)
    locations, weights = torch.rand(2, 5, 2, 1, 3, 2), torch.rand(2, 5, 2, 1, 3)
    mean = value.mean(dim=1).flatten(1)
    even = ops.multi_scale_deformable_attn(value, [(2, 3)], locations, weights, backend="mean")
    assert torch.equal(even, mean[:, None].expand(2, 5, 8))
    packed = ops.packed_multi_scale_deformable_attn(
        value,
        [(2, 3)],
        locations[:, :2].flatten(0, 1),
        weights[:, :2].flatten(0, 1),
        (1, 3),
        "mean",
    )
    assert torch.equal(packed, mean[[0, 1, 1, 1]])

    attention = bev_attention()
    ops.set_default_backend("mean", attention)
    bev = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = attention.output_proj(attention.value_proj(bev).mean(dim=1, keepdim=True))
    torch.testing.assert_close(run_module(attention), expected.expand(1, 3, 8))


def test_unknown_names_are_refused_with_the_known_ones(monkeypatch):
    with pytest.raises(ValueError, match=r"backend='fast'.*lean, .*reference"):
        attend("fast")
    with pytest.raises(ValueError, match=r"deform_attn_backend='fast'.*lean, .*reference"):
        ops.set_default_backend("fast")
    with pytest.raises(ValueError, match=r"deform_attn_backend='fast'.*lean, .*reference"):
        ops.set_default_backend("fast", bev_attention())
    monkeypatch.setenv("BEVFORMER_MSDA", "fast")
    with pytest.raises(ValueError, match=r"BEVFORMER_MSDA='fast'.*lean, .*reference"):
        attend()


def test_unsupported_backend_is_refused_with_its_reason():
    ops.register_backend("picky", None, lambda value, locations: "it is Monday")
    with pytest.raises(ValueError, match="'picky', but it is Monday"):
        attend("picky")


def test_registering_a_name_twice_is_refused():
    with pytest.raises(ValueError, match="already registered"):
        ops.register_backend("lean", None, None)


def automatic_choice(device_type, unsupported=()):
    """Automatic choice for tensors on a device, if some backends do not support them."""

    class Tensor:
        device = torch.device(device_type)

    for name in backends._backends:
        reason = "no" if name in unsupported else None
        backends._backends[name] = ops.Backend(None, lambda *args, reason=reason: reason)
    return backends._automatic(Tensor, Tensor)


def test_automatic_choice():
    if "mmcv" not in backends._backends:
        ops.register_backend("mmcv", None, None)
    assert automatic_choice("cuda") == "mmcv"
    assert automatic_choice("cuda", {"mmcv"}) == "lean"
    assert automatic_choice("cpu", {"mmcv"}) == "lean"
    assert automatic_choice("cpu", {"mmcv", "lean"}) == "reference"


def test_automatic_choice_on_this_cpu_is_lean(monkeypatch):
    attended = []
    lean = backends.get_backend("lean")

    def spy(*args):
        attended.append(1)
        return lean.attend(*args)

    monkeypatch.setitem(backends._backends, "lean", ops.Backend(spy, lean.unsupported_reason))
    attend()
    assert attended == [1]


def test_exported_graph_consists_of_standard_operators():
    value = torch.randn(1, 4, 1, 2)
    traced = torch.jit.trace(lambda value: attend(value=value), (value,))
    kinds = {node.kind() for node in traced.inlined_graph.nodes()}
    assert "aten::grid_sampler" in kinds
    assert "prim::PythonOp" not in kinds


def test_choice_is_logged_once_per_backend(caplog, monkeypatch):
    # An earlier run in this process may have attached the package's own logger to its log.
    monkeypatch.setattr(backends, "_logger", logging.getLogger("test_backends"))
    with caplog.at_level(logging.INFO, logger="test_backends"):
        for backend in ("lean", "lean", "reference", "lean"):
            attend(backend)
    assert [record.getMessage() for record in caplog.records] == [
        "deformable attention on cpu: backend lean",
        "deformable attention on cpu: backend reference",
    ]


@pytest.mark.parametrize("packed", [False, True])
def test_public_functions_call_the_backend_directly(packed):
    """No function between an attention module and the backend but the one it calls."""
    callers = []

    def attend(value, shapes, locations, weights, rows_per_map):
        frame = sys._getframe(1)
        while frame is not None:
            callers.append(frame.f_code.co_name)
            frame = frame.f_back
        return locations.new_zeros(locations.shape[0], 2)

    ops.register_backend("stack", attend, lambda value, locations: None)
    value, locations, weights = (
        torch.zeros(1, 4, 1, 2),
        torch.zeros(3, 1, 1, 1, 2),
        torch.ones(3, 1, 1, 1),
    )
    if packed:
        ops.packed_multi_scale_deformable_attn(value, [(2, 2)], locations, weights, (3,), "stack")
    else:
        ops.multi_scale_deformable_attn(value, [(2, 2)], locations[None], weights[None], "stack")
    assert callers[1] == "test_public_functions_call_the_backend_directly"

"""Which backend computes: argument, environment variable, default of the process, automatic."""

import logging

import pytest
import torch

from projects.bevformer import ops
from projects.bevformer.ops import backends

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """No choice from outside, and none left behind."""
    monkeypatch.delenv(backends.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr(backends, "_default_name", None)
    monkeypatch.setattr(backends, "_backends", dict(backends._backends))
    monkeypatch.setattr(backends, "_logged", set())


@pytest.fixture
def calls():
    """Names of the recording backends "one" and "two" that were called, in order."""
    names = []
    for name in ("one", "two"):

        def attend(value, shapes, locations, weights, rows_per_map, name=name):
            names.append(name)
            return locations.new_zeros(locations.shape[0], value.shape[2] * value.shape[3])

        ops.register_backend(name, attend, lambda value, locations: None)
    return names


def attend(backend=None, value=None):
    value = torch.zeros(1, 4, 1, 2) if value is None else value
    return ops.multi_scale_deformable_attn(
        value, [(2, 2)], torch.zeros(1, 3, 1, 1, 1, 2), torch.ones(1, 3, 1, 1, 1), backend
    )


def test_argument_before_environment_before_default(calls, monkeypatch):
    ops.set_default_backend("one")
    attend()
    monkeypatch.setenv("BEVFORMER_MSDA", "two")
    attend()
    attend("one")
    monkeypatch.delenv("BEVFORMER_MSDA")
    ops.set_default_backend(None)
    attend()
    assert calls == ["one", "two", "one"]  # the last call was the automatic choice


def test_unknown_names_are_refused_and_the_known_ones_told(monkeypatch):
    with pytest.raises(ValueError, match=r"backend='fast'.*lean, .*reference"):
        attend("fast")
    with pytest.raises(ValueError, match=r"deform_attn_backend='fast'.*lean, .*reference"):
        ops.set_default_backend("fast")
    monkeypatch.setenv("BEVFORMER_MSDA", "fast")
    with pytest.raises(ValueError, match=r"BEVFORMER_MSDA='fast'.*lean, .*reference"):
        attend()


def test_a_named_backend_that_cannot_compute_says_why():
    ops.register_backend("picky", None, lambda value, locations: "it is Monday")
    with pytest.raises(ValueError, match="'picky', but it is Monday"):
        attend("picky")


def test_a_name_is_given_once():
    with pytest.raises(ValueError, match="registered already"):
        ops.register_backend("lean", None, None)


def choice(device_type, refusing=()):
    """Automatic choice for tensors on a device, when some backends refuse."""

    class Tensor:
        device = torch.device(device_type)

    for name in backends._backends:
        reason = "no" if name in refusing else None
        backends._backends[name] = backends.Backend(None, lambda *args, reason=reason: reason)
    return backends._automatic(Tensor, Tensor)


def test_automatic_choice():
    if "mmcv" not in backends._backends:
        ops.register_backend("mmcv", None, None)
    assert choice("cuda") == "mmcv"
    assert choice("cuda", {"mmcv"}) == "lean"
    assert choice("cpu", {"mmcv"}) == "lean"
    assert choice("cpu", {"mmcv", "lean"}) == "reference"


def test_on_this_machines_cpu_lean_is_chosen(monkeypatch):
    attended = []
    lean = backends._backends["lean"]
    spy = backends.Backend(lambda *args: attended.append(1) or lean.attend(*args), lean.why_not)
    monkeypatch.setitem(backends._backends, "lean", spy)
    attend()
    assert attended == [1]


def test_an_exported_graph_holds_standard_operators():
    value = torch.randn(1, 4, 1, 2)
    traced = torch.jit.trace(lambda value: attend(value=value), (value,))
    kinds = {node.kind() for node in traced.inlined_graph.nodes()}
    assert "aten::grid_sampler" in kinds
    assert "prim::PythonOp" not in kinds


def test_a_choice_is_logged_once(caplog, monkeypatch):
    # The package's own logger may have been given to a run's log by then.
    monkeypatch.setattr(backends, "_logger", logging.getLogger("test_backends"))
    with caplog.at_level(logging.INFO, logger="test_backends"):
        for backend in ("lean", "lean", "reference", "lean"):
            attend(backend)
    assert [record.getMessage() for record in caplog.records] == [
        "deformable attention on cpu: backend lean",
        "deformable attention on cpu: backend reference",
    ]

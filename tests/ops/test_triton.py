"""The Triton backend without a GPU: interpreted, and compiled for a GPU."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from projects.bevformer import ops
from projects.bevformer.ops import deform_attn_triton

ROOT = Path(__file__).parents[2]
# All kinds of places on four levels, uneven rows per map, and the cases that have their own branch.
SELECTION = (
    "triton and (values_and_gradients and map0-4 or one_sample or bfloat16 or nan_location "
    "or no_queries or packed_rows)"
)


def attend(value, locations):
    weights = torch.ones(locations.shape[:-1])
    return ops.multi_scale_deformable_attn(value, [(2, 2)], locations, weights, "triton")


def test_cpu_tensors_are_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    installed = importlib.util.find_spec("triton") is not None
    with pytest.raises(ValueError, match="CUDA devices" if installed else "not installed"):
        attend(torch.zeros(1, 4, 1, 2), torch.zeros(1, 3, 1, 1, 1, 2))


@pytest.mark.parametrize(
    ("channels", "value_dtype", "location_dtype", "reason"),
    [
        (2, torch.float64, torch.float32, "value in torch.float64"),
        (2, torch.float32, torch.float64, "locations in float32"),
        (3, torch.float32, torch.float32, "power of two"),
    ],
)
def test_unsupported_tensors_are_refused(
    monkeypatch, channels, value_dtype, location_dtype, reason
):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    value = torch.zeros(1, 4, 1, channels, dtype=value_dtype)
    with pytest.raises(ValueError, match=reason):
        attend(value, torch.zeros(1, 3, 1, 1, 1, 2, dtype=location_dtype))


@pytest.fixture
def reason_on_a_gpu(monkeypatch):
    """Function: why Triton is unsupported on a fake GPU of a machine that has everything it needs."""
    monkeypatch.setattr(deform_attn_triton.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(deform_attn_triton.os.path, "isfile", lambda path: True)
    monkeypatch.setattr(deform_attn_triton.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delenv("CC", raising=False)
    cached = (deform_attn_triton._missing_compiler, deform_attn_triton._unsupported_gpu)

    def reason():
        for function in cached:
            function.cache_clear()
        cuda = torch.device("cuda", 0)
        value = SimpleNamespace(shape=(1, 4, 1, 32), device=cuda, dtype=torch.float32)
        return deform_attn_triton.unsupported_reason(value, SimpleNamespace(dtype=torch.float32))

    yield reason
    for function in cached:
        function.cache_clear()


def test_missing_requirement_is_named(reason_on_a_gpu, monkeypatch):
    assert reason_on_a_gpu() is None
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
        assert "compute capability 7.0 or newer, this one has 6.1" in reason_on_a_gpu()
    with monkeypatch.context() as patch:
        patch.setattr(deform_attn_triton.os.path, "isfile", lambda path: False)
        assert "Python.h" in reason_on_a_gpu()
    monkeypatch.setattr(deform_attn_triton.shutil, "which", lambda name: None)
    assert "install gcc or clang" in reason_on_a_gpu()
    monkeypatch.setenv("CC", "icc")
    assert "names icc" in reason_on_a_gpu()


def test_interpreter_needs_no_compiler(reason_on_a_gpu, monkeypatch):
    monkeypatch.setattr(deform_attn_triton.shutil, "which", lambda name: None)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert reason_on_a_gpu() is None


def test_compiler_check_is_cached(reason_on_a_gpu, monkeypatch):
    assert reason_on_a_gpu() is None
    monkeypatch.setattr(deform_attn_triton.shutil, "which", lambda name: None)
    assert deform_attn_triton._missing_compiler() is None


@pytest.mark.slow
def test_agrees_with_the_other_backends_when_interpreted():
    pytest.importorskip("triton")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests/ops/test_deform_attn.py", "-k", SELECTION],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout
    assert "no tests ran" not in run.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ["forward_kernel", "backward_kernel"])
def test_kernels_compile_for_a_gpu(name):
    """The interpreter accepts code that the compiler rejects; compiling needs no GPU."""
    pytest.importorskip("triton")
    # In a subprocess: Triton decides on import whether its functions are interpreted.
    script = f"""
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from projects.bevformer.ops import deform_attn_kernels

kernel = deform_attn_kernels.{name}
constants = dict(LEVELS=((8, 8, 0), (4, 4, 64)), HEADS=8, POINTS=4, CHANNELS=32, BLOCK=32)
types = dict(value="*bf16", map_of_row="*i32", num_pairs="i32", num_keys="i32")
types.update({{name: "constexpr" for name in constants}})
signature = {{name: types.get(name, "*fp32") for name in kernel.arg_names}}
places = {{(kernel.arg_names.index(name),): value for name, value in constants.items()}}
compiled = triton.compile(
    ASTSource(kernel, signature, places), target=GPUTarget("cuda", 90, 32)
)
assert compiled.asm["cubin"]
"""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr

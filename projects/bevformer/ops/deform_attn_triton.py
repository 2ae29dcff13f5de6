"""Multi-scale deformable attention as Triton kernels: one pass forward, one backward.

Value in float32, bfloat16 or float16, sums in float32. The gradient of the value is accumulated by
float32 atomic additions; their order, and with it the last bits, changes from run to run. Triton
comes with torch for CUDA; the user compiles nothing.

State of testing: values and gradients agree with the other backends under Triton's interpreter, and
the kernels compile for sm_90. **They have never run on a GPU**, so neither their speed nor their
block sizes are measured.

Shape legend: V maps, S keys, M heads, C channels per head, R rows, L levels, P points.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import shutil
import sysconfig
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from projects.bevformer.ops.backends import LevelShapes, RowsPerMap

# (row, head) pairs per program, and its warps.
BLOCK_PAIRS = 32
NUM_WARPS = 4
# Oldest compute capability that Triton generates code for.
_OLDEST_GPU = (7, 0)


def unsupported_reason(value: Tensor, locations: Tensor) -> str | None:
    """None, or why these tensors are not supported on this machine."""
    channels = value.shape[-1]
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: it comes with torch >= 2 for CUDA"
    if os.environ.get("TRITON_INTERPRET") != "1":
        if value.device.type != "cuda":
            return f"Triton runs on CUDA devices, and the value is on {value.device}"
        reason = _missing_compiler() or _unsupported_gpu(value.device)
        if reason is not None:
            return reason
    if value.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"its kernels do not take a value in {value.dtype}"
    if locations.dtype != torch.float32:
        return f"its kernels take sampling locations in float32, not {locations.dtype}"
    if channels & (channels - 1):
        return f"its kernels take a power of two of channels per head, not {channels}"
    return None


@functools.lru_cache(maxsize=None)
def _missing_compiler() -> str | None:
    """None, or what Triton lacks to compile its launcher, a C extension (`triton.runtime.build`)."""
    compiler = os.environ.get("CC")
    if compiler is None:
        if not (shutil.which("gcc") or shutil.which("clang")):
            return "Triton needs a C compiler: install gcc or clang, or name one in the variable CC"
    elif shutil.which(compiler) is None:
        return (
            f"Triton needs a C compiler, and the variable CC names {compiler}, which is not found"
        )
    folder = sysconfig.get_path("include", "posix_prefix")
    folders = [folder, *os.environ.get("CPATH", "").split(os.pathsep)]
    if not any(os.path.isfile(os.path.join(path, "Python.h")) for path in folders if path):
        return f"Triton needs Python.h, which is not in {folder}: install python3-dev"
    return None


@functools.lru_cache(maxsize=None)
def _unsupported_gpu(device: torch.device) -> str | None:
    """None, or why Triton generates no code for this GPU."""
    capability = torch.cuda.get_device_capability(device)
    if capability < _OLDEST_GPU:
        return "Triton needs a GPU of compute capability {}.{} or newer, this one has {}.{}".format(
            *_OLDEST_GPU, *capability
        )
    return None


def attend(
    value: Tensor, shapes: LevelShapes, locations: Tensor, weights: Tensor, rows_per_map: RowsPerMap
) -> Tensor:
    """`packed_multi_scale_deformable_attn` with checked arguments."""
    map_of_row = _map_of_row(rows_per_map, locations.device)
    arguments = (value, locations, weights, map_of_row, tuple(shapes))
    return _TritonAttention.apply(*arguments)  # type: ignore[no-untyped-call, no-any-return]


def _map_of_row(rows_per_map: RowsPerMap, device: torch.device) -> Tensor:
    """(R,) int32, filled on the device: no copy from the host, no sync."""
    if len(set(rows_per_map)) == 1:
        maps = torch.arange(len(rows_per_map), dtype=torch.int32, device=device)
        return maps[:, None].expand(-1, rows_per_map[0]).contiguous().view(-1)
    numbers = (
        torch.full((rows,), index, dtype=torch.int32, device=device)
        for index, rows in enumerate(rows_per_map)
    )
    return torch.cat(tuple(numbers))


class _TritonAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        value: Tensor,
        locations: Tensor,
        weights: Tensor,
        map_of_row: Tensor,
        shapes: LevelShapes,
    ) -> Tensor:
        value, locations, weights = (t.contiguous() for t in (value, locations, weights))
        ctx.save_for_backward(value, locations, weights, map_of_row)
        ctx.shapes = shapes
        rows, heads, channels = locations.shape[0], value.shape[2], value.shape[3]
        output = locations.new_empty(rows, heads * channels)
        _launch("forward_kernel", (value, locations, weights, map_of_row, output), shapes)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        value, locations, weights, _ = saved
        grad_value = torch.zeros_like(value, dtype=torch.float32)
        grad_locations, grad_weights = torch.empty_like(locations), torch.empty_like(weights)
        grads = (grad_value, grad_locations, grad_weights)
        _launch("backward_kernel", (*saved, grad_output.contiguous(), *grads), ctx.shapes)
        return grad_value.to(value.dtype), grad_locations, grad_weights, None, None


def _launch(kernel_name: str, tensors: tuple[Tensor, ...], shapes: LevelShapes) -> None:
    """Launch a kernel on tensors; the first two are value and locations."""
    from projects.bevformer.ops import deform_attn_kernels  # imports Triton, which may be missing

    value, locations = tensors[:2]
    _, keys, heads, channels = value.shape
    rows, _, levels, points, _ = locations.shape
    pairs = rows * heads
    if pairs == 0:
        return
    starts = [sum(h * w for h, w in shapes[:level]) for level in range(levels)]
    on_device = torch.cuda.device(value.device) if value.is_cuda else contextlib.nullcontext()
    with on_device:
        getattr(deform_attn_kernels, kernel_name)[(-(-pairs // BLOCK_PAIRS),)](
            *tensors,
            pairs,
            keys,
            LEVELS=tuple((h, w, start) for (h, w), start in zip(shapes, starts)),
            HEADS=heads,
            POINTS=points,
            CHANNELS=channels,
            BLOCK=BLOCK_PAIRS,
            num_warps=NUM_WARPS,
        )

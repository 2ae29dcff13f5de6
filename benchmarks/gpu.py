"""All checks and measurements that need a GPU, in one run of less than ten minutes.

    python benchmarks/gpu.py [--quick] [--mmcv-csrc mmcv/ops/csrc] [--out work_dirs/benchmarks/gpu.json]

Needs torch with Triton. Sections that need more (OpenMMLab's packages, the source of mmcv's operators
and a CUDA compiler) are skipped where it is not there. Every section writes what it found into one JSON
file; one that fails is recorded with its error, the others go on, and the exit code is 1. With
`--device cpu` everything that can run on a CPU runs there.
"""

import argparse
import contextlib
import functools
import importlib.util
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import bench_msda  # noqa: E402
import common  # noqa: E402
import torch  # noqa: E402

from projects.bevformer import ops  # noqa: E402

# Binding for mmcv's two CUDA entry points, which mmcv itself reaches through its whole extension.
MMCV_BINDING = """
#include <torch/extension.h>
using at::Tensor;
Tensor ms_deform_attn_cuda_forward(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                   const Tensor&, const int);
void ms_deform_attn_cuda_backward(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                  const Tensor&, const Tensor&, Tensor&, Tensor&, Tensor&, const int);
PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("ms_deform_attn_forward", &ms_deform_attn_cuda_forward);
  m.def("ms_deform_attn_backward", &ms_deform_attn_cuda_backward);
}
"""


class Skip(Exception):
    """A section cannot run here, and that is no failure."""


def mmcv_operator(context):
    """Make mmcv's CUDA operator a backend: of the installed mmcv, or built from its source."""
    if context.device.type != "cuda":
        raise Skip("needs a CUDA device")
    if importlib.util.find_spec("mmcv") is not None:
        from projects.bevformer import compat

        if compat.mmcv_has_cuda_operators():
            from projects.bevformer import model  # noqa: F401, registers the backend

            return {"from": "the installed mmcv-full"}
    if context.mmcv_csrc is None:
        raise Skip("mmcv has no CUDA operators here, and --mmcv-csrc was not given")
    extension = _build_mmcv_operator(Path(context.mmcv_csrc))
    ops.register_backend(
        "mmcv_built",
        functools.partial(_attend_by_extension, extension),
        lambda value, locations: None if value.is_cuda else "it needs a CUDA device",
    )
    return {"from": str(context.mmcv_csrc)}


def _build_mmcv_operator(csrc):
    from torch.utils.cpp_extension import load

    source = csrc / "pytorch" / "cuda" / "ms_deform_attn_cuda.cu"
    if not source.is_file():
        raise FileNotFoundError(f"--mmcv-csrc {csrc}: there is no {source}")
    major, minor = torch.cuda.get_device_capability()
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", f"{major}.{minor}")
    folder = tempfile.mkdtemp()
    binding = Path(folder) / "binding.cpp"
    binding.write_text(MMCV_BINDING)
    return load(
        "mmcv_msda",
        [str(binding), str(source)],
        extra_include_paths=[str(csrc / "common"), str(csrc / "common" / "cuda")],
        extra_cflags=["-DMMCV_WITH_CUDA"],
        extra_cuda_cflags=["-DMMCV_WITH_CUDA", "-O3"],
        build_directory=folder,
    )


class _ExtensionAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, extension, *tensors):
        ctx.extension = extension
        ctx.save_for_backward(*tensors)
        return extension.ms_deform_attn_forward(*tensors, tensors[0].shape[0])

    @staticmethod
    def backward(ctx, grad_output):
        tensors = ctx.saved_tensors
        value, _, _, locations, weights = tensors
        grads = [torch.zeros_like(tensor) for tensor in (value, locations, weights)]
        ctx.extension.ms_deform_attn_backward(
            *tensors, grad_output.contiguous(), *grads, value.shape[0]
        )
        return None, grads[0], None, None, grads[1], grads[2]


def _attend_by_extension(extension, value, shapes, locations, weights, rows_per_map):
    device = value.device
    areas = torch.tensor([h * w for h, w in shapes])
    starts = (areas.cumsum(0) - areas).to(device)
    outputs = []
    per_map = zip(
        value.float().split(1), locations.split(rows_per_map), weights.split(rows_per_map)
    )
    if len(set(rows_per_map)) == 1:
        rows = rows_per_map[0]
        per_map = [(value.float(), locations, weights)]
    for maps, places, factors in per_map:
        rows = places.shape[0] // maps.shape[0]
        output = _ExtensionAttention.apply(
            extension,
            maps.contiguous(),
            torch.tensor(shapes, device=device),
            starts,
            places.reshape(-1, rows, *places.shape[1:]).contiguous(),
            factors.float().reshape(-1, rows, *factors.shape[1:]).contiguous(),
        )
        outputs.append(output.flatten(0, 1))
    return torch.cat(outputs)


def correctness(context):
    """Output and gradients of every backend against the reference in float64 on the CPU."""
    cases = {
        "four_levels": bench_msda.Case(((16, 24), (8, 12), (4, 6), (2, 3)), 8, (70, 70, 70)),
        "packed": bench_msda.Case(((16, 24), (8, 12)), 5, (70, 0, 33), packed=True),
    }
    result, failures = {}, []
    for name, case in cases.items():
        for dtype in (torch.float32, torch.bfloat16):
            for backend in bench_msda.usable_backends(context.device, dtype):
                key = f"{name} {str(dtype).split('.')[1]} {backend}"
                try:
                    errors = _errors(case, backend, dtype, context.device)
                except Exception as error:  # noqa: BLE001, the other backends are still of interest
                    failures.append(f"{key}: {type(error).__name__}: {error}")
                    continue
                result[key] = errors
                tolerance = 1e-5 if dtype == torch.float32 else 2**-8
                if not max(errors.values()) < tolerance:  # also if it is not a number
                    failures.append(f"{key}: {errors}")
    if failures:
        raise AssertionError("; ".join(failures) + f"; all: {result}")
    return result


def _errors(case, backend, dtype, device):
    """||result - expected|| / ||expected|| of the output and the three gradients."""
    value, locations, weights = bench_msda.make_inputs(case, torch.device("cpu"), dtype)
    rows = [
        torch.cat([tensor[v, :count] for v, count in enumerate(case.rows)])
        for tensor in (locations, weights)
    ]

    def run(backend, *tensors):
        tensors = [tensor.detach().requires_grad_() for tensor in tensors]
        output = ops.packed_multi_scale_deformable_attn(
            tensors[0], case.shapes, *tensors[1:], case.rows, backend=backend
        )
        grad = torch.linspace(-1, 1, output.numel(), dtype=output.dtype, device=output.device)
        return [output, *torch.autograd.grad(output, tensors, grad.view_as(output))]

    expected = run("reference", *(tensor.double() for tensor in (value, *rows)))
    results = run(backend, *(tensor.to(device) for tensor in (value, *rows)))
    return {
        name: ((result.cpu().double() - want).norm() / want.norm()).item()
        for name, result, want in zip(
            ("output", "value", "locations", "weights"), results, expected
        )
    }


def msda_time(context):
    """`bench_msda` for all backends, value in float32 and in bfloat16."""
    if context.device.type == "cuda":
        names = bench_msda.QUICK if context.quick else list(bench_msda.CASES)
    else:
        names = bench_msda.QUICK[-1:]
    rounds = 2 if context.quick else 20
    result = {}
    for dtype in (torch.float32, torch.bfloat16)[: 2 if context.device.type == "cuda" else 1]:
        backends = bench_msda.usable_backends(context.device, dtype)
        measured = bench_msda.run(names, context.device, backends, rounds, dtype)
        result[measured["value_dtype"]] = measured["cases"]
        print(measured["value_dtype"])
        print(bench_msda.ratio_table(measured))
    return result


def msda_memory(context):
    """Peak of allocated bytes, forward and backward, beyond the inputs."""
    if context.device.type != "cuda":
        raise Skip("needs a CUDA device; bench_msda counts on a CPU")
    result = {}
    for name in bench_msda.QUICK if context.quick else ("sca_tiny", "sca_base", "sca_base_packed"):
        case = bench_msda.CASES[name]
        inputs = bench_msda.make_inputs(case, context.device)
        backends = bench_msda.usable_backends(context.device)
        functions = bench_msda.contenders(case, inputs, backends, bench_msda.fallback())
        result[name] = {}
        for backend, (function, tensors) in functions.items():
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            bench_msda.forward_and_backward(function, tensors)
            torch.cuda.synchronize()
            result[name][backend] = torch.cuda.max_memory_allocated() - before
    return result


def triton_blocks(context):
    """Times of the Triton backend for other block sizes and numbers of warps."""
    if "triton" not in bench_msda.usable_backends(context.device):
        raise Skip("the Triton backend does not run here")
    from projects.bevformer.ops import deform_attn_triton

    names = (
        ("sca_tiny",) if context.quick else ("sca_tiny", "sca_base_packed", "tsa_200", "dec_200")
    )
    chosen = deform_attn_triton.BLOCK_PAIRS, deform_attn_triton.NUM_WARPS
    result = {}
    try:
        for pairs, warps in [(16, 2), (16, 4), (32, 2), (32, 4), (32, 8), (64, 4), (64, 8)]:
            deform_attn_triton.BLOCK_PAIRS, deform_attn_triton.NUM_WARPS = pairs, warps
            for name in names:
                case = bench_msda.CASES[name]
                inputs = bench_msda.make_inputs(case, context.device)
                functions = bench_msda.contenders(case, inputs, ["triton"], None)
                function, tensors = functions["triton"]
                runs = {
                    "forward": functools.partial(_without_grad, function, tensors),
                    "forward_backward": functools.partial(
                        bench_msda.forward_and_backward, function, tensors
                    ),
                }
                result[f"{name} pairs={pairs} warps={warps}"] = common.time_in_turns(
                    runs, context.device, rounds=20
                )
    finally:
        deform_attn_triton.BLOCK_PAIRS, deform_attn_triton.NUM_WARPS = chosen
    return result


@torch.no_grad()
def _without_grad(function, tensors):
    return function(*tensors)


def host_synchronisation(context):
    """No backend makes the host wait for the GPU, forward or backward."""
    if context.device.type != "cuda":
        raise Skip("needs a CUDA device")
    case = bench_msda.CASES["sca_tiny_packed"]
    inputs = bench_msda.make_inputs(case, context.device)
    backends = [n for n in bench_msda.usable_backends(context.device) if n != "mmcv_built"]
    functions = bench_msda.contenders(case, inputs, backends, None)
    result = {}
    for name in backends:
        function, tensors = functions[name]
        bench_msda.forward_and_backward(function, tensors)
        torch.cuda.set_sync_debug_mode("error")
        try:
            bench_msda.forward_and_backward(function, tensors)
            result[name] = "none"
        except RuntimeError as error:
            result[name] = str(error).splitlines()[0]
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waiting = {name: reason for name, reason in result.items() if reason != "none"}
    if waiting:
        raise AssertionError(f"the host waits in {waiting}")
    return result


def train_step(context):
    """Time and memory of a training step and of inference: `benchmarks/train_step.py`."""
    if importlib.util.find_spec("mmdet3d") is None:
        raise Skip("needs OpenMMLab's packages")
    if importlib.util.find_spec("train_step") is None:
        raise Skip("there is no benchmarks/train_step.py")
    import train_step

    return train_step.measure(context.device, quick=context.quick)


# In this order; the cheap and the decisive first.
SECTIONS = (
    mmcv_operator,
    correctness,
    host_synchronisation,
    msda_time,
    msda_memory,
    train_step,
    triton_blocks,
)


def run_sections(sections, context, out):
    """Run sections one after the other; the file is complete after each.

    Args:
        sections: functions of the context; they return what goes into JSON, or raise.
        context: parsed arguments, with `device` a torch.device.
        out: path of the JSON file.

    Returns:
        Names of the sections that failed.
    """
    result = {**common.environment(context.device), "quick": context.quick, "sections": {}}
    failed = []
    for section in sections:
        name, start = section.__name__, time.perf_counter()
        try:
            entry = {"status": "done", "result": section(context)}
        except Skip as reason:
            entry = {"status": "skipped", "reason": str(reason)}
        except Exception as error:  # noqa: BLE001, one section must not stop the others
            entry = {"status": "failed", "error": f"{type(error).__name__}: {error}"}
            entry["traceback"] = traceback.format_exc()
            failed.append(name)
        entry["seconds"] = round(time.perf_counter() - start, 1)
        result["sections"][name] = entry
        common.write_json(out, result)
        note = entry.get("reason") or entry.get("error") or ""
        print(f"{name}: {entry['status']} in {entry['seconds']} s {note[:500]}", flush=True)
    return failed


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="[%(default)s]")
    parser.add_argument("--quick", action="store_true", help="few cases: tries the script out")
    parser.add_argument("--mmcv-csrc", help="mmcv/ops/csrc of mmcv's source, to build its operator")
    parser.add_argument("--out", default="work_dirs/benchmarks/gpu.json", help="[%(default)s]")
    return parser.parse_args(argv)


def main():
    context = parse_args()
    context.device = torch.device(context.device)
    on_device = contextlib.nullcontext()
    if context.device.type == "cuda":
        on_device = torch.cuda.device(context.device)
    else:
        torch.set_num_threads(1)
    with on_device:
        failed = run_sections(SECTIONS, context, context.out)
    print(f"result: {context.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

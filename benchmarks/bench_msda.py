"""Deformable attention: every backend against mmcv's Python fallback, on the shapes of the networks.

    python benchmarks/bench_msda.py [--quick] [--cases sca_tiny dec_200] [--threads 1]

Prints a Markdown table of ratios (fallback / backend: above 1 is faster or smaller) and writes JSON.
"""

import argparse
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Tuple

sys.path.insert(0, str(Path(__file__).resolve().parent))

import common  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

from projects.bevformer import ops  # noqa: E402
from projects.bevformer.ops.backends import get_backend  # noqa: E402

HEADS, CHANNELS = 8, 32
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-2}


@dataclass(frozen=True)
class Case:
    """Shapes of one attention.

    Attributes:
        shapes: (h, w) of the levels.
        points: samples per head and level.
        rows: queries of each map; the fallback pads all maps to the fullest.
        packed: give the backends the rows without padding.
    """

    shapes: Tuple[Tuple[int, int], ...]
    points: int
    rows: Tuple[int, ...]
    packed: bool = False


TINY, SMALL = ((15, 25),), ((23, 40),)
BASE = ((116, 200), (58, 100), (29, 50), (15, 25))
CASES = {
    "sca_tiny": Case(TINY, 8, (590,) * 6),
    "sca_tiny_packed": Case(TINY, 8, common.NUSCENES_VISIBLE[50], packed=True),
    "sca_small": Case(SMALL, 8, (5371,) * 6),
    "sca_small_packed": Case(SMALL, 8, common.NUSCENES_VISIBLE[150], packed=True),
    "sca_base_1_camera": Case(BASE, 8, (9544,)),
    "sca_base": Case(BASE, 8, (9544,) * 6),
    "sca_base_packed": Case(BASE, 8, common.NUSCENES_VISIBLE[200], packed=True),
    "tsa_50": Case(((50, 50),), 4, (50 * 50,) * 2),
    "tsa_150": Case(((150, 150),), 4, (150 * 150,) * 2),
    "tsa_200": Case(((200, 200),), 4, (200 * 200,) * 2),
    "dec_50": Case(((50, 50),), 4, (900,)),
    "dec_200": Case(((200, 200),), 4, (900,)),
}
QUICK = ("sca_tiny", "sca_tiny_packed", "tsa_50", "dec_50")
# The fallback takes several GiB for these.
LARGE = ("sca_base", "sca_base_packed")


def stacked_grid_sample(value, shapes, locations, weights):
    """What mmcv's fallback does, for machines without mmcv: all samples stacked, then summed."""
    maps, queries, heads, levels, points, _ = locations.shape
    channels = value.shape[-1]
    grids = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # (V*M, Q, L, P, 2)
    samples, start = [], 0
    for level, (h, w) in enumerate(shapes):
        level_maps = value[:, start : start + h * w].flatten(2).transpose(1, 2)
        level_maps = level_maps.reshape(maps * heads, channels, h, w)
        samples.append(F.grid_sample(level_maps, grids[:, :, level], align_corners=False))
        start += h * w
    weights = weights.transpose(1, 2).reshape(maps * heads, 1, queries, levels * points)
    summed = (torch.stack(samples, dim=-2).flatten(-2) * weights).sum(-1)
    return summed.view(maps, heads * channels, queries).transpose(1, 2).contiguous()


def fallback():
    """mmcv's Python fallback, or its restatement where there is no mmcv."""
    try:
        from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch
    except ImportError:
        return stacked_grid_sample
    return lambda value, shapes, *rest: multi_scale_deformable_attn_pytorch(
        value, torch.tensor(shapes), *rest
    )


def make_inputs(case, device, value_dtype=torch.float32, seed=0):
    """Inputs as in the networks: reference points on a grid, offsets of a few cells, some outside.

    No sample lies within a hundredth of a cell from where the derivative jumps.

    Returns:
        value (V, S, M, C), locations (V, Q, M, L, P, 2) and weights (V, Q, M, L, P), Q of the fullest
        map.
    """
    generator = torch.Generator().manual_seed(seed)
    maps, queries, levels = len(case.rows), max(case.rows), len(case.shapes)
    keys = sum(h * w for h, w in case.shapes)
    value = torch.randn(maps, keys, HEADS, CHANNELS, generator=generator)
    columns = int(queries**0.5)
    index = torch.arange(queries)
    reference = torch.stack((index % columns, index // columns), dim=-1) / (queries / columns)
    size = torch.tensor([(w, h) for h, w in case.shapes]).view(levels, 1, 2)
    offsets = 3 * torch.randn(maps, queries, HEADS, levels, case.points, 2, generator=generator)
    pixels = reference.view(1, queries, 1, 1, 1, 2) * size + offsets - 0.5
    pixels = pixels.floor() + (pixels - pixels.floor()).clamp(0.01, 0.99)
    weights = torch.rand(maps, queries, HEADS, levels * case.points, generator=generator)
    weights = weights.softmax(dim=-1).view(maps, queries, HEADS, levels, case.points)
    locations = (pixels + 0.5) / size
    return value.to(device, value_dtype), locations.to(device), weights.to(device)


def usable_backends(device, value_dtype=torch.float32):
    """Names of the backends that can compute on a device."""
    value = torch.zeros(1, 1, 1, 2, dtype=value_dtype, device=device)
    locations = torch.zeros(1, 1, 1, 1, 2, device=device)
    return [
        name
        for name in ops.known_backends()
        if get_backend(name).unsupported_reason(value, locations) is None
    ]


def contenders(case, inputs, backends, baseline):
    """What is compared, each with leaf tensors of its own.

    Returns:
        name -> (function of three tensors, the three tensors); "fallback" is the first.
    """
    value, locations, weights = inputs
    if case.packed:
        packed = [
            torch.cat([tensor[v, :rows] for v, rows in enumerate(case.rows)])
            for tensor in (locations, weights)
        ]

    def plain(value, locations, weights):
        return baseline(value.to(locations.dtype), case.shapes, locations, weights)

    def by_backend(name):
        def attend(value, locations, weights):
            tensors = (value, case.shapes, locations, weights)
            if case.packed:
                return ops.packed_multi_scale_deformable_attn(*tensors, case.rows, backend=name)
            return ops.multi_scale_deformable_attn(*tensors, backend=name)

        return attend

    def leaves(*tensors):
        return tuple(tensor.detach().requires_grad_() for tensor in tensors)

    result = {"fallback": (plain, leaves(*inputs))}
    for name in backends:
        tensors = (value, *packed) if case.packed else inputs
        result[name] = (by_backend(name), leaves(*tensors))
    return result


def forward_and_backward(function, tensors):
    """Output and gradients of all three inputs; the gradient of the output is the output."""
    output = function(*tensors)
    return (output, *torch.autograd.grad(output, tensors, output.detach()))


def check(case, functions, tolerance):
    """Outputs and gradients agree with the fallback.

    Raises:
        AssertionError: they do not.
    """
    function, tensors = functions["fallback"]
    expected = forward_and_backward(function, tensors)
    filled = torch.cat(
        [torch.arange(rows) + v * max(case.rows) for v, rows in enumerate(case.rows)]
    )
    for name, (function, tensors) in list(functions.items())[1:]:
        results = forward_and_backward(function, tensors)
        for what, result, want in zip(
            ("output", "value", "locations", "weights"), results, expected
        ):
            if case.packed and what == "value":
                continue  # padded rows add to it
            if case.packed:
                want = want.flatten(0, 1)[filled.to(want.device)]
            error = ((result.float() - want.float()).norm() / want.float().norm()).item()
            assert error < tolerance, f"{name}: {what} is off by {error}"


def measure_time(case, device, backends, rounds, value_dtype=torch.float32):
    """Times of forward and of forward and backward.

    Returns:
        dict "forward", "forward_backward" -> name -> dict of milliseconds.

    Raises:
        AssertionError: a backend computes something else than the fallback.
    """
    inputs = make_inputs(case, device, value_dtype)
    functions = contenders(case, inputs, backends, fallback())
    check(case, functions, TOLERANCE[value_dtype])

    def forward(function, tensors):
        with torch.no_grad():
            function(*tensors)

    return {
        what: common.time_in_turns(
            {name: partial(run, *one) for name, one in functions.items()}, device, rounds
        )
        for what, run in (("forward", forward), ("forward_backward", forward_and_backward))
    }


def measure_memory(case, backends):
    """Bytes, counted on fake tensors (torch 2), so that large cases need no memory.

    Returns:
        name -> dict: peak_bytes of forward and backward, output and gradients included; saved_bytes
        for backward, and saved_bytes_beyond_inputs.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    maps, queries, levels = len(case.rows), max(case.rows), len(case.shapes)
    keys = sum(h * w for h, w in case.shapes)
    result = {}
    with FakeTensorMode():
        inputs = (
            torch.empty(maps, keys, HEADS, CHANNELS),
            torch.empty(maps, queries, HEADS, levels, case.points, 2),
            torch.empty(maps, queries, HEADS, levels, case.points),
        )
        functions = contenders(case, inputs, backends, stacked_grid_sample)
        for name, (function, tensors) in functions.items():
            saved, beyond = common.saved_bytes(partial(function, *tensors), tensors)
            result[name] = {
                "peak_bytes": common.peak_bytes(partial(forward_and_backward, function, tensors)),
                "saved_bytes": saved,
                "saved_bytes_beyond_inputs": beyond,
            }
    return result


def ratio_table(result):
    """Markdown: fallback / backend of every case."""
    header = [
        "case",
        "backend",
        "fallback forward, ms",
        "forward",
        "forward + backward",
        "peak memory",
    ]
    rows = []
    for name, case in result["cases"].items():
        forward, both = case["forward"], case["forward_backward"]
        for backend in list(forward)[1:]:
            memory = case.get("memory") or {}
            ratio = "-"
            if backend in memory:
                peak = memory["fallback"]["peak_bytes"] / memory[backend]["peak_bytes"]
                ratio = f"{peak:.1f}x"
            rows.append(
                [
                    name,
                    backend,
                    f"{forward['fallback']['median_ms']:.1f}",
                    f"{speedup(forward, backend):.1f}x",
                    f"{speedup(both, backend):.1f}x",
                    ratio,
                ]
            )
    return common.table(header, rows)


def speedup(times, backend):
    """Median of the fallback over that of a backend."""
    return times["fallback"]["median_ms"] / times[backend]["median_ms"]


def run(names, device, backends, rounds, value_dtype=torch.float32):
    """Measure cases.

    Returns:
        dict "environment", "value_dtype" and "cases": name -> forward, forward_backward, memory (None
        with torch < 2, and on a GPU, where gpu.py measures it).
    """
    cases = {}
    for name in names:
        case = CASES[name]
        cases[name] = measure_time(case, device, backends, rounds, value_dtype)
        # Fake tensors are those of torch 2. Backends that run on a CPU are written in PyTorch.
        can_count = device.type == "cpu" and hasattr(torch, "compile")
        cases[name]["memory"] = measure_memory(case, backends) if can_count else None
    return {
        "environment": common.environment(device),
        "value_dtype": str(value_dtype),
        "cases": cases,
    }


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few cases and rounds, under a minute")
    parser.add_argument("--cases", nargs="+", choices=CASES, help="[all but the large ones]")
    parser.add_argument("--large", action="store_true", help="also the cases that take many GiB")
    parser.add_argument("--backends", nargs="+", help="[all that run on the device]")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads [1]")
    parser.add_argument("--rounds", type=int, help="timed rounds on a CPU [20, quick: 5]")
    parser.add_argument("--out", default="work_dirs/benchmarks/msda.json", help="[%(default)s]")
    return parser.parse_args(argv)


def main():
    args = parse_args()
    torch.set_num_threads(args.threads)
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    default = QUICK if args.quick else [n for n in CASES if args.large or n not in LARGE]
    result = run(
        args.cases or default,
        device,
        args.backends or usable_backends(device, dtype),
        args.rounds or (5 if args.quick else 20),
        dtype,
    )
    common.write_json(args.out, result)
    print(ratio_table(result))
    print(f"\nfallback / backend, medians; {result['environment']['hardware']}; all: {args.out}")


if __name__ == "__main__":
    main()

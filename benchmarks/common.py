"""What the benchmarks share: clocks, byte counts, and descriptions of the machine.

Benchmarks compare things that run alternately in the same process, so that a busy machine slows all of
them down alike; compare the ratios.
"""

import datetime
import importlib.metadata
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# Queries that each camera of the real nuScenes rig sees (front, front right, front left, back, back left,
# back right), for the official range and four heights; BEV cells along one side -> numbers.
NUSCENES_VISIBLE = {
    50: (385, 469, 466, 590, 442, 451),
    100: (1533, 1882, 1870, 2382, 1772, 1801),
    150: (3452, 4241, 4213, 5371, 3988, 4056),
    200: (6137, 7533, 7490, 9544, 7090, 7211),
    300: (13808, 16950, 16850, 21481, 15948, 16224),
}


def environment(device):
    """Date, hardware, versions and commit, for the head of a result."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("triton", "mmcv-full", "mmdet3d"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    hardware = {"cpu": _cpu_name(), "threads": torch.get_num_threads()}
    if device.type == "cuda":
        hardware["gpu"] = torch.cuda.get_device_name(device)
        hardware["gpu_bytes"] = torch.cuda.get_device_properties(device).total_memory
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "hardware": hardware,
        "versions": versions,
    }


def _cpu_name():
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor()
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{names[0].split(':')[1].strip()}, {len(names)} logical cores" if names else ""


def _commit():
    """Short hash, with a + if files differ from it; None outside a git checkout."""
    try:
        git = subprocess.run(
            ["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True
        )
    except FileNotFoundError:
        return None
    return git.stdout.strip() or None


def time_in_turns(functions, device, rounds):
    """Milliseconds of each function.

    On a CPU the functions run one after the other, round after round. With one thread the clock is
    CPU time, which leaves out the time that other processes take; else it is wall time. On a GPU
    `triton.testing.do_bench` times each with events and a flushed L2 cache.

    Args:
        functions: name -> function without arguments.
        device: torch.device they run on.
        rounds: on a CPU, timed rounds after one to warm up.

    Returns:
        name -> dict with median_ms and the quartiles q1_ms, q3_ms.
    """
    if device.type == "cuda":
        from triton.testing import do_bench

        quartiles = {
            name: do_bench(function, quantiles=[0.25, 0.5, 0.75])
            for name, function in functions.items()
        }
    else:
        clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
        times = {name: [] for name in functions}
        for number in range(rounds + 1):
            for name, function in functions.items():
                start = clock()
                function()
                if number > 0:
                    times[name].append((clock() - start) * 1000)
        quartiles = {
            name: statistics.quantiles(values, n=4, method="inclusive")
            for name, values in times.items()
        }
    return {
        name: dict(zip(("q1_ms", "median_ms", "q3_ms"), values))
        for name, values in quartiles.items()
    }


def saved_bytes(function, inputs):
    """Bytes that autograd keeps for the backward pass of a function.

    Args:
        function: returns a tensor that requires a gradient.
        inputs: its input tensors.

    Returns:
        (all, those beyond the inputs' own memory).
    """
    storages = {}

    def storage_of(tensor):
        return getattr(tensor, "untyped_storage", tensor.storage)()  # torch 2 renamed it

    def pack(tensor):
        storage = storage_of(tensor)
        storages[storage._cdata] = storage.size() * storage.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = function()  # keeps the storages, and so their names, alive
    own = {storage_of(tensor)._cdata for tensor in inputs}
    beyond = sum(size for name, size in storages.items() if name not in own)
    del output
    return sum(storages.values()), beyond


def peak_bytes(function):
    """Most bytes of tensors that were alive at once inside a function, beyond those that were before.

    Counted by the life of storages after every operator, the same for real and for fake tensors; what
    operators allocate and free inside themselves is not seen. Needs torch 2.
    """
    from torch.multiprocessing.reductions import StorageWeakRef
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_flatten

    # Names of storages are addresses; a reference kept here keeps its address from being given again.
    alive, before = {}, {}
    peak = 0

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            nonlocal peak
            output = operator(*args, **(kwargs or {}))
            for tensor in tree_flatten((args, kwargs))[0]:
                if isinstance(tensor, torch.Tensor):
                    reference = StorageWeakRef(tensor.untyped_storage())
                    if reference.cdata not in alive:
                        before[reference.cdata] = reference
            for reference in [r for r, _ in alive.values() if r.expired()]:
                del alive[reference.cdata]
            for tensor in tree_flatten(output)[0]:
                if isinstance(tensor, torch.Tensor):
                    storage = tensor.untyped_storage()
                    reference = StorageWeakRef(storage)
                    if reference.cdata not in before:
                        alive[reference.cdata] = (reference, storage.nbytes())
            peak = max(peak, sum(size for _, size in alive.values()))
            return output

    with Count():
        function()
    return peak


def table(header, rows):
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def write_json(path, result):
    """Write a result, the folder with it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")

"""Whole training steps and test streams on a pretended CUDA device. Needs no GPU and takes no memory.

    python benchmarks/fake_cuda.py . --list
    python benchmarks/fake_cuda.py . --only '^tiny train fp32 b1$' --verbose
    python benchmarks/fake_cuda.py . --only '^(tiny|small|base) train fp32 b1$' --estimate

Each case builds the detector of a recipe on the CPU, moves it to `cuda:0` as the tools do, and then runs
either TrainingModel.train_step with the optimizer hook (forward, matching, backward, clipping, AdamW or
GradScaler) or a stream of four test frames. A case takes 3 to 60 seconds of one core. Needs torch 2.1.

A case FAILs where tensors of two devices meet, an operator has no CUDA kernel or refuses the dtype on
CUDA, contents are needed where a GPU tensor cannot give them, a parameter gets no gradient or one of the
wrong device or dtype, or a copy from the host blocks it: not `non_blocking`, or not from pinned memory.
It prints kernels (operators that start at least one: a lower bound of the launches), reads (places where
the host waits for the GPU) and the copies to the GPU, per training step or test frame. `--estimate` adds
the time of each operator on a GPU.

Only the last step counts: the first one makes the optimizer's state and the tables that stay on the
device. It cannot find wrong numbers, races, lack of memory, faults in Triton's or compiled kernels, or anything
about NCCL and several processes. Matching sees random costs, boolean masks select five entries, and the
cameras see as many queries as those of nuScenes.
"""

import argparse
import collections
import contextlib
import gc
import json
import logging
import multiprocessing
import os
import re
import sys
import time
import traceback
import types
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

FP16, BF16 = {"fp16": {"loss_scale": 512.0}}, {"fp16": {"dtype": "bfloat16"}}
CHECKPOINTS = {
    "model.pts_bbox_head.transformer.encoder.with_cp": True,
    "model.img_backbone.with_cp": True,
}
Case = collections.namedtuple("Case", "config options kind batch backend")


def all_cases():
    """name -> Case."""
    cases = {}

    def add(name, config, options=None, kind="train", batch=1, backend="lean"):
        cases[name] = Case(config, options or {}, kind, batch, backend)

    tiny, small = "configs/bevformer/bevformer_tiny.py", "configs/bevformer/bevformer_small.py"
    base, demo = "configs/config.py", "configs/demo.py"
    v2 = "configs/bevformerv2/bevformerv2_r50_t1_base_24ep.py"
    for precision, options in (("fp32", {}), ("fp16", FP16), ("bf16", BF16)):
        for batch in (1, 2):
            add(f"tiny train {precision} b{batch}", tiny, options, batch=batch)
            add(f"tiny test {precision} b{batch}", tiny, options, "test", batch)
        add(f"tiny train {precision} b2 cp", tiny, {**options, **CHECKPOINTS}, batch=2)
        add(f"small train {precision} b1", small, options)
        add(f"base train {precision} b1", base, options)
        add(f"base train {precision} b1 cp", base, {**options, **CHECKPOINTS})
        add(f"base test {precision} b1", base, options, "test")
        add(f"v2 train {precision} b1", v2, options)
        add(f"v2 train {precision} b2 frames", v2, {**options, "two_frames": True}, batch=2)
        add(f"v2 test {precision} b1 frames", v2, {**options, "two_frames": True}, "test")
    add("tiny train bf16 b2 channels_last", tiny, {**BF16, "channels_last": True}, batch=2)
    add("small train bf16 b1 channels_last", small, {**BF16, "channels_last": True})
    add("small test fp32 b1", small, {}, "test")
    add("tiny fp16 recipe", "configs/bevformer/bevformer_tiny_fp16.py", {}, batch=2)
    add("tiny fp16 dynamic", tiny, {"fp16": {"loss_scale": "dynamic"}})
    add("bf16 recipe", "configs/bevformer/bevformer_bf16.py", {})
    add("demo train", demo, {}, batch=2)
    add("demo test", demo, {}, "test")
    add("demo train fp32", demo, {"fp16": None, "channels_last": False})
    add("tiny train fp32 reference", tiny, {}, backend="reference")
    add("tiny train bf16 reference", tiny, BF16, backend="reference")
    for precision, options in (("fp32", {}), ("fp16", FP16)):
        add(f"tiny train {precision} b1 fused", tiny, {**options, "optimizer.fused": True})
    add("static train", "configs/bevformer/bevformer_tiny_static.py", {})
    return cases


def run_case(root, case, steps=2, chip=None):
    """Run one case; torch is of no other use in this process afterwards.

    Args:
        root: path of the checkout.
        case: Case.
        steps: training steps; the last one is counted, the first one makes the optimizer's state.
        chip: name of a GPU to estimate times for, or None.

    Returns:
        dict of the numbers of `fake_gpu.Records`.
    """
    gc.disable()  # torch 2.11 may crash when a detector of fake tensors is taken apart
    import fake_gpu
    import recipe_input
    import torch

    from projects.bevformer.ops import set_default_backend

    fake_gpu.pretend_there_is_a_gpu()
    logging.disable(logging.CRITICAL)
    cfg = _config(Path(root) / case.config, case.options)
    head = cfg.model.pts_bbox_head
    visible = recipe_input.nuscenes_visible(head.bev_h, head.bev_w) * case.batch
    records = fake_gpu.Records(visible, chip)
    mmcv_calls = []
    _watch_mmcv_extension(mmcv_calls)
    _follow_phases(records)

    def backward(tensor, gradient=None, *args, **kwargs):
        records.phase = "backward"
        fake_gpu.walk_backward(tensor, gradient)
        records.phase = "current"

    torch.Tensor.backward = backward
    device = torch.device("cuda", 0)
    with fake_gpu.FakeGpu(root, records):
        detector = recipe_input.build_detector(cfg, device)
        set_default_backend(case.backend)
        if case.kind == "train":
            _train(detector, cfg, case.batch, device, steps, records)
        else:
            _test(detector, cfg, case.batch, device, records)
    if mmcv_calls:
        records.faults.append(f"mmcv's compiled extension was called: {sorted(set(mmcv_calls))}")
    return records.summary()


def _config(path, options):
    from projects.bevformer.engine.config import load_config

    options = dict(options)
    two_frames = options.pop("two_frames", False)
    cfg = load_config(path, {key: v for key, v in options.items() if v is not None})
    for key, value in options.items():
        if value is None:
            cfg[key] = None
    if two_frames:
        cfg.model.frames = cfg.model.pts_bbox_head.transformer.frames = (-1, 0)
    return cfg


def _train(detector, cfg, batch, device, steps, records):
    import recipe_input
    from mmcv.runner import HOOKS, LogBuffer, build_optimizer

    from projects.bevformer.engine.precision import optimizer_hook
    from projects.bevformer.engine.training_model import TrainingModel

    model = TrainingModel(detector.train(), device)
    optimizer = build_optimizer(detector, cfg.optimizer)
    tensors = [*detector.named_parameters(), *detector.named_buffers()]
    left = [name for name, tensor in tensors if tensor.device.type != "cuda"]
    if left:
        records.faults.append(f"left on the CPU by .to(): {left[:5]}")
    hook = optimizer_hook(cfg.get("optimizer_config"), cfg.get("fp16"), detector.autocast_dtype)
    hook = HOOKS.build(dict(hook)) if isinstance(hook, dict) else hook
    runner = types.SimpleNamespace(
        model=model, optimizer=optimizer, log_buffer=LogBuffer(), meta={}, skipped=False
    )
    hook.before_run(runner)
    for step in range(steps):
        records.in_step = step == steps - 1
        data = recipe_input.training_batch(cfg, batch, missing_history=batch > 1)
        data["img"] = data["img"].pin_memory()  # as the loader does
        runner.outputs = model.train_step(data)
        if runner.outputs["loss"].device != device:
            raise RuntimeError(f"the loss is on {runner.outputs['loss'].device}")
        hook.after_train_iter(runner)
    trained = [(name, p) for name, p in detector.named_parameters() if p.requires_grad]
    missing = [name for name, p in trained if p.grad is None]
    if missing:
        records.faults.append(f"{len(missing)} parameters without gradient: {missing[:4]}")
    wrong = [
        name
        for name, p in trained
        if p.grad is not None and (p.grad.device != device or p.grad.dtype != p.dtype)
    ]
    if wrong:
        records.faults.append(f"gradients of another device or dtype: {wrong[:4]}")


def _test(detector, cfg, batch, device, records):
    import recipe_input
    import torch

    from projects.bevformer.engine.batch import to_device

    detector.to(device).eval()
    with torch.no_grad():
        for number, frame in enumerate(recipe_input.test_stream(cfg, batch)):
            records.in_step = number == 2
            frame["img"] = [images.pin_memory() for images in frame["img"]]
            for result in detector(return_loss=False, **to_device(frame, device)):
                if result["pts_bbox"]["boxes_3d"].tensor.device.type != "cpu":
                    records.faults.append("boxes of a result are not on the CPU")


def _follow_phases(records):
    """Estimates distinguish history frames from the current one."""
    from projects.bevformer.model import bevformer
    from projects.bevformer.model.v2 import bevformer_v2

    eval_no_grad = bevformer.eval_no_grad

    @contextlib.contextmanager
    def followed(module):
        records.phase = "history"
        try:
            with eval_no_grad(module):
                yield
        finally:
            records.phase = "current"

    bevformer.eval_no_grad = bevformer_v2.eval_no_grad = followed


def _watch_mmcv_extension(calls):
    """Note calls of mmcv's compiled operators: a CPU build has none for CUDA tensors."""
    import mmcv.ops  # noqa: F401, registers its modules

    for module_name, module in list(sys.modules.items()):
        if not module_name.startswith("mmcv.ops.") or module_name == "mmcv.ops.info":
            continue
        if hasattr(module, "ext_module"):
            module.ext_module = _Watched(module_name, calls)


class _Watched:
    def __init__(self, module_name, calls):
        self._module_name, self._calls = module_name, calls

    def __getattr__(self, name):
        def call(*args, **kwargs):
            self._calls.append(f"{self._module_name}.{name}")
            raise RuntimeError(f"{self._module_name}.{name}: mmcv-full was compiled without CUDA")

        return call


def in_a_fork(root, case, steps=2, chip=None, timeout_s=1200):
    """`run_case` in a process of its own.

    Returns:
        ("ok", what `run_case` returned) or ("error", message, lines of the traceback).
    """
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)

    def work():
        try:
            sender.send(("ok", run_case(root, case, steps, chip)))
        except BaseException as error:  # noqa: BLE001: any error is the result
            hidden = ("fake_tensor", "/torch/utils/_", "fake_gpu.py")
            lines = [
                f"{frame.filename.split('/projects/bevformer/')[-1].split('site-packages/')[-1]}"
                f":{frame.lineno} {frame.line}"
                for frame in traceback.extract_tb(error.__traceback__)
                if not any(name in frame.filename for name in hidden)
            ]
            sender.send(("error", f"{type(error).__name__}: {str(error)[:400]}", lines[-14:]))
        os._exit(0)

    child = fork.Process(target=work)
    child.start()
    sender.close()
    try:
        return receiver.recv() if receiver.poll(timeout_s) else ("error", "timeout", [])
    except EOFError:
        return ("error", "the process died", [])
    finally:
        child.kill()
        child.join()


def _report(name, seconds, status, rest, args):
    """Print one case; returns whether it has no fault, and its entry in the JSON file."""
    if status == "error":
        message, lines = rest
        print(f"FAIL {name} ({seconds:.0f} s): {message}")
        for line in lines:
            print("       ", line[:200])
        nothing = {"launches": {}, "reads": {}, "faults": [message]}
        return False, {**nothing, "error": message, "traceback": lines}
    (records,) = rest
    print(
        f"{'FAIL' if records['faults'] else 'ok  '} {name} ({seconds:.0f} s): "
        f"{sum(records['launches'].values())} kernels a step, "
        f"{sum(records['reads'].values())} reads, "
        f"{sum(records['h2d'].values()) / 2**20:.1f} MiB to the GPU in {records['h2d_count']} copies"
    )
    for fault in records["faults"]:
        print("       FAULT", fault)
    if args.estimate:
        total = sum(entry[0] for entry in records["times"].values())
        print(f"       estimate: {1e3 * total:.1f} ms of GPU time")
        for what, entry in sorted(records["times"].items(), key=lambda item: -item[1][0]):
            duration, number, operations, moved = entry
            print(
                f"         {what:24s} {1e3 * duration:8.2f} ms {number:6d} kernels "
                f"{operations / 1e12:8.2f} TFLOP {moved / 1e9:8.1f} GB"
            )
    if args.verbose:
        for kind in ("reads", "h2d", "launches", "not_deterministic"):
            for what, number in sorted(records[kind].items(), key=lambda item: -item[1]):
                print(f"       {kind}: {number} x {what}")
    return not records["faults"], records


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", nargs="?", default=".", help="[the current folder]")
    parser.add_argument("--only", default="", help="regular expression of case names")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--verbose", action="store_true", help="places of all reads and copies")
    parser.add_argument(
        "--estimate", nargs="?", const="h100", choices=["h100", "h200", "a100"],
        help="a roofline of the GPU's time [h100]",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, default=2, help="training steps, one is counted [2]")
    parser.add_argument("--json", help="write all numbers")
    args = parser.parse_args(argv)
    cases = {name: case for name, case in all_cases().items() if re.search(args.only, name)}
    if args.list:
        print("\n".join(cases))
        return 0
    if not cases:
        parser.error(f"--only {args.only!r} fits no case: --list names them")
    warnings.filterwarnings("ignore")
    root = Path(args.checkout).resolve()
    sys.path[:0] = [str(root), str(Path(__file__).resolve().parent)]
    from projects.bevformer import plugin  # noqa: F401, once for all cases

    sound, numbers = 0, {}
    for name, case in cases.items():
        start = time.time()
        status, *rest = in_a_fork(root, case, args.steps, args.estimate)
        ok, numbers[name] = _report(name, time.time() - start, status, rest, args)
        sound += ok
        sys.stdout.flush()
    if args.json:
        Path(args.json).write_text(json.dumps(numbers, indent=1))
    print(f"{sound} of {len(cases)} cases ran without a fault")
    return 0 if sound == len(cases) else 1


if __name__ == "__main__":
    sys.exit(main())

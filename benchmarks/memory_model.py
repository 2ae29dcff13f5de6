"""GPU memory of a training step, computed without a GPU.

    python benchmarks/memory_model.py --presets default low_memory --bev 200 300
    python benchmarks/memory_model.py --config configs/bevformer/bevformer_tiny.py

The detector of a config runs a forward and a backward pass on fake tensors, which have shapes and no
contents; every storage is followed from its birth to its death. The result is what
`torch.cuda.max_memory_allocated` would show. Prints a Markdown table and writes JSON. Needs torch 2.1.

The numbers hold weights, two AdamW moments for every trained weight, the gradients of the step before
until they are freed, the images of the whole queue, and all tensors of the history frames, the current
frame, the losses and the backward pass; also the columns that the deformable convolution unfolds.

They leave out the CUDA context (0.5 to 1 GiB in nvidia-smi), what the caching allocator holds without
using it, workspaces of cuDNN and cuBLAS, and the gradient buckets of DistributedDataParallel (as large as
the gradients). The matching, which runs on the CPU, is replaced by a fixed one.
"""

import argparse
import contextlib
import copy
import dataclasses
import gc
import multiprocessing
import os
import sys
import weakref
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

sys.path.insert(0, str(Path(__file__).resolve().parent))

import common  # noqa: E402
from presets import PRESETS  # noqa: E402
from recipe_input import (  # noqa: E402
    build_detector,
    nuscenes_visible,
    preprocessor_steps,
    training_batch,
)

from projects.bevformer.engine.config import load_config  # noqa: E402
from projects.bevformer.model import bevformer  # noqa: E402
from projects.bevformer.model.bev_encoder import packed_queries  # noqa: E402
from projects.bevformer.model.bev_encoder.encoder import BEVFormerEncoder  # noqa: E402
from projects.bevformer.model.bev_encoder.packed_queries import PackedQueries  # noqa: E402
from projects.bevformer.model.bevformer import BEVFormer  # noqa: E402
from projects.bevformer.model.mm.replacements import replace_type  # noqa: E402
from projects.bevformer.ops import backends, deform_attn_lean  # noqa: E402

from mmcv.ops.multi_scale_deform_attn import (  # noqa: E402  isort: skip
    multi_scale_deformable_attn_pytorch,
)
from mmcv.cnn.bricks.registry import TRANSFORMER_LAYER_SEQUENCE  # noqa: E402  isort: skip
from mmdet.core.bbox.builder import BBOX_ASSIGNERS  # noqa: E402  isort: skip
from mmdet.models.builder import DETECTORS  # noqa: E402  isort: skip

ROOT = common.ROOT
MIB = 2**20
# How the network is usually written without a compiled operator: mmcv's fallback on padded rows, and
# batch norms that keep their input.
NAIVE = {"deform_attn_backend": "stacked_fallback"}


def _stacked_fallback(value, shapes, locations, weights, rows_per_map):
    """mmcv's Python fallback on rows that are padded to the fullest map, as a backend of ops."""
    longest = max(rows_per_map)

    def padded(rows):
        empty = rows.new_zeros(longest, *rows.shape[1:])
        parts = rows.split(rows_per_map)
        return torch.stack([torch.cat((part, empty[len(part) :])) for part in parts])

    out = multi_scale_deformable_attn_pytorch(value, shapes, padded(locations), padded(weights))
    return torch.cat([rows[:number] for rows, number in zip(out, rows_per_map)])


backends.register_backend("stacked_fallback", _stacked_fallback, lambda value, locations: None)


@DETECTORS.register_module()
class BEVFormerWithSignal(BEVFormer):
    """BEVFormer that says when the history frames are done."""

    def after_history(self):
        """Called before the current frame."""

    def extract_feat(self, *args, **kwargs):
        if torch.is_grad_enabled():
            self.after_history()
        return super().extract_feat(*args, **kwargs)


@TRANSFORMER_LAYER_SEQUENCE.register_module()
class EncoderOfNuScenes(BEVFormerEncoder):
    """BEVFormerEncoder with the visible queries of the nuScenes rig instead of the frames'."""

    def find_visible(self, frames, bev_hw):
        counts = nuscenes_visible(*bev_hw)
        batch, queries = len(frames[0].lidar2img), bev_hw[0] * bev_hw[1]
        shape, device = (batch, len(counts), queries), frames[0].lidar2img.device
        return [
            dataclasses.replace(
                frame,
                visible=PackedQueries.from_visibility(
                    torch.empty(*shape, self.num_points_in_pillar, 2, device=device),
                    torch.empty(shape, dtype=torch.bool, device=device),
                    counts * batch,
                ),
            )
            for frame in frames
        ]


@BBOX_ASSIGNERS.register_module()
class FixedAssigner:
    """Ground truth g belongs to query g: a matching that needs no contents."""

    def __init__(self, **hungarian_options):
        pass

    def assign_layers(self, code_pred, cls_logits, gt_boxes, gt_labels):
        """Of the form of HungarianAssigner3D.assign_layers."""
        layers = code_pred.shape[0]
        numbers = [
            torch.arange(len(boxes), device=code_pred.device).expand(layers, -1)
            for boxes in gt_boxes
        ]
        return [(number, number) for number in numbers]


class StorageTracker(TorchDispatchMode):
    """Bytes of all storages that are alive, each counted once and rounded up to 512.

    Attributes:
        alive: bytes now.
        peak: the most so far.
    """

    def __init__(self):
        super().__init__()
        self.alive = self.peak = 0
        self._sizes = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.watch(tensor)
        hidden = _hidden_bytes(func, args)
        self.peak = max(self.peak, self.alive + hidden)
        return out

    def watch(self, tensor):
        """Count the storage of a tensor until it dies."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        size = -(-storage.nbytes() // 512) * 512
        self._sizes[key] = size
        self.alive += size
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key):
        self.alive -= self._sizes.pop(key)


def _hidden_bytes(func, args):
    """Bytes that an operator allocates inside its compiled code and that no tensor shows.

    torchvision's deformable convolution unfolds its input into columns, for up to 32 images at once, and
    its backward pass does so again.
    """
    if func.namespace != "torchvision" or "deform_conv2d" not in func.__name__:
        return 0
    # The gradient of the output precedes the arguments of the forward pass.
    images, weight, offset = args[1:4] if "backward" in func.__name__ else args[:3]
    kernel = weight.shape[2] * weight.shape[3]
    pixels = images.shape[0] * offset.shape[2] * offset.shape[3]
    return images.shape[1] * kernel * pixels * images.element_size()


def training_step(cfg, naive=False):
    """Model the memory of one training step.

    Args:
        cfg: mmcv.Config of a recipe with six cameras.
        naive: let batch norms keep their input, and take the queue in float32.

    Returns:
        dict of MiB: `static` (weights and optimizer state), `images`, `history` (the peak of the
        history frames), `forward` (what is alive after the losses), `peak`.
    """
    return in_a_fork(_send_step, cfg, naive)


def in_a_fork(function, *args):
    """What `function(send, *args)` gives to `send`, which ends the forked process that it runs in.

    torch 2.11 may crash when a detector of fake tensors is taken apart; so it never is.
    """
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)

    def run():
        def send(result):
            sender.send(result)
            os._exit(0)

        gc.disable()
        function(send, *args)

    child = fork.Process(target=run)
    child.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise RuntimeError("the forked process failed; its traceback is above") from None
    finally:
        child.join()


def _send_step(send, cfg, naive):
    """Send what `training_step` returns."""
    tracker, report = StorageTracker(), {}
    if naive:
        cfg.data.train.pipeline = [*cfg.data.train.pipeline, *preprocessor_steps(cfg)]
        cfg.model.data_preprocessor = None
    with fake_mode(), _as_on_a_gpu(naive), tracker:
        detector = fake_detector(cfg)
        detector.after_history = lambda: report.update(history=tracker.peak)
        trained = [p for p in detector.parameters() if p.requires_grad]
        moments = [torch.empty_like(p) for p in trained for _ in range(2)]  # noqa: F841, of AdamW
        report["static"] = tracker.alive
        for parameter in trained:
            parameter.grad = torch.empty_like(parameter)  # of the step before
        batch = training_batch(cfg)
        report["images"] = batch["img"].untyped_storage().nbytes()

        tracker.peak = tracker.alive
        loss = sum(detector(return_loss=True, **batch).values())
        report["forward"] = tracker.alive
        for parameter in trained:
            parameter.grad = None  # the optimizer hook frees them before the backward pass
        loss.backward()
        report["peak"] = tracker.peak
        send({key: round(value / MIB) for key, value in report.items()})


def fake_mode():
    """Context manager: tensors without contents, and no operator runs for real."""
    return FakeTensorMode(allow_non_fake_inputs=True, allow_fallback_kernels=False)


def fake_detector(cfg):
    """The detector of a recipe in training mode, with known visible queries and matching."""
    cfg = copy.deepcopy(cfg)
    cfg.model.type = "BEVFormerWithSignal"
    cfg.model.pts_bbox_head.transformer.encoder.type = "EncoderOfNuScenes"
    cfg.model.train_cfg.pts.assigner.type = "FixedAssigner"
    return build_detector(cfg).train()


@contextlib.contextmanager
def _as_on_a_gpu(naive):
    """PyTorch and this project take the ways on a CPU that they take on a GPU."""
    with contextlib.ExitStack() as stack:
        for owner, name, replacement in (
            (F, "dropout", _cuda_dropout),
            (F, "layer_norm", _cuda_autocast(F.layer_norm)),
            (F, "softmax", _cuda_autocast(F.softmax)),
            (packed_queries, "_sum_rows", packed_queries._sum_bags),
        ):
            stack.enter_context(mock.patch.object(owner, name, replacement))
        if naive:
            stack.enter_context(mock.patch.object(bevformer, "replace_type", _keep_batch_norms))
        for chunks in (deform_attn_lean.FORWARD_CHUNK_BYTES, deform_attn_lean.BACKWARD_CHUNK_BYTES):
            stack.enter_context(mock.patch.dict(chunks, cpu=chunks["cuda"]))
        yield


def _keep_batch_norms(cfg):
    return cfg if cfg["type"] in ("BN", "BN2d") else replace_type(cfg)


def _cuda_dropout(input, p=0.5, training=True, inplace=False):
    """A mask of booleans instead of numbers."""
    return torch.native_dropout(input, p, True)[0] if training and p > 0 else input


def _cuda_autocast(function):
    """Autocast runs it in float32 on CUDA."""

    def run(input, *args, **kwargs):
        half = torch.is_autocast_enabled("cpu") and input.is_floating_point()
        return function(input.float() if half else input, *args, **kwargs)

    return run


def preset(config, name, bev=None):
    """The config of a recipe with a preset.

    Args:
        config: path of a recipe.
        name: one of PRESETS, or "naive".
        bev: cells a side of a square BEV; None is the recipe's.
    """
    cfg = load_config(config, NAIVE if name == "naive" else PRESETS[name])
    if bev is not None:
        head = cfg.model.pts_bbox_head
        head.bev_h = head.bev_w = bev
        head.positional_encoding.row_num_embed = head.positional_encoding.col_num_embed = bev
    return cfg


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default=str(ROOT / "configs" / "config.py"))
    presets = ["naive", *PRESETS]
    parser.add_argument("--presets", nargs="+", choices=presets, default=presets)
    parser.add_argument("--bev", type=int, nargs="+", help="cells a side; default: the config's")
    parser.add_argument("--out", type=Path, default=ROOT / "work_dirs/benchmarks/memory_model.json")
    args = parser.parse_args(argv)
    results = []
    for name in args.presets:
        for bev in args.bev or [None]:
            cfg = preset(args.config, name, bev)
            bev_h = cfg.model.pts_bbox_head.bev_h
            case = {"config": Path(args.config).stem, "preset": name, "bev": bev_h}
            results.append({**case, **training_step(cfg, naive=name == "naive")})
    names = list(results[0])
    print(common.table(names, [[result[name] for name in names] for result in results]))
    environment = common.environment(torch.device("cpu"))
    common.write_json(args.out, {"environment": environment, "unit": "MiB", "cases": results})


if __name__ == "__main__":
    main()

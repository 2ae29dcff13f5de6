"""Forward, losses and backward of a recipe on torch's meta device: no GPU, no memory, a few seconds.

    python benchmarks/meta_device.py configs/config.py
    python benchmarks/meta_device.py configs/bevformer/bevformer_tiny.py data.samples_per_gpu=2

Runs a training step (of several samples: one of them without a previous frame) and a test stream with a
change of the scene. It fails where a CPU tensor meets one of the device, so a `.to(device)` that is
missing is found, and where a shape depends on the contents of a tensor. Mixed precision is left out: torch
has no autocast there (benchmarks/fake_cuda.py has it). Needs torch 2.1.
"""

import argparse
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch  # noqa: E402
from mmcv import DictAction  # noqa: E402
from recipe_input import build_detector, test_stream, training_batch  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

from projects.bevformer.engine.batch import to_device  # noqa: E402
from projects.bevformer.engine.config import load_config  # noqa: E402
from projects.bevformer.engine.training_model import total_loss  # noqa: E402

META = torch.device("meta")


class MetaDevice(TorchDispatchMode):
    """Answers the host's reads with made-up numbers and refuses to mix devices."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.name()
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        devices = {t.device.type for t in tensors if t.dim() > 0}
        if devices == {"meta"}:
            if name == "aten::_local_scalar_dense":
                return args[0].new_ones((), device="cpu").item()
            if name == "aten::_to_copy" and kwargs.get("device") == torch.device("cpu"):
                return _made_up(args[0], kwargs.get("dtype"))
            if name.startswith(("aten::nonzero", "aten::masked_select", "aten::_unique")):
                raise RuntimeError(f"{name}: its shape depends on the contents of the tensor")
        elif devices == {"meta", "cpu"} and name != "aten::copy_":
            shapes = [f"{tuple(t.shape)} on {t.device}" for t in tensors]
            raise RuntimeError(f"{name} mixes devices: {', '.join(shapes)}")
        return func(*args, **kwargs)


def _made_up(tensor, dtype):
    """What the host reads: a few visible queries per camera, costs that can be matched."""
    dtype = dtype or tensor.dtype
    if dtype.is_floating_point:
        return torch.rand(tensor.shape, dtype=dtype)
    return torch.ones(tensor.shape, dtype=dtype)


def training_step(cfg):
    """Losses and gradients of the recipe's batch.

    Raises:
        RuntimeError: tensors of two devices meet, or a trained parameter gets no gradient.
    """
    detector = build_detector(cfg).to(META).train()
    batch = training_batch(cfg, missing_history=True)
    with MetaDevice():
        # Only the images are there already: boxes and labels may come from the host.
        losses = detector(return_loss=True, **{**batch, "img": batch["img"].to(META)})
        total, _ = total_loss(losses)
        total.backward()
    missing = [n for n, p in detector.named_parameters() if p.requires_grad and p.grad is None]
    if missing:
        raise RuntimeError(f"{len(missing)} parameters without gradient: {missing[:4]}")


def test_frames(cfg):
    """Results of a test stream, in which the scene changes."""
    detector = build_detector(cfg).to(META).eval()
    with torch.no_grad(), MetaDevice():
        for frame in test_stream(cfg, cfg.data.samples_per_gpu):
            detector(return_loss=False, **to_device(frame, META))


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="config file")
    parser.add_argument(
        "options", nargs="*", action=DictAction, default={}, metavar="KEY=VALUE",
        help="overrides of config keys",
    )  # fmt: skip
    args = parser.parse_args(argv)
    warnings.filterwarnings("ignore")
    cfg = load_config(args.config, args.options)
    cfg.fp16 = None  # torch has no autocast for this device
    training_step(cfg)
    print("backward ok")
    test_frames(cfg)
    print("test stream ok")


if __name__ == "__main__":
    main()

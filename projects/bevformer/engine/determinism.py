"""Repeatable training: what `--deterministic` sets, and what still differs between runs."""

from __future__ import annotations

import os

import torch
from mmcv import Config
from mmcv.ops import ModulatedDeformConv2d
from torch import nn

from projects.bevformer import compat
from projects.bevformer.engine.data_sections import inner_sections
from projects.bevformer.model.mm.deform_conv import TorchvisionDCNv2
from projects.bevformer.ops.backends import ENVIRONMENT_VARIABLE, PREFERENCE, get_backend


def make_deterministic() -> None:
    """Use deterministic algorithms in this process, with a warning from operators that have none.

    Call it before CUDA starts: cuBLAS reads its variable once. A value that the user has set stays.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    compat.use_deterministic_algorithms()


def unrepeatable_parts(cfg: Config, detector: nn.Module) -> list[str]:
    """Names of the parts of a model whose CUDA gradients differ in the last bits between runs.

    Args:
        cfg: mmcv.Config with `deform_attn_backend` and `data.train`.
        detector: the bare model.
    """
    parts = []
    kinds = (TorchvisionDCNv2, ModulatedDeformConv2d)
    layers = [m for m in detector.modules() if isinstance(m, kinds) and _trains(m)]
    if layers:
        parts.append(f"{len(layers)} deformable convolutions")
    backbone = getattr(detector, "img_backbone", None)
    if hasattr(backbone, "maxpool") and getattr(backbone, "frozen_stages", 0) < 0:
        parts.append("max-pooling behind the stem, which trains")
    backend = _attention_backend(cfg)
    if not get_backend(backend, ENVIRONMENT_VARIABLE).repeatable:  # a config was checked before
        parts.append(f"deformable attention by {backend!r} (`lean` repeats exactly)")
    data_sets = [options for _, options in inner_sections(cfg.data.train, "data.train")]
    steps = [step for options in data_sets for step in options.get("pipeline", [])]
    if any(step["type"] == "GlobalRotScaleTransImage" and step.get("only_gt") for step in steps):
        parts.append("the turned BEV of GlobalRotScaleTransImage with only_gt")
    return parts


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _attention_backend(cfg: Config) -> str:
    automatic = (name for name in PREFERENCE if name != "mmcv" or compat.mmcv_has_cuda_operators())
    named = os.environ.get(ENVIRONMENT_VARIABLE) or cfg.get("deform_attn_backend")
    return named or next(automatic)

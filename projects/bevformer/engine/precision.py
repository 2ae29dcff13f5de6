"""Precision and memory layout: how a model computes, without changing what it computes.

Mixed precision is `fp16 = dict(loss_scale=512. | "dynamic", dtype="float16" | "bfloat16")` in a config,
the memory layout of the convolutions is `channels_last = True`, TF32 is `tf32 = True | False`, and
`deform_attn_backend = "lean"` selects the implementation of its deformable attention.
"""

from __future__ import annotations

import logging

import torch
from mmcv import Config
from mmcv.runner import Hook
from torch import nn

from projects.bevformer.compat import gpu_computes_in_bfloat16
from projects.bevformer.engine.optimizer_hooks import LossScalingOptimizerHook
from projects.bevformer.ops import set_default_backend

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def autocast_dtype(
    fp16: dict | None, device: torch.device, logger: logging.Logger
) -> torch.dtype | None:
    """Precision that a config asks for, as this device can run it.

    Args:
        fp16: the config's `fp16` dict, or None for float32.
        device: torch.device that runs the model.
        logger: notes where a CPU uses bfloat16 instead of float16.

    Returns:
        None, torch.float16 or torch.bfloat16.

    Raises:
        ValueError: not a dict, an unknown key or dtype in it, or bfloat16 on a GPU without it.
    """
    if fp16 is None:
        return None
    if not isinstance(fp16, dict):
        raise ValueError(
            f'fp16 is {fp16!r}: it must be None or a dict such as dict(dtype="bfloat16")'
        )
    unknown = set(fp16) - {"loss_scale", "dtype"}
    if unknown:
        raise ValueError(f"fp16 has unknown keys {sorted(unknown)}: it takes loss_scale and dtype")
    name = fp16.get("dtype", "float16")
    if name not in _DTYPES:
        raise ValueError(f"fp16.dtype is {name!r}: it must be one of {sorted(_DTYPES)}")
    scale = fp16.get("loss_scale", "dynamic")
    if scale != "dynamic" and not isinstance(scale, (int, float, dict)):
        raise ValueError(f"fp16.loss_scale is {scale!r}: it must be a number or 'dynamic'")
    if name == "float16" and device.type == "cpu":
        logger.info("fp16: CPUs have no float16 autocast, bfloat16 is used")
        name = "bfloat16"
    if name == "bfloat16" and device.type == "cuda" and not gpu_computes_in_bfloat16():
        raise ValueError(
            f"fp16.dtype is bfloat16, which {torch.cuda.get_device_name(device)} does not support: "
            "set fp16.dtype=float16, or fp16=None for float32"
        )
    return _DTYPES[name]


def set_compute_format(
    detector: nn.Module, cfg: Config, device: torch.device, logger: logging.Logger
) -> None:
    """Set the precision, memory layout and attention backend of a detector, and TF32 for the process.

    Args:
        detector: BEVFormer; its `autocast_dtype`, the strides of its 4D weights and the default
            backend of its attention modules are set.
        cfg: mmcv.Config with `fp16`, `channels_last`, `tf32` and `deform_attn_backend`, or without.
            Without `tf32` the flags keep torch's defaults, which differ: 1.10 uses TF32
            for matrix products, 1.12 and later do not.
        device, logger: see `autocast_dtype`.

    Raises:
        ValueError: an unknown key or dtype in `fp16`, an unknown backend, or `tf32` is not a bool.
    """
    set_default_backend(cfg.get("deform_attn_backend"), detector)
    detector.autocast_dtype = autocast_dtype(cfg.get("fp16"), device, logger)
    if cfg.get("channels_last", False):
        detector.to(memory_format=torch.channels_last)
    tf32 = cfg.get("tf32")
    if tf32 not in (None, True, False):
        raise ValueError(f"tf32 is {tf32!r}: it must be True, False or None")
    if tf32 is not None:
        torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.backends.cudnn.allow_tf32 = tf32


def optimizer_hook(
    optimizer_config: dict | None, fp16: dict | None, dtype: torch.dtype | None
) -> Hook | dict:
    """Optimizer hook of a config.

    Args:
        optimizer_config: the config's `optimizer_config`: grad_clip, or a hook with its `type`.
        fp16: the config's `fp16` dict or None.
        dtype: what `autocast_dtype` returned; only float16 needs scaled losses.

    Returns:
        A hook, or a dict with `type` for the registry.

    Raises:
        ValueError: a hook type that does not go with `fp16`.
    """
    options = dict(optimizer_config or {})
    hook_type = options.get("type", "OptimizerHook")
    if "Fp16" in hook_type:
        raise ValueError(
            f"optimizer_config.type {hook_type}: use `fp16 = dict(loss_scale=...)` instead"
        )
    if dtype is not torch.float16:
        return {"type": hook_type, **options}
    if hook_type != "OptimizerHook":
        raise ValueError(f"optimizer_config.type {hook_type} cannot be combined with fp16 on CUDA")
    options.pop("type", None)
    return LossScalingOptimizerHook(loss_scale=fp16.get("loss_scale", "dynamic"), **options)

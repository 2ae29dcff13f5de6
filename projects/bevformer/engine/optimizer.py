"""Optimizers with few parameter groups, and saved states of optimizers with many."""

from __future__ import annotations

import difflib
import logging
from typing import Iterable, Mapping

import torch
from mmcv import Config
from mmcv.runner import OPTIMIZER_BUILDERS, OPTIMIZERS, DefaultOptimizerConstructor
from torch import nn

from projects.bevformer import compat
from projects.bevformer.engine.distributed import get_world_size

# Affects how an optimizer computes, not what: a resumed run keeps its own.
_IMPLEMENTATION = ("foreach", "fused", "capturable", "differentiable")


@OPTIMIZER_BUILDERS.register_module()
class MergedGroupsConstructor(DefaultOptimizerConstructor):
    """mmcv's constructor, with one parameter group per set of options instead of one per tensor.

    With `paramwise_cfg` mmcv makes a group of every tensor, and PyTorch updates group by group:
    several kernel launches for each of hundreds of tensors. Groups keep the order in which their
    options appear first. On CUDA the fused implementation is used where this torch has one, unless
    the config sets `fused`, `foreach` or `differentiable` itself.

    `load_config` makes it the default `optimizer.constructor`.
    """

    def __call__(self, model: nn.Module) -> torch.optim.Optimizer:
        """Build the optimizer for the parameters of `model`."""
        if self._can_be_fused(list(model.parameters())):
            self.optimizer_cfg = {**self.optimizer_cfg, "fused": True}
        optimizer = super().__call__(model)
        optimizer.param_groups[:] = _merged(optimizer.param_groups)
        return optimizer

    def _can_be_fused(self, parameters: list[nn.Parameter]) -> bool:
        chosen = self.optimizer_cfg.get("type")
        optimizer_class = OPTIMIZERS.get(chosen) if isinstance(chosen, str) else chosen
        return (
            compat.has_fused_cuda_kernels(optimizer_class)
            and not {"fused", "foreach", "differentiable"} & set(self.optimizer_cfg)
            and all(_is_float_on_cuda(parameter) for parameter in parameters)
        )


def _is_float_on_cuda(parameter: torch.Tensor) -> bool:
    return parameter.device.type == "cuda" and torch.is_floating_point(parameter)


def _options(group: dict) -> dict:
    return {key: value for key, value in group.items() if key != "params"}


def _merged(groups: list[dict]) -> list[dict]:
    """Parameter groups with equal options as one, in the order of first appearance."""
    merged = []
    for group in groups:
        for known in merged:
            if _options(known) == _options(group):
                known["params"].extend(group["params"])
                break
        else:
            merged.append({**group, "params": list(group["params"])})
    return merged


def check_parameter_options(settings: Mapping, model: nn.Module) -> None:
    """Refuse options of `optimizer.paramwise_cfg` that are for no parameter of the model.

    Args:
        settings: the config's `optimizer`.
        model: whose parameters it is for.

    Raises:
        ValueError: names the option and the nearest names of modules.
    """
    options = settings.get("paramwise_cfg") or {}
    names = [name for name, _ in model.named_parameters()]
    modules = {part for name, _ in model.named_modules() for part in (name, *name.split("."))}
    for pattern in options.get("custom_keys") or {}:
        if not any(pattern in f".{name}" for name in names):
            close = difflib.get_close_matches(pattern, sorted(modules), n=3) or sorted(
                name for name, _ in model.named_children()
            )
            raise ValueError(
                f"optimizer.paramwise_cfg.custom_keys has {pattern!r}, which is in the name of no "
                f"parameter: modules are {', '.join(close)}"
            )
    convolutions = {cls.__name__ for module in model.modules() for cls in type(module).__mro__}
    if "dcn_offset_lr_mult" in options and not convolutions & {
        "DeformConv2d", "ModulatedDeformConv2d",
    }:  # fmt: skip
        raise ValueError(
            "optimizer.paramwise_cfg.dcn_offset_lr_mult is for mmcv's deformable convolutions, of which "
            "the network has none: use custom_keys=dict(conv_offset=dict(lr_mult=...))"
        )


def total_batch(cfg: Config, samples: int) -> tuple[int, int, int]:
    """Samples of a process, processes, and iterations whose gradients are added up for one step."""
    accumulated = (cfg.get("optimizer_config") or {}).get("cumulative_iters", 1)
    return samples, get_world_size(), accumulated


def fit_rate(cfg: Config, samples: int, scale: bool, logger: logging.Logger) -> None:
    """Compare the total batch with the one that the learning rate is for.

    Args:
        cfg: its `auto_scale_lr.base_batch_size` is the batch that `optimizer.lr` is for; with
            `auto_scale_lr.enable` the rate is scaled, as mmdet's configs do.
        samples: in a batch of one process.
        scale: set `optimizer.lr` to the rate for the total batch; otherwise log that rate.
        logger: of the run.

    Raises:
        ValueError: the rate is to be scaled, and the config has none or no batch that it is for.
    """
    options = cfg.get("auto_scale_lr") or {}
    base, rate = options.get("base_batch_size"), cfg.optimizer.get("lr")
    scale = scale or options.get("enable", False)
    if scale and (base is None or rate is None):
        what = "auto_scale_lr = dict(base_batch_size=8)" if base is None else "optimizer.lr"
        raise ValueError(
            f"--autoscale-lr needs the rate and the total batch that it is for: add {what} to the config"
        )
    parts = total_batch(cfg, samples)
    batch = parts[0] * parts[1] * parts[2]
    if base in (None, batch) or rate is None:
        return
    fitting = rate * batch / base
    text = "the learning rate %g is for a total batch of %d, this run has %d (samples x processes x %s)"
    numbers = rate, base, batch, "accumulated = " + " x ".join(map(str, parts))
    if scale:
        cfg.optimizer.lr = fitting
        logger.info(text + ": it is scaled to %g", *numbers, fitting)
    else:
        logger.warning(text + ": %g would fit (--autoscale-lr sets it)", *numbers, fitting)


def fit_saved_state(
    saved: dict, optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]
) -> dict:
    """Convert a saved optimizer state to the groups of `optimizer`, for its `load_state_dict`.

    Checkpoints from before MergedGroupsConstructor, and those of mmcv's own constructor, have a
    group per tensor, in the order of the model's parameters.

    Args:
        saved: a result of `optimizer.state_dict()`.
        optimizer: of this run.
        parameters: of the model, in its order.

    Returns:
        A state dict; `saved` is not modified.

    Raises:
        ValueError: the groups are different and cannot be converted.
    """
    groups, own = saved["param_groups"], optimizer.param_groups
    sizes, own_sizes = ([len(group["params"]) for group in some] for some in (groups, own))
    if sizes != own_sizes:
        parameters = list(parameters)
        if set(sizes) != {1} or not len(groups) == len(parameters) == sum(own_sizes):
            raise ValueError(
                f"it has {len(groups)} parameter groups of {sum(sizes)} tensors, the optimizer of "
                f"this run {len(own)} of {sum(own_sizes)}: use the config section `optimizer` of "
                "the run that saved it, and only set optimizer.constructor if that run did"
            )
        groups = _merge_saved(saved, own, parameters)
    groups = [
        {**group, **{key: mine[key] for key in _IMPLEMENTATION if key in mine}}
        for group, mine in zip(groups, own)
    ]
    return {**saved, "param_groups": groups}


def match_layouts(optimizer: torch.optim.Optimizer) -> None:
    """Convert loaded states to the memory layout of their parameters, as fused kernels require.

    A run may be resumed with another `channels_last`; `load_state_dict` keeps the layout of the
    file.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if torch.is_tensor(value) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _merge_saved(saved, own_groups, parameters):
    """Saved groups of one tensor each, merged like `own_groups`; tensor numbers stay."""
    saved_group = dict(zip(map(id, parameters), saved["param_groups"]))
    merged = []
    for own in own_groups:
        members = [saved_group[id(parameter)] for parameter in own["params"]]
        options = _options(members[0])
        if any(_options(member) != options for member in members):
            raise ValueError(
                "tensors that share a parameter group in this run had different options: use the "
                "optimizer.paramwise_cfg of the run that saved it"
            )
        numbers = [member["params"][0] for member in members]
        for number, parameter in zip(numbers, own["params"]):
            _check_shape(saved["state"].get(number, {}), parameter)
        merged.append({**options, "params": numbers})
    return merged


def _check_shape(state, parameter):
    for name in ("exp_avg", "momentum_buffer"):
        value = state.get(name)
        if value is not None and value.shape != parameter.shape:
            raise ValueError(
                f"its {name} of shape {tuple(value.shape)} belongs to another parameter than one "
                f"of shape {tuple(parameter.shape)}: the model was another one"
            )

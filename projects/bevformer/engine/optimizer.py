"""Optimizers with few parameter groups, and saved states of optimizers with many."""

from __future__ import annotations

import difflib
import logging
from typing import Iterable, Mapping, Sequence

import torch
from mmcv import Config
from mmcv.runner import OPTIMIZER_BUILDERS, OPTIMIZERS, DefaultOptimizerConstructor
from torch import nn

from projects.bevformer import compat
from projects.bevformer.engine.distributed import get_world_size

# Affects how an optimizer computes, not what.
_IMPLEMENTATION = ("foreach", "fused", "capturable", "differentiable")
_ADAM = ("step", "exp_avg", "exp_avg_sq")  # of the state of a parameter
_OF_ITS_SHAPE = (
    "exp_avg",
    "exp_avg_sq",
    "max_exp_avg_sq",
    "exp_inf",
    "momentum_buffer",
    "square_avg",
)
_TELLING = ("betas", "momentum", "alpha", "rho", "lambd", "etas")  # options of a type of optimizer


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


def check_parameter_options(optimizer_cfg: Mapping, model: nn.Module) -> None:
    """Refuse options of `optimizer.paramwise_cfg` that are for no parameter of the model.

    Args:
        optimizer_cfg: the config's `optimizer`.
        model: whose parameters it is for.

    Raises:
        ValueError: names the option and the nearest names of modules.
    """
    options = optimizer_cfg.get("paramwise_cfg") or {}
    names = [name for name, _ in model.named_parameters()]
    modules = {part for name, _ in model.named_modules() for part in (name, *name.split("."))}
    for pattern, factors in (options.get("custom_keys") or {}).items():
        values = list(factors.values()) if isinstance(factors, dict) else [None]
        if not all(isinstance(value, (int, float)) for value in values):
            raise ValueError(
                f"optimizer.paramwise_cfg.custom_keys.{pattern} is {factors!r}: it must be a dict of "
                "lr_mult, decay_mult and their numbers"
            )
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
    for name in {"lr", "weight_decay", "momentum", "eps"} & set(cfg.optimizer):
        if not isinstance(cfg.optimizer[name], (int, float)):
            raise ValueError(f"optimizer.{name} is {cfg.optimizer[name]!r}: it must be a number")
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


def saved_state(optimizer: torch.optim.Optimizer, detector: nn.Module) -> dict:
    """`optimizer.state_dict()` with its type, and the names of the parameters of each group."""
    state = optimizer.state_dict()
    names = {id(parameter): name for name, parameter in detector.named_parameters()}
    groups = [
        {**group, "param_names": [names.get(id(parameter), "") for parameter in own["params"]]}
        for group, own in zip(state["param_groups"], optimizer.param_groups)
    ]
    return {**state, "param_groups": groups, "type": type(optimizer).__name__}


def fit_saved_state(
    saved: dict, optimizer: torch.optim.Optimizer, parameters: Iterable[tuple[str, nn.Parameter]]
) -> dict:
    """Convert a saved optimizer state to the groups of `optimizer`, for its `load_state_dict`.

    The options (rate, weight decay, betas, ...) are those of `optimizer`, the state of each tensor
    is the saved one. Tensors are matched by name. Checkpoints without names have the groups of
    this run, or a group per tensor in the order of the model's parameters, as those from before
    MergedGroupsConstructor and of mmcv's own constructor.

    Args:
        saved: a result of `saved_state` or of `optimizer.state_dict()`.
        optimizer: of this run.
        parameters: `named_parameters()` of the model.

    Returns:
        A state dict; `saved` is not modified.

    Raises:
        ValueError: of another type of optimizer, or the groups are different and cannot be
            converted.
    """
    _check_type(saved, optimizer)
    groups, own, parameters = saved["param_groups"], optimizer.param_groups, list(parameters)
    sizes, own_sizes = ([len(group["params"]) for group in some] for some in (groups, own))
    if all("param_names" in group for group in groups):
        names = [name for group in groups for name in group["param_names"]]
        number = dict(zip(names, (n for group in groups for n in group["params"])))
        name_of = {id(parameter): name for name, parameter in parameters}
        wanted = [[name_of[id(parameter)] for parameter in group["params"]] for group in own]
        lacking = [name for group in wanted for name in group if name not in number]
        if lacking:
            raise ValueError(f"it lacks {len(lacking)} parameters of this run, {lacking[0]} first")
        numbers = [[number[name] for name in group] for group in wanted]
    elif sizes == own_sizes:
        numbers = [group["params"] for group in groups]
    elif set(sizes) == {1} and len(groups) == len(parameters) == sum(own_sizes):
        number = {id(p): group["params"][0] for (_, p), group in zip(parameters, groups)}
        numbers = [[number[id(parameter)] for parameter in group["params"]] for group in own]
    else:
        raise ValueError(
            f"it has {len(groups)} parameter groups of {sum(sizes)} tensors, the optimizer of "
            f"this run {len(own)} of {sum(own_sizes)}: use the config section `optimizer` of "
            "the run that saved it, and only set optimizer.constructor if that run did"
        )
    is_adam = isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW))
    for group, own_numbers in zip(own, numbers):
        needed = (*_ADAM, *["max_exp_avg_sq"] * group["amsgrad"]) if is_adam else ()
        for parameter, n in zip(group["params"], own_numbers):
            _check_state(saved["state"].get(n, {}), parameter, needed)
    fitted = [{**_options(group), "params": list(n)} for group, n in zip(own, numbers)]
    return {"state": saved["state"], "param_groups": fitted}


def changed_options(saved: dict, fitted: dict) -> list[str]:
    """Lines such as `lr 0.001 -> 0.0001`: options that a resumed run has otherwise than its file.

    Args:
        saved: the state in the file.
        fitted: what `fit_saved_state` made of it.
    """
    before = {n: _unscheduled(group) for group in saved["param_groups"] for n in group["params"]}
    changes = {
        f"{key} {before[n][key]} -> {value}": None
        for group in fitted["param_groups"]
        for n in group["params"]
        for key, value in _unscheduled(group).items()
        if key in before[n] and key not in _IMPLEMENTATION and before[n][key] != value
    }
    return list(changes)


def _unscheduled(group: dict) -> dict:
    """Options of a group as the config had them; schedules change the rate and the momentum."""
    options = _options(group)
    options.pop("param_names", None)
    if "initial_lr" in options:
        options["lr"] = options.pop("initial_lr")
    momentum = options.pop("initial_momentum", None)
    if "betas" in options:
        first, *others = options["betas"]
        options["betas"] = (first if momentum is None else momentum, *others)
    elif momentum is not None:
        options["momentum"] = momentum
    return options


def _check_type(saved: dict, optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError if a state is of another type of optimizer.

    Older files do not name the type; some options show it.
    """
    own = type(optimizer).__name__
    telling = [
        {key for key in _TELLING if key in group}
        for group in (saved["param_groups"][0], optimizer.param_groups[0])
    ]
    kind = saved.get("type") or f"one with {', '.join(sorted(telling[0])) or 'other options'}"
    if saved.get("type", own) != own or telling[0] != telling[1]:
        raise ValueError(
            f"it is the state of another optimizer ({kind}) than {own}, which this config has: set "
            "optimizer.type back, or start from the weights only (load_from instead of resuming)"
        )


def match_layouts(optimizer: torch.optim.Optimizer) -> None:
    """Convert loaded states to the memory layout of their parameters, as fused kernels require.

    A run may be resumed with another `channels_last`; `load_state_dict` keeps the layout of the
    file.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if torch.is_tensor(value) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _check_state(state: dict, parameter: nn.Parameter, needed: Sequence[str]) -> None:
    """Raise ValueError unless the state of a parameter is complete and of its shape."""
    lacking = [name for name in needed if state.get(name) is None] if state else []
    if lacking:
        raise ValueError(f"the state of a parameter lacks {', '.join(lacking)}")
    for name in _OF_ITS_SHAPE:
        value = state.get(name)
        if value is not None and getattr(value, "shape", None) != parameter.shape:
            shape = tuple(value.shape) if torch.is_tensor(value) else type(value).__name__
            raise ValueError(
                f"its {name} of shape {shape} belongs to another parameter than one of shape "
                f"{tuple(parameter.shape)}: the model was another one"
            )
    step = state.get("step", 0)
    if not isinstance(step, (int, float)) and not (torch.is_tensor(step) and step.numel() == 1):
        raise ValueError(f"its step is {step!r}: it must be a number")

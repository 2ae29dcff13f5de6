"""Optimizers with few parameter groups, and saved states of optimizers with many."""

from __future__ import annotations

from typing import Iterable

import torch
from mmcv.runner import OPTIMIZER_BUILDERS, OPTIMIZERS, DefaultOptimizerConstructor
from torch import nn

from projects.bevformer import compat

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

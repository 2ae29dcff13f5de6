"""What the Runner trains: the detector wrapped in DDP, and its losses as one number."""

from collections import OrderedDict

import torch
from mmcv.parallel import MODULE_WRAPPERS
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from projects.bevformer import compat
from projects.bevformer.engine.batch import to_device
from projects.bevformer.engine.distributed import add_up, get_world_size, is_distributed
from projects.bevformer.model.mm.backbone import CheckpointedResNet


def total_loss(losses):
    """Sum the terms of a loss dict.

    Args:
        losses: name -> tensor or list of tensors, each averaged to a scalar. Names without "loss"
            are logged and not added.

    Returns:
        total: scalar tensor with gradient.
        terms: OrderedDict name -> detached scalar tensor, "loss" last.

    Raises:
        TypeError: a value is neither a tensor nor a list of tensors.
    """
    scalars = OrderedDict()
    for name, value in losses.items():
        if isinstance(value, torch.Tensor):
            scalars[name] = value.mean()
        elif isinstance(value, (list, tuple)):
            scalars[name] = sum(part.mean() for part in value)
        else:
            raise TypeError(
                f"loss {name} is a {type(value).__name__}, not a tensor or a list of tensors"
            )
    # "gloss.accuracy" is a number of the head "gloss" that is only logged.
    total = sum(value for name, value in scalars.items() if "loss" in name.rpartition(".")[2])
    terms = OrderedDict((name, value.detach()) for name, value in scalars.items())
    terms["loss"] = total.detach()
    return total, terms


def average_over_ranks(terms, noted=0.0):
    """Scalar tensors -> floats averaged over all processes, in one all-reduce and one device sync.

    Returns:
        OrderedDict name -> float, and the average of the number `noted`.
    """
    values = [value.float() for value in terms.values()]
    values = torch.stack([*values, torch.full_like(values[0], noted)])
    if is_distributed():
        add_up(values)
        values /= get_world_size()
    *values, noted = values.tolist()
    return OrderedDict(zip(terms, values)), noted


def _refuse_checkpoints(detector):
    """Raise ValueError if a module is recomputed in the backward pass."""
    for name, module in detector.named_modules():
        if getattr(module, "with_cp", False) or isinstance(module, CheckpointedResNet):
            raise ValueError(
                f"{name} has with_cp=True, which does not go with find_unused_parameters=True in "
                "several processes before torch 1.11: set one of the two to False"
            )


@MODULE_WRAPPERS.register_module()
class TrainingModel(nn.Module):
    """Moves collated batches to the device and returns losses to the Runner.

    Every training pass goes through DDP.forward: calling the detector past it would leave gradients
    unsynchronised without an error.

    Args:
        detector: called with `return_loss=True` and the batch; returns a dict of losses.
        device: where detector and batches go.
        find_unused_parameters, broadcast_buffers: as in DistributedDataParallel.

    Raises:
        ValueError: find_unused_parameters with checkpointing, in several processes on torch < 1.11.
    """

    def __init__(self, detector, device, find_unused_parameters=False, broadcast_buffers=False):
        super().__init__()
        self.device = device
        self.interruption = None  # its `number` is not 0 where a signal asks this process to end
        self.step = detector.to(device)
        if is_distributed():
            if find_unused_parameters and not compat.NON_REENTRANT_CHECKPOINTS:
                _refuse_checkpoints(detector)
            self.step = DistributedDataParallel(
                self.step,
                find_unused_parameters=find_unused_parameters,
                broadcast_buffers=broadcast_buffers,
                gradient_as_bucket_view=True,  # saves a copy of the gradients
            )

    @property
    def module(self):
        """The bare detector: for inference, checkpoints and hooks."""
        step = self.step
        return step.module if isinstance(step, DistributedDataParallel) else step

    @property
    def output_device(self):
        """Where mmcv's text log measures memory; None on a CPU."""
        return self.device if self.device.type == "cuda" else None

    def train_step(self, data, optimizer=None):
        """Losses of one batch, as mmcv's runners and optimizer hooks expect them."""
        batch = to_device(data, self.device)
        loss, terms = total_loss(self.step(return_loss=True, **batch))
        signalled = self.interruption is not None and self.interruption.number != 0
        log_vars, interrupted = average_over_ranks(terms, float(signalled))
        return {
            "loss": loss,
            "log_vars": log_vars,
            "interrupted": interrupted > 0,  # the same in all processes
            "num_samples": len(batch["img_metas"]),
        }

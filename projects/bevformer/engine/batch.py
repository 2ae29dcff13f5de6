"""From a collated batch of DataContainers to tensors on one device."""

import torch
from mmcv.parallel import DataContainer


def to_device(batch, device):
    """Unwrap the DataContainers of a one-device batch and move its tensors.

    mmcv's own `scatter` fails on CUDA with torch >= 2.1 (it hands `_get_stream` an int).

    Args:
        batch: nested dicts, lists and tuples of DataContainers and tensors, as `collate` makes them.
        device: where tensors go; contents of `cpu_only` containers stay.

    Returns:
        The same nesting without DataContainers.
    """
    if isinstance(batch, DataContainer):
        content = batch.data[0]  # one entry a device, and a process has one device
        return content if batch.cpu_only else to_device(content, device)
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


def train_sample_tokens(img_metas):
    """Tokens of the current frames of a training batch.

    Args:
        img_metas: list of B dicts {0: meta, ..., T-1: meta}.
    """
    return [queue[max(queue)]["sample_idx"] for queue in img_metas]


def test_sample_tokens(img_metas):
    """Tokens of a test batch.

    Args:
        img_metas: list (one entry an augmentation) of lists of B metas.
    """
    return [meta["sample_idx"] for meta in img_metas[0]]

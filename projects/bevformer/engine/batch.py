"""From samples to a collated batch of DataContainers, and from that to tensors on one device."""

import torch
from mmcv.parallel import DataContainer, collate

from projects.bevformer.transfer import upload


class PinnableContainer(DataContainer):
    """A DataContainer whose tensors a DataLoader can pin; it leaves mmcv's own containers as they are."""

    def pin_memory(self):
        """A container of the same content in pinned memory; contents that stay on the CPU are not copied.

        A DataLoader with `pin_memory=True` calls it in the main process (torch 1.10 to 2.11).
        """
        if self.cpu_only:
            return self
        return _with_data(self, _pinned(self.data))


def _pinned(value):
    if isinstance(value, torch.Tensor):
        return value.pin_memory()
    if isinstance(value, dict):
        return {key: _pinned(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_pinned(item) for item in value)
    return value


def _with_data(container, data):
    return PinnableContainer(
        data, container.stack, container.padding_value, container.cpu_only, container.pad_dims
    )


def collate_samples(samples):
    """mmcv's `collate` for one device, with containers that can be pinned.

    Args:
        samples: list of what the data set returned.
    """
    return _pinnable(collate(samples, samples_per_gpu=len(samples)))


def _pinnable(batch):
    if isinstance(batch, DataContainer):
        return _with_data(batch, batch.data)
    if isinstance(batch, dict):
        return {key: _pinnable(value) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(_pinnable(value) for value in batch)
    return batch


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
        return upload(batch, device)
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

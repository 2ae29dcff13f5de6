"""From samples to a collated batch of DataContainers, and from that to tensors on one device."""

from __future__ import annotations

from typing import Any, Callable

import torch
from mmcv.parallel import DataContainer, collate

from projects.bevformer.transfer import upload


class PinnableContainer(DataContainer):
    """A DataContainer whose tensors a DataLoader can pin."""

    def pin_memory(self) -> PinnableContainer:
        """A container of the same content in pinned memory; `cpu_only` content is not copied.

        A DataLoader with `pin_memory=True` calls it in the main process (torch 1.10 to 2.11).
        """
        if self.cpu_only:
            return self
        return _with_data(self, _map_leaves(self.data, lambda leaf: leaf.pin_memory()))


def _with_data(container: DataContainer, data: Any) -> PinnableContainer:
    return PinnableContainer(
        data, container.stack, container.padding_value, container.cpu_only, container.pad_dims
    )


def _map_leaves(value: Any, function: Callable[[Any], Any]) -> Any:
    """Apply `function` to the tensors and DataContainers in nested dicts, lists and tuples."""
    if isinstance(value, (torch.Tensor, DataContainer)):
        return function(value)
    if isinstance(value, dict):
        return {key: _map_leaves(item, function) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_map_leaves(item, function) for item in value)
    return value


def collate_samples(samples: list) -> Any:
    """mmcv's `collate` for one device, with containers that can be pinned.

    Args:
        samples: items of the data set.
    """
    batch = collate(samples, samples_per_gpu=len(samples))
    return _map_leaves(
        batch, lambda leaf: leaf if torch.is_tensor(leaf) else _with_data(leaf, leaf.data)
    )


def to_device(batch: Any, device: torch.device) -> Any:
    """Unwrap the DataContainers of a one-device batch and move its tensors.

    mmcv's own `scatter` fails on CUDA with torch >= 2.1 (it passes an int to `_get_stream`).

    Args:
        batch: nested dicts, lists and tuples of DataContainers and tensors, as `collate` makes
            them.
        device: of the tensors; the content of `cpu_only` containers stays.

    Returns:
        The same nesting without DataContainers.
    """

    def move(leaf: Any) -> Any:
        if torch.is_tensor(leaf):
            return upload(leaf, device)
        content = leaf.data[0]  # one entry per device, and a process has one device
        return content if leaf.cpu_only else to_device(content, device)

    return _map_leaves(batch, move)


def train_sample_tokens(img_metas: list) -> list[str]:
    """Tokens of the current frames of a training batch.

    Args:
        img_metas: list of B dicts {0: meta, ..., T-1: meta}.
    """
    return [queue[max(queue)]["sample_idx"] for queue in img_metas]


def test_sample_tokens(img_metas: list) -> list[str]:
    """Tokens of a test batch.

    Args:
        img_metas: list (one entry per augmentation) of lists of B metas.
    """
    return [meta["sample_idx"] for meta in img_metas[0]]

"""Host-device syncs of a training step: one for the visible queries, one for the matching."""

import collections

import numpy as np
import pytest
import torch
from tiny_bevformer import build_detector, training_batch
from tiny_bevformer_v2 import build_detector_v2, training_batch_v2

overrides = pytest.importorskip("torch.overrides")
if not hasattr(overrides, "TorchFunctionMode"):
    pytest.skip("torch < 1.13 cannot watch calls", allow_module_level=True)

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

# Methods that need the contents of a tensor on the host, on any device.
READS = ["tolist", "item", "cpu", "nonzero", "unique"]
READS += ["__bool__", "__int__", "__float__", "__index__"]
OPERATORS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2"}


class Reads(overrides.TorchFunctionMode):
    """Counts the calls in READS."""

    def __init__(self):
        super().__init__()
        self.names = {getattr(torch.Tensor, name): name for name in READS}
        self.names[torch.nonzero] = "nonzero"
        self.counts = collections.Counter()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in self.names:
            self.counts[self.names[func]] += 1
        return func(*args, **(kwargs or {}))


class Operators(TorchDispatchMode):
    """Counts the operators, also inside others, that read a tensor or index with a mask."""

    def __init__(self):
        super().__init__()
        self.counts = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().split(".")[0]
        if name in OPERATORS:
            self.counts[name] += 1
        if name in ("aten::index", "aten::index_put_"):
            masks = [index for index in args[1] if index is not None and index.dtype == torch.bool]
            self.counts["mask"] += len(masks)
        return func(*args, **(kwargs or {}))


def check_training_step(model, batch):
    """It reads the numbers of visible queries and the matching costs; no shape depends on data."""
    reads, operators = Reads(), Operators()
    with reads, operators:
        losses = model(return_loss=True, **batch)
    assert reads.counts == {"tolist": 1, "cpu": 1}
    assert operators.counts["mask"] == 0
    assert not any(operators.counts[name] for name in OPERATORS)
    with operators:
        sum(losses.values()).backward()
    assert not any(operators.counts.values())


@pytest.mark.parametrize("with_cp", [False, True])
@pytest.mark.parametrize("frames", [1, 4])
def test_training_step_syncs_twice(frames, with_cp):
    options = dict(dropout=0.1, use_grid_mask=True, head=dict(group_detr=2))
    model = build_detector(with_cp=with_cp, **options)
    check_training_step(model, training_batch((0, 1), frames=frames))


@pytest.mark.parametrize("frames", [(0,), (-1, 0)])
def test_v2_training_step_syncs_twice(frames):
    batch = training_batch_v2((0, 1), frames=frames)
    for queue in batch["img_metas"]:
        queue[0]["bev_augmentation"] = np.eye(3, dtype=np.float32)
    check_training_step(build_detector_v2(frames), batch)

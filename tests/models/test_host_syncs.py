"""How often a training step waits for the device: once for the camera hits, once for the matching."""

import collections

import pytest
import torch
from tiny_bevformer import build_detector, training_batch

overrides = pytest.importorskip("torch.overrides")
if not hasattr(overrides, "TorchFunctionMode"):
    pytest.skip("torch < 1.13 cannot watch calls", allow_module_level=True)

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

# Methods that need the contents of a tensor on the host, whatever the device.
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


@pytest.mark.parametrize("with_cp", [False, True])
@pytest.mark.parametrize("frames", [1, 4])
def test_a_training_step_waits_twice_for_the_device(frames, with_cp):
    options = dict(dropout=0.1, use_grid_mask=True, head=dict(group_detr=2))
    model = build_detector(with_cp=with_cp, **options)
    batch = training_batch((0, 1), frames=frames)
    reads, operators = Reads(), Operators()
    with reads, operators:
        losses = model(return_loss=True, **batch)
    assert reads.counts == {"tolist": 1, "cpu": 1}
    assert operators.counts["mask"] == 0
    assert not any(operators.counts[name] for name in OPERATORS)
    with operators:
        sum(losses.values()).backward()
    assert not any(operators.counts.values())

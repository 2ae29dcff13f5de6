"""A CUDA device that does not exist: training steps and test frames run on tensors without contents.

`pretend_there_is_a_gpu` lets torch.cuda answer as on a machine with one H100, `FakeGpu` is a
FakeTensorMode that follows every operator, and `walk_backward` does the work of autograd's engine, which
refuses a device that is not there. All of them change torch for the whole process: use them in a process
of their own, as benchmarks/fake_cuda.py does. Needs torch 2.1.
"""

import collections
import re
import sys
import types
from pathlib import Path

import numpy as np
import roofline
import torch
import torch._subclasses.fake_tensor as fake_tensor
import torch.utils._foreach_utils as foreach_utils
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves

HERE = Path(__file__).parent
# Boolean masks select so many entries, and `nonzero` finds so many.
MASK_COUNT = 5
# dtypes that the CUDA kernels of torch 2.11 / torchvision 0.26 refuse, as far as read in their sources.
REFUSED_ON_CUDA = {
    "aten::_embedding_bag_per_sample_weights_backward": {"bfloat16"},  # pytorch#185808
    "torchvision::deform_conv2d": {"bfloat16"},
    "torchvision::_deform_conv2d_backward": {"bfloat16"},
    "aten::_cdist_forward": {"bfloat16", "float16"},
    "aten::linalg_inv_ex": {"bfloat16", "float16"},
    "aten::searchsorted.Tensor": {"float16"},
}
# CUDA implementations that add in an order that changes.
NOT_DETERMINISTIC = re.compile(
    r"grid_sampler_2d_backward|max_pool2d_with_indices_backward|upsample_bilinear2d_backward"
    r"|_deform_conv2d_backward|scatter_add|index_add|_ctc|histc|bincount|kthvalue|median|put_|adaptive"
    r"|nll_loss2d|reflection_pad|replication_pad|embedding_bag_dense_backward|_embedding_bag_backward"
    r"|scatter_reduce|index_reduce"
)
_NO_KERNEL = re.compile(
    r"^aten::(empty|new_empty|_unsafe_view|lift|detach|alias|_reshape_alias|_local_scalar)"
)
# Operators that may take CPU tensors together with CUDA ones.
_MIXING = ("aten::_to_copy", "aten::copy_", "aten::index.Tensor", "aten::_foreach_copy_")
_MASKED = ("aten::index.Tensor", "aten::index_put_", "aten::index_put")


class _NoContext:
    """Stands in for torch.cuda.device and torch.cuda.stream."""

    def __init__(self, *args, **kwargs):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *args):
        return False


def pretend_there_is_a_gpu():
    """torch.cuda answers as on a machine with one H100; nothing touches a driver."""
    properties = types.SimpleNamespace(
        name="FAKE H100", major=9, minor=0, total_memory=80 << 30, multi_processor_count=132,
        warp_size=32, L2_cache_size=50 << 20, gcnArchName="",
    )  # fmt: skip
    answers = dict(
        is_available=lambda: True,
        device_count=lambda: 1,
        current_device=lambda: 0,
        is_initialized=lambda: True,
        _lazy_init=lambda: None,
        init=lambda: None,
        set_device=lambda d: None,
        synchronize=lambda d=None: None,
        get_device_capability=lambda d=None: (9, 0),
        get_device_name=lambda d=None: properties.name,
        get_device_properties=lambda d=None: properties,
        is_bf16_supported=lambda *a, **k: True,
        empty_cache=lambda: None,
        get_rng_state=lambda d=0: torch.empty(16, dtype=torch.uint8),
        set_rng_state=lambda *a, **k: None,
        manual_seed_all=lambda s: None,
        manual_seed=lambda s: None,
        max_memory_allocated=lambda d=None: 0,
        max_memory_reserved=lambda d=None: 0,
        reset_peak_memory_stats=lambda d=None: None,
        memory_allocated=lambda d=None: 0,
        device=_NoContext,
        stream=_NoContext,
        get_arch_list=lambda: ["sm_80", "sm_90"],
        is_current_stream_capturing=lambda: False,
    )
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    for module in ("torch.amp.grad_scaler", "torch.optim.optimizer"):
        target = sys.modules.get(module)
        if target is not None and hasattr(target, "_cuda_isCurrentStreamCapturing"):
            target._cuda_isCurrentStreamCapturing = lambda: False
    torch._C._cuda_isCurrentStreamCapturing = lambda: False
    fake_tensor.init_gpu_context = lambda device: None
    # The optimizer and clipping take their multi-tensor ways for fake tensors too, as for real ones.
    sys.modules["torch.optim.optimizer"]._foreach_supported_types.append(FakeTensor)
    foreach_utils._has_foreach_support = lambda tensors, device: device.type in ("cpu", "cuda")
    sys.modules[
        "torch.nn.utils.clip_grad"
    ]._has_foreach_support = foreach_utils._has_foreach_support
    torch.Tensor.pin_memory = _pin_memory
    torch.Tensor.is_pinned = _is_pinned
    torch.nn.Module._apply = _apply_by_replacing
    torch.nn.Module.to = _to


_pinned = {}  # name of a storage -> the storage, kept so that its name is not given again


def _pin_memory(tensor, device=None):
    if _is_pinned(tensor):
        return tensor
    copy = tensor.clone()
    storage = copy.untyped_storage()
    _pinned[storage._cdata] = storage
    return copy


def _is_pinned(tensor, device=None):
    return tensor.untyped_storage()._cdata in _pinned


def _apply_by_replacing(module, function, recurse=True):
    """nn.Module._apply for fake tensors, whose device cannot change in place: new ones take their place."""
    moved = {}

    def move(tensor):
        if id(tensor) not in moved:
            with torch.no_grad():
                # Copies of channels-last fake tensors damage torch 2.11's memory.
                to = function(torch.empty(1, dtype=tensor.dtype, device=tensor.device))
                options = dict(dtype=to.dtype, device=to.device)
                new = torch.empty_strided(tensor.shape, tensor.stride(), **options)
            if isinstance(tensor, torch.nn.Parameter):
                new = torch.nn.Parameter(new, tensor.requires_grad)
            moved[id(tensor)] = tensor, new
        return moved[id(tensor)][1]

    _replace_tensors(module, move)
    return module


_real_to = torch.nn.Module.to


def _to(module, *args, **kwargs):
    layout = kwargs.pop("memory_format", None)

    def laid_out(tensor):
        if tensor.dim() != 4:
            return tensor
        options = dict(dtype=tensor.dtype, device=tensor.device, memory_format=layout)
        new = torch.empty(tensor.shape, **options)
        parameter = isinstance(tensor, torch.nn.Parameter)
        return torch.nn.Parameter(new, tensor.requires_grad) if parameter else new

    if layout is not None:
        _replace_tensors(module, laid_out)
    return _real_to(module, *args, **kwargs) if args or kwargs else module


def _replace_tensors(module, function):
    for child in module.modules():
        for own in (child._parameters, child._buffers):
            for key, tensor in own.items():
                if tensor is not None:
                    own[key] = function(tensor)


class Records:
    """What a training step or a test frame did.

    Attributes:
        faults: sentences, one for each fault, wherever it happened.
        in_step: whether the numbers below are counted.
        launches: file -> operators that start at least one kernel; a _foreach_ operator counts once.
        reads: place -> times that the host waits for the GPU: item, tolist, cpu, nonzero, masks.
        block: place -> copies from the host that are not `non_blocking`, and CPU indices.
        unpinned: place -> non-blocking copies from pageable memory, which block all the same.
        h2d, h2d_count: place -> bytes that went to the GPU, and the number of copies.
        not_deterministic: operator and place -> times.
        half: operator -> times that it saw a tensor of half precision.
        checked: names of the operators that were looked at.
        times: (phase, kind) -> [seconds, kernels, operations, bytes] of the estimate.
    """

    def __init__(self, visible=(), chip=None):
        self.faults = []
        self.in_step = False
        self.launches, self.reads = collections.Counter(), collections.Counter()
        self.block, self.unpinned = collections.Counter(), collections.Counter()
        self.h2d, self.h2d_count = collections.Counter(), 0
        self.not_deterministic, self.half = collections.Counter(), collections.Counter()
        self.checked = set()
        self.times = {}
        self.visible = tuple(visible)
        self.chip = chip
        self.phase = "current"

    def summary(self):
        """All of it in plain values."""
        names = ("launches", "reads", "block", "unpinned", "h2d", "not_deterministic", "half")
        faults = sorted(set(self.faults))
        faults += [f"a copy that waits: {place}" for place in self.block]
        faults += [f"a copy from pageable memory: {place}" for place in self.unpinned]
        return {
            **{name: dict(getattr(self, name)) for name in names},
            "faults": faults,
            "h2d_count": self.h2d_count,
            "checked": len(self.checked),
            "times": {" ".join(key): value for key, value in self.times.items()},
        }


class FakeGpu(FakeTensorMode):
    """FakeTensorMode that checks each operator for CUDA and counts what it costs.

    Args:
        root: path of the checkout; places are named relative to its package.
        records: Records that are written.
    """

    avoid_device_init = True

    def __init__(self, root, records):
        super().__init__(allow_non_fake_inputs=True, allow_fallback_kernels=False)
        self.root = str(root)
        self.records = records
        self._depth = 0
        self._rng = np.random.RandomState(0)
        FakeTensor.numpy = FakeTensor.__array__ = self._make_to_numpy()
        FakeTensor.tolist = self._make_to_list()

    def __torch_dispatch__(self, func, types_, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.name()
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        gpu = any(_is_gpu(t) for t in tensors)
        if name == "aten::_local_scalar_dense" and isinstance(args[0], FakeTensor):
            return self._item(args[0], gpu)
        if name == "aten::nonzero":
            if gpu:
                self._read(f"nonzero at {self._site()}")
            with self:
                shape = MASK_COUNT, args[0].dim()
                return torch.empty(shape, dtype=torch.long, device=args[0].device)
        if name in _MASKED and any(_is_mask(index) for index in args[1]):
            args = (args[0], self._without_masks(args[0], args[1], gpu), *args[2:])
            with self:
                return func(*args, **kwargs)
        if name in ("aten::linalg_inv_ex", "aten::inverse") and gpu:
            self._read(f"error code of an inverse at {self._site()}")
        if name in (
            "aten::_amp_foreach_non_finite_check_and_unscale_",
            "aten::_amp_update_scale_",
        ):
            if len({t.device for t in tensors}) != 1:
                raise RuntimeError(f"{name}: tensors on several devices")
            return args[0] if name == "aten::_amp_update_scale_" else None
        self._depth += 1
        try:
            out = super().__torch_dispatch__(func, types_, args, kwargs)
        finally:
            self._depth -= 1
        if not self._depth:  # not an operator inside another
            self._follow(func, name, args, kwargs, tensors, out)
        return out

    def _item(self, tensor, gpu):
        if gpu:
            self._read(f"item at {self._site()}")
        if tensor.dtype == torch.bool:
            return not _called_from("clip_grad_norm_")  # the norm is finite
        if gpu and _called_from("_maybe_opt_step"):  # GradScaler: nothing overflowed
            return 0.0
        return 1.0 if tensor.dtype.is_floating_point else 1

    def _without_masks(self, tensor, indices, gpu):
        """The indices with numbers in place of masks."""
        if gpu:
            self._read(f"boolean mask at {self._site()}")
        numbers = []
        for index in indices:
            if _is_mask(index):
                if _is_gpu(tensor) and not _is_gpu(index):
                    self._read(f"CPU mask on a GPU tensor at {self._site()}")
                with self:
                    chosen = torch.empty(MASK_COUNT, dtype=torch.long, device=tensor.device)
                numbers += [chosen] * index.dim()
            else:
                numbers.append(index)
        return numbers

    def _follow(self, func, name, args, kwargs, tensors, out):
        records = self.records
        outs = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        if name in ("aten::_to_copy", "aten::copy_"):
            self._copy(name, args, kwargs, outs)
        if not any(_is_gpu(t) for t in (*tensors, *outs)):
            return
        if records.in_step and _starts_a_kernel(func):
            place = self._site().split(":")[0]
            records.launches[place] += 1
            if records.chip:
                self._estimate(func, name, args, kwargs, tensors, outs, place)
        self._check(name, args, tensors)

    def _copy(self, name, args, kwargs, outs):
        records = self.records
        source, target = (args[1], args[0]) if name == "aten::copy_" else (args[0], outs[0])
        way = source.device.type, target.device.type
        if way[0] == way[1]:
            return
        size = source.numel() * source.element_size()
        if way == ("cuda", "cpu"):
            self._read(f"copy to the CPU of {size} bytes at {self._site()}")
        elif records.in_step:
            place = f"{size} bytes at {self._site()}"
            non_blocking = kwargs.get("non_blocking") or (len(args) > 2 and args[2])
            if not non_blocking:
                records.block[place] += 1
            elif not _is_pinned(source):
                records.unpinned[place] += 1
            if way == ("cpu", "cuda"):
                records.h2d[self._site()] += size
                records.h2d_count += 1

    def _check(self, name, args, tensors):
        records = self.records
        if name not in records.checked:
            records.checked.add(name)
            has_kernel = torch._C._dispatch_has_computed_kernel_for_dispatch_key
            if not name.startswith("prim::") and not has_kernel(name, "CUDA"):
                records.faults.append(f"{name} has no CUDA kernel, used at {self._site()}")
        kinds = {str(t.dtype).split(".")[1] for t in tensors if t.is_floating_point()}
        refused = REFUSED_ON_CUDA.get(name, set()) & kinds
        if refused:
            records.faults.append(
                f"{name} does not take {sorted(refused)} on CUDA, used at {self._site()}"
            )
        if NOT_DETERMINISTIC.search(name):
            records.not_deterministic[f"{name} at {self._site()}"] += records.in_step
        if name.startswith("aten::index_put") and len(args) > 3 and args[3]:
            place = f"{name} accumulate at {self._site()}"
            records.not_deterministic[place] += records.in_step
        on_cpu = [t for t in tensors if t.device.type == "cpu" and t.dim() > 0]
        if on_cpu and name not in _MIXING:
            records.faults.append(
                f"{name} mixes CPU {tuple(on_cpu[0].shape)} and CUDA tensors at {self._site()}"
            )
        if on_cpu and name == "aten::index.Tensor" and records.in_step:
            records.block[f"CPU index on a GPU tensor at {self._site()}"] += 1
        if kinds & {"float16", "bfloat16"}:
            records.half[name] += 1

    def _estimate(self, func, name, args, kwargs, tensors, outs, place):
        records = self.records
        tensors, outs = [t for t in tensors if _is_gpu(t)], [t for t in outs if _is_gpu(t)]
        seconds, kind, operations, moved = roofline.estimate(
            func, name, args, tensors, outs, roofline.CHIPS[records.chip]
        )
        scaling = place == "engine/precision.py" and records.phase != "backward"
        if place.startswith("ops/deform"):
            kind = "msda"
        elif "optim/" in place or "clip_grad" in place or scaling:
            kind = "optimizer"
        elif place.startswith(("ops/color", "model/image_prep", "model/grid_mask")):
            kind = "preprocess"
        phase = records.phase if kind != "optimizer" else "optimizer"
        entry = records.times.setdefault((phase, kind or "msda"), [0.0, 0, 0.0, 0.0])
        for i, amount in enumerate((seconds, 1, operations, moved)):
            entry[i] += amount

    def _read(self, what):
        if self.records.in_step:
            self.records.reads[what] += 1

    def _site(self):
        """file:line of the innermost frame of the package, or of the innermost outside torch."""
        frame, inner = sys._getframe(2), None
        while frame is not None:
            name = frame.f_code.co_filename
            if "/projects/bevformer/" in name and self.root in name:
                if not name.endswith("/transfer.py"):  # whoever asked for the copy
                    return f"{name.split('/projects/bevformer/')[1]}:{frame.f_lineno}"
            elif inner is None and Path(name).parent != HERE and "/torch/_" not in name:
                inner = f"{'/'.join(name.split('/')[-2:])}:{frame.f_lineno}"
            frame = frame.f_back
        return f"outside ({inner})"

    def _make_to_numpy(self):
        def to_numpy(tensor, *args, **kwargs):
            if tensor.device.type != "cpu":
                raise TypeError(f"can't convert {tensor.device} tensor to numpy at {self._site()}")
            if tensor.dtype.is_floating_point:
                kind = {torch.float64: "f8", torch.float16: "f2"}.get(tensor.dtype, "f4")
                return self._rng.rand(*tensor.shape).astype(kind)
            return np.zeros(tuple(tensor.shape), dtype=str(tensor.dtype).split(".")[1])

        return to_numpy

    def _make_to_list(self):
        def nested(shape):
            return [nested(shape[1:]) for _ in range(shape[0])] if shape else 1.0

        def to_list(tensor):
            if _is_gpu(tensor):
                self._read(f"tolist at {self._site()}")
            visible = self.records.visible
            if visible and tensor.dim() == 2 and tensor.shape[-1] == len(visible):
                return [list(visible) for _ in range(tensor.shape[0])]
            return nested(tuple(tensor.shape))

        return to_list


def _is_gpu(tensor):
    return isinstance(tensor, torch.Tensor) and tensor.device.type == "cuda"


def _is_mask(index):
    return index is not None and index.dtype in (torch.bool, torch.uint8)


def _called_from(function):
    frame = sys._getframe(2)
    while frame is not None and frame.f_code.co_name != function:
        frame = frame.f_back
    return frame is not None


_launch_memo = {}


def _starts_a_kernel(func):
    """Whether an operator starts a kernel: no view, no allocation."""
    if func not in _launch_memo:
        aliases = [r.alias_info for r in func._schema.returns]
        view = bool(aliases) and any(a is not None and not a.is_write for a in aliases)
        name = func.name()
        no_kernel = view or name.startswith("prim") or _NO_KERNEL.search(name)
        _launch_memo[func] = not no_kernel
    return _launch_memo[func]


def walk_backward(root_tensor, grad=None):
    """Do what autograd's engine does for `root_tensor.backward(grad)`, node by node in Python."""
    # Checkpoints remember what they computed by the number of the pass.
    number = walk_backward.count = getattr(walk_backward, "count", 0) + 1
    real = torch._C._current_graph_task_id
    torch._C._current_graph_task_id = lambda: number
    try:
        with torch.no_grad():
            _walk(root_tensor, torch.ones_like(root_tensor) if grad is None else grad)
    finally:
        torch._C._current_graph_task_id = real


def _walk(root_tensor, grad):
    start = root_tensor.grad_fn
    waits, stack, seen = collections.Counter(), [start], {start}
    while stack:
        for following, _ in stack.pop().next_functions:
            if following is not None:
                waits[following] += 1
                if following not in seen:
                    seen.add(following)
                    stack.append(following)
    buffers = {start: {root_tensor.output_nr: grad}}
    ready = [start]
    while ready:
        node = ready.pop()
        incoming = buffers.pop(node, {})
        if type(node).__name__ == "AccumulateGrad":
            if 0 in incoming:
                variable = node.variable
                old = variable.grad
                variable.grad = incoming[0] if old is None else old + incoming[0]
            continue
        metadata = node._input_metadata
        grads = [incoming.get(i) for i in range(len(metadata))]
        results = [None] * len(node.next_functions)
        if any(g is not None for g in grads):
            results = _aligned(_call(node, grads, metadata), node)
        for result, (following, number) in zip(results, node.next_functions):
            if following is None:
                continue
            if result is not None:
                result = _validated(result, following, number, node)
                slot = buffers.setdefault(following, {})
                slot[number] = result if number not in slot else slot[number] + result
            waits[following] -= 1
            if waits[following] == 0:
                ready.append(following)


def _call(node, grads, metadata):
    if isinstance(node, torch.autograd.function.BackwardCFunction):
        filled = [
            torch.zeros(tuple(m.shape), dtype=m.dtype, device=m.device) if g is None else g
            for g, m in zip(grads, metadata)
        ]
        results = node.apply(*filled)
    else:
        results = node(*grads)
    return list(results) if isinstance(results, (tuple, list)) else [results]


def _aligned(results, node):
    """Gradients of a Python function's arguments that are tensors, as next_functions has them."""
    surplus = len(results) - len(node.next_functions)
    for i in range(len(results) - 1, -1, -1):
        if surplus > 0 and results[i] is None:
            del results[i]
            surplus -= 1
    if surplus > 0:
        raise RuntimeError(f"{node.name()} gave {surplus} gradients too many")
    return results


def _validated(grad, following, number, node):
    """The checks of validate_outputs in torch's engine.cpp."""
    meta = following._input_metadata[number]
    if type(following).__name__ == "AccumulateGrad":
        meta = following.variable
    if tuple(grad.shape) != tuple(meta.shape):
        grad = grad.sum_to_size(tuple(meta.shape))
    if grad.device != meta.device:
        raise RuntimeError(
            f"{node.name()} returned a gradient on {grad.device}, expected {meta.device}"
        )
    return grad.to(meta.dtype)

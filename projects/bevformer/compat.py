"""The only file that knows how versions of torch, mmcv and mmdet3d differ.

Importing it makes `import mmdet3d` work; every module that uses mmdet3d imports this one first.
"""

import contextlib
import inspect
import io
import os
import pickle
import re
import warnings

import mmcv
import torch
import torch.distributed
from mmcv.utils import digit_version
from torch.utils.checkpoint import checkpoint as torch_checkpoint

# mmdet3d 1.0.0rc6 refuses mmcv above this version; it runs on the ones below unchanged.
_MMDET3D_NEWEST_MMCV = "1.7.0"
TESTED_MMCV = ("1.6.0", "1.7.0", "1.7.2")


def _import_mmdet3d():
    """Import mmdet3d past its version gate; `mmcv.__version__` is true again afterwards."""
    true_version = mmcv.__version__
    if true_version not in TESTED_MMCV:
        raise ImportError(
            f"mmcv-full {true_version} is not one of {', '.join(TESTED_MMCV)}: run `make setup`, "
            "or install the versions named in requirements.txt"
        )
    mmcv.__version__ = min(true_version, _MMDET3D_NEWEST_MMCV)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import mmdet3d.datasets
            import mmdet3d.models  # noqa: F401
    finally:
        mmcv.__version__ = true_version


_import_mmdet3d()


class _PlainPickle:
    """Stands in for the pickle module in `torch.load` of torch < 1.13: tensors and plain values only."""

    _ALLOWED = {
        ("collections", "OrderedDict"),
        ("builtins", "set"),
        ("torch", "Size"),
        ("torch", "device"),
        ("torch._utils", "_rebuild_parameter"),
        ("torch._utils", "_rebuild_tensor"),
        ("torch._utils", "_rebuild_tensor_v2"),
    }

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            is_storage_or_dtype = module == "torch" and (
                name.endswith("Storage") or isinstance(getattr(torch, name, None), torch.dtype)
            )
            if is_storage_or_dtype or (module, name) in _PlainPickle._ALLOWED:
                return super().find_class(module, name)
            raise pickle.UnpicklingError(f"Unsupported global: GLOBAL {module}.{name}")

    @staticmethod
    def load(file, **pickle_load_args):
        return _PlainPickle.Unpickler(file, **pickle_load_args).load()


def _safely():
    """Arguments of `torch.load` that keep it from running code."""
    if digit_version(torch.__version__) >= digit_version("1.13.0"):
        return {"weights_only": True}
    return {"pickle_module": _PlainPickle}


def load_torch_bytes(content):
    """What torch put into a pickle for a tensor's storage, read as `load_torch_file` reads a file."""
    return torch.load(io.BytesIO(content), map_location="cpu", **_safely())


def load_torch_file(path, map_location="cpu"):
    """`torch.load` that never runs code from the file: tensors and plain Python values only.

    Args:
        path: a file that `torch.save` wrote.
        map_location: as in `torch.load`.

    Returns:
        What the file holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, truncated, not of torch, or holds other objects.
    """
    path = str(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    try:
        return torch.load(path, map_location=map_location, **_safely())
    except Exception as error:  # random bytes can make an unpickler raise anything
        if "GLOBAL" in str(error):
            unsafe = re.search(r"GLOBAL ([\w.]+)", str(error))
            raise ValueError(
                f"checkpoint {path} holds a Python object ({unsafe.group(1) if unsafe else '?'}); "
                "loading it could run code, so only tensors and plain values are read: save it again "
                "with `meta` made of str, int, float, list and dict"
            ) from error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"checkpoint {path} cannot be read ({reason}): it is truncated or not a torch file; "
            "copy or download it again"
        ) from error


def gpu_computes_in_bfloat16():
    """Whether the current GPU has bfloat16 arithmetic; newer versions of torch emulate it where not."""
    supported = torch.cuda.is_bf16_supported
    if "including_emulation" in inspect.signature(supported).parameters:
        return supported(including_emulation=False)
    return supported()


def make_grad_scaler(**options):
    """`GradScaler` for float16 training on CUDA; torch 2.3 moved it."""
    if hasattr(getattr(torch, "amp", None), "GradScaler"):
        return torch.amp.GradScaler("cuda", **options)
    return torch.cuda.amp.GradScaler(**options)


# torch >= 1.11. Before, deterministic algorithms make an error of each operator that has none, such as
# deformable convolution.
CAN_WARN_OF_NONDETERMINISM = (
    "warn_only" in inspect.signature(torch.use_deterministic_algorithms).parameters
)


def use_deterministic_algorithms():
    """Let torch choose repeatable algorithms and warn where it has none; torch 1.10 is left as it is."""
    if CAN_WARN_OF_NONDETERMINISM:
        torch.use_deterministic_algorithms(True, warn_only=True)


def has_fused_cuda_kernels(optimizer_class):
    """Whether an optimizer takes `fused=True` for parameters on CUDA: Adam, AdamW and SGD of torch 2."""
    return (
        optimizer_class in (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
        and "fused" in inspect.signature(optimizer_class).parameters
    )


# torch >= 2.3.
_GROUPS_TAKE_A_DEVICE = (
    "device_id" in inspect.signature(torch.distributed.init_process_group).parameters
)


def device_of_process_group(device):
    """Arguments of `init_process_group` that bind it to a GPU; without them torch 2's barrier() warns."""
    return {"device_id": device} if device.type == "cuda" and _GROUPS_TAKE_A_DEVICE else {}


def mmcv_has_cuda_operators():
    """Whether this mmcv-full was compiled with CUDA; `make setup` compiles it without."""
    from mmcv.ops import get_compiling_cuda_version

    return get_compiling_cuda_version() != "not available"


# torch >= 1.11. The reentrant form before it runs the backward pass of each checkpoint as a pass of its
# own, which DistributedDataParallel cannot tell from a second use where it searches unused parameters.
NON_REENTRANT_CHECKPOINTS = "use_reentrant" in inspect.signature(torch_checkpoint).parameters


def checkpoint(function, *tensors):
    """`function(*tensors)`, of which only the arguments are kept; backward computes it once more.

    Random numbers and autocast are those of the first time. Without gradient it is a plain call.

    Args:
        function: returns a tensor. Tensors that it uses besides its arguments must not carry a gradient
            that comes from elsewhere than its own parameters: torch < 1.11 would lose it.
        tensors: its arguments; None is allowed.
    """
    if not torch.is_grad_enabled():
        return function(*tensors)
    if NON_REENTRANT_CHECKPOINTS:
        return torch_checkpoint(function, *tensors, use_reentrant=False)
    if not any(tensor is not None and tensor.requires_grad for tensor in tensors):
        return function(*tensors)  # the reentrant form would give its parameters no gradient
    return torch_checkpoint(_with_autocast_of_now(function), *tensors)


def _with_autocast_of_now(function):
    """`function` under today's autocast whenever it is called; torch 1.10's checkpoint forgets a CPU's."""
    states = []
    if torch.is_autocast_enabled():
        states.append(("cuda", torch.get_autocast_gpu_dtype()))
    if torch.is_autocast_cpu_enabled():
        # torch 1.10 knows no other, and its get_autocast_cpu_dtype() gives a dtype equal to none.
        states.append(("cpu", torch.bfloat16))

    def run(*tensors):
        with contextlib.ExitStack() as stack:
            for device_type, dtype in states:
                stack.enter_context(torch.autocast(device_type, dtype=dtype))
            return function(*tensors)

    return run

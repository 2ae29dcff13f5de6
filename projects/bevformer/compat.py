"""All version checks: differences between versions of torch, mmcv and mmdet3d.

Importing it makes `import mmdet3d` work; every module that uses mmdet3d imports this one first.
"""

import contextlib
import inspect
import warnings

try:
    import mmcv
    import mmdet  # noqa: F401
    import mmseg  # noqa: F401
    import torch
    import torch.distributed
    import torchvision  # noqa: F401
    from torch.utils.checkpoint import checkpoint as torch_checkpoint
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{error}: torch and the OpenMMLab packages are installed by `make setup` "
        "(docs/install.md), not by pip from this project's dependencies",
        name=error.name,
    ) from error

# mmdet3d 1.0.0rc6 refuses mmcv above this version; it runs on the ones below unchanged.
_MMDET3D_NEWEST_MMCV = "1.7.0"
TESTED_MMCV = ("1.6.0", "1.7.0", "1.7.2")


def _import_mmdet3d():
    """Import mmdet3d past its version check; `mmcv.__version__` has its own value again afterwards.

    In an environment made by `make setup` the check is relaxed in the installed file and
    `import mmdet3d` works in any order; elsewhere this module has to be imported first.
    """
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


def _takes(function, argument):
    """Whether a function of this torch has an argument, which other versions may not have."""
    return argument in inspect.signature(function).parameters


def gpu_computes_in_bfloat16():
    """Whether the current GPU has bfloat16 arithmetic; newer torch versions can emulate it."""
    supported = torch.cuda.is_bf16_supported
    takes_it = _takes(supported, "including_emulation")
    return supported(including_emulation=False) if takes_it else supported()


def make_grad_scaler(**options):
    """`GradScaler` for float16 training on CUDA; torch 2.3 moved it."""
    if hasattr(getattr(torch, "amp", None), "GradScaler"):
        return torch.amp.GradScaler("cuda", **options)
    return torch.cuda.amp.GradScaler(**options)


# torch >= 1.11. Before, deterministic algorithms make an error of each operator that has none, such
# as deformable convolution.
CAN_WARN_OF_NONDETERMINISM = _takes(torch.use_deterministic_algorithms, "warn_only")


def use_deterministic_algorithms():
    """Choose deterministic algorithms, with a warning where there are none; no-op on torch 1.10."""
    if CAN_WARN_OF_NONDETERMINISM:
        torch.use_deterministic_algorithms(True, warn_only=True)


def has_fused_cuda_kernels(optimizer_class):
    """Whether an optimizer takes `fused=True` on CUDA: Adam, AdamW and SGD of torch 2."""
    known = optimizer_class in (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
    return known and _takes(optimizer_class, "fused")


# torch >= 2.3.
_GROUPS_TAKE_A_DEVICE = _takes(torch.distributed.init_process_group, "device_id")
# With "1" a collective of NCCL that times out ends its process; torch 1.10 would wait forever.
NCCL_TIME_OUTS = f"{'TORCH_' if _GROUPS_TAKE_A_DEVICE else ''}NCCL_ASYNC_ERROR_HANDLING"


def device_of_process_group(device):
    """Arguments of `init_process_group` that bind it to a GPU; else torch 2's barrier() warns."""
    return {"device_id": device} if device.type == "cuda" and _GROUPS_TAKE_A_DEVICE else {}


def mmcv_has_cuda_operators():
    """Whether this mmcv-full was compiled with CUDA; `make setup` compiles it without."""
    from mmcv.ops import get_compiling_cuda_version

    return get_compiling_cuda_version() != "not available"


# torch >= 1.11. The reentrant form before it runs the backward pass of each checkpoint as a pass of
# its own, which DistributedDataParallel cannot tell from a second use where it searches unused
# parameters.
NON_REENTRANT_CHECKPOINTS = _takes(torch_checkpoint, "use_reentrant")


def checkpoint(function, *tensors):
    """`function(*tensors)`, recomputed in the backward pass: only the arguments are kept.

    Random numbers and autocast are those of the first time. Without gradient it is a plain call.

    Args:
        function: returns a tensor. Tensors that it uses besides its arguments must not carry a
            gradient that comes from elsewhere than its own parameters: torch < 1.11 would lose it.
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
    """Wrap `function` in the current autocast state, which torch 1.10 does not restore on CPU."""
    states = []
    if torch.is_autocast_enabled():
        states.append(("cuda", torch.get_autocast_gpu_dtype()))
    if torch.is_autocast_cpu_enabled():
        # torch 1.10 has no other, and its get_autocast_cpu_dtype() gives a dtype equal to none.
        states.append(("cpu", torch.bfloat16))

    def run(*tensors):
        with contextlib.ExitStack() as stack:
            for device_type, dtype in states:
                stack.enter_context(torch.autocast(device_type, dtype=dtype))
            return function(*tensors)

    return run

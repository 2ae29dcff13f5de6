"""GPUs: whether this torch can use them, and which torch could."""

import re
from typing import Iterator, Optional, Sequence, Tuple

from projects.bevformer.doctor.findings import Finding, broken, ok, warning
from projects.bevformer.doctor.machine import Environment, choose_stack


def check_gpus(env: Environment) -> Iterator[Finding]:
    """Findings about driver and cards."""
    if env.driver_note:
        remedy = "repair the driver until nvidia-smi lists the cards"
        yield warning("GPU", env.driver_note, remedy)
    if not env.gpus:
        # Without a driver version the note explains it.
        if env.driver is not None or not env.driver_note:
            yield _why_no_gpu(env)
        return
    for index, gpu in enumerate(env.gpus):
        where = f"GPU {index}"
        if gpu.error or not runs_on(gpu.capability, env.torch_architectures):
            yield broken(
                where,
                f"{gpu.name} (sm_{gpu.capability[0]}{gpu.capability[1]}) cannot be used by torch "
                f"{env.versions.get('torch')}, built for {' '.join(env.torch_architectures)}"
                + (f": {gpu.error}" if gpu.error else ""),
                _torch_remedy(env, tuple(gpu.capability for gpu in env.gpus)),
            )
        elif gpu.free_mib < gpu.total_mib // 2:
            text = f"{gpu.name}: only {gpu.free_mib} of {gpu.total_mib} MiB are free"
            yield warning(where, text, "nvidia-smi lists the processes that use the rest")
        else:
            text = f"{gpu.name}, {gpu.free_mib} of {gpu.total_mib} MiB free, driver {env.driver}"
            yield ok(where, text)


def _why_no_gpu(env: Environment) -> Finding:
    if env.driver is None:
        text = "none; training and evaluation run on the CPU, several processes through gloo"
        return ok("GPU", text)
    torch = env.versions.get("torch")
    if torch is None or "torch" in env.import_errors:
        return ok("GPU", f"driver {env.driver}; not checked without torch")
    remedy = _torch_remedy(env, env.cards)
    if env.torch_cuda is None:
        text = f"there is a driver {env.driver}, but this torch was built without CUDA"
        return warning("GPU", text, remedy)
    cause = f" ({env.cuda_error})" if env.cuda_error else ""
    text = f"torch {torch} for CUDA {env.torch_cuda} sees no GPU with driver {env.driver}{cause}"
    return broken("GPU", text, remedy)


def _torch_remedy(env: Environment, cards: Sequence[Optional[Tuple[int, int]]]) -> str:
    """The `make setup` command for this driver and cards, if the installed torch is the wrong one."""
    if env.driver is None:
        return "see the table of drivers and cards in docs/install.md"
    try:
        stack = choose_stack.choose(env.python, env.driver, cards).stack
    except choose_stack.StackError as error:
        return error.remedy
    installed = env.versions.get("torch", "")
    if stack.torch not in (installed, installed.split("+")[0]):
        return f"{env.make_setup} TORCH={stack.torch}"
    if env.torch_cuda is None:
        return f"delete the folder {env.venv} and run {env.make_setup}"
    return (
        f"torch {installed} fits driver {env.driver}: check CUDA_VISIBLE_DEVICES, nvidia-smi and, in a "
        "container, docker run --gpus all"
    )


def runs_on(capability: Tuple[int, int], architectures: Sequence[str]) -> bool:
    """Whether a build of torch runs on a card.

    A binary runs on the same major version and a minor one that is not lower; PTX on all later versions.

    Args:
        capability: (major, minor) of the card.
        architectures: such as "sm_90" and "compute_90"; empty if not known, which counts as True.
    """
    for name in architectures:
        kind, _, number = name.partition("_")
        digits = re.match(r"\d+", number)
        built = divmod(int(digits.group()), 10) if digits else (99, 0)
        if kind == "compute" and built <= capability:
            return True
        if kind == "sm" and built[0] == capability[0] and built[1] <= capability[1]:
            return True
    return not architectures

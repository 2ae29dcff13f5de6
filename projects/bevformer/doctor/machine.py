"""What is on this machine: installed packages, imports that fail, GPUs and shared memory."""

import contextlib
import importlib
import importlib.metadata
import importlib.util
import multiprocessing
import re
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, Dict, List, Optional, Tuple


def _load_choose_stack() -> ModuleType:
    """Load requirements/choose_stack.py, the table of torch builds, which is not part of the package.

    Raises:
        FileNotFoundError: the package was not installed from a checkout of the repository.
    """
    path = Path(__file__).resolve().parents[3] / "requirements" / "choose_stack.py"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: the doctor needs a checkout of the repository, installed with "
            "`make setup` or `pip install -e .`"
        )
    spec = importlib.util.spec_from_file_location("choose_stack", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


choose_stack = _load_choose_stack()

# Module -> modules without which it cannot import, so that one cause is one finding.
_NEED_NUMPY = (
    *("cv2", "scipy", "matplotlib", "shapely", "numba", "trimesh", "skimage", "pandas"),
    *("pyquaternion", "torch"),
)
IMPORTS = {
    **dict.fromkeys(("numpy", "einops", "networkx", "six"), ()),
    **dict.fromkeys(_NEED_NUMPY, ("numpy",)),
    "torchvision": ("torch",),
    "torch.utils.tensorboard": ("torch",),
    "nuscenes.nuscenes": ("numpy", "cv2", "matplotlib", "shapely", "pyquaternion"),
    "mmcv": ("numpy", "cv2", "torch"),
    "mmcv._ext": ("mmcv",),
    "mmdet": ("mmcv", "mmcv._ext", "torchvision"),
    "mmseg": ("mmcv", "mmcv._ext", "torchvision"),
    "projects.bevformer.compat": (
        *("mmdet", "mmseg", "numba", "networkx", "trimesh", "skimage", "pandas", "six"),
        *("nuscenes.nuscenes", "scipy"),
    ),
    "projects.bevformer.plugin": ("projects.bevformer.compat", "einops"),
}
_PACKAGES = (
    *("torch", "torchvision", "mmcv-full", "mmcv", "mmcv-lite", "mmengine", "mmdet"),
    *("mmsegmentation", "mmdet3d", "nuscenes-devkit", "numpy", "opencv-python"),
    *("opencv-python-headless", "matplotlib", "shapely", "yapf", "setuptools", "timm"),
)


@dataclass(frozen=True)
class Gpu:
    """A GPU that torch can use.

    Attributes:
        name: of the card.
        capability: (major, minor).
        total_mib, free_mib: memory.
        error: of a small computation on it; empty if it worked.
    """

    name: str
    capability: Tuple[int, int]
    total_mib: int
    free_mib: int
    error: str = ""


@dataclass
class Environment:
    """State of a machine and its Python environment.

    Attributes:
        python: version.
        versions: package -> version, of the installed ones.
        import_errors: module of `IMPORTS` -> error. Modules that need one of these are left out.
        mmcv_cuda: whether mmcv's operators were compiled with CUDA; None if not known.
        deform_conv_error: of torchvision's operator on a small input; empty if it worked.
        config_dump_error: of `mmcv.Config.pretty_text`; empty if it worked.
        torch_cuda: CUDA version that torch was built with, or None.
        torch_architectures: GPU architectures that torch was built for, such as "sm_90".
        driver: version of the NVIDIA driver, or None.
        driver_note: further output of nvidia-smi, such as an error, or empty.
        cards: compute capability of each card as reported by nvidia-smi, None if unknown.
        cuda_error: torch's reason for seeing no GPU, or empty.
        gpus: that torch sees.
        start_method: of worker processes.
        shm_free_mib: free shared memory in /dev/shm, or None if there is no such folder.
        venv: name of the environment's folder.
    """

    python: Tuple[int, int, int]
    versions: Dict[str, str] = field(default_factory=dict)
    import_errors: Dict[str, str] = field(default_factory=dict)
    mmcv_cuda: Optional[bool] = None
    deform_conv_error: str = ""
    config_dump_error: str = ""
    torch_cuda: Optional[str] = None
    torch_architectures: List[str] = field(default_factory=list)
    driver: Optional[str] = None
    driver_note: str = ""
    cards: Tuple[Optional[Tuple[int, int]], ...] = ()
    cuda_error: str = ""
    gpus: List[Gpu] = field(default_factory=list)
    start_method: str = "fork"
    shm_free_mib: Optional[int] = None
    venv: str = ".venv"

    def number(self, package: str) -> Tuple[int, ...]:
        """Version of a package as a tuple of ints, (0,) if it is not installed."""
        numbers = re.match(r"\d+(\.\d+)*", self.versions.get(package, "0"))
        return tuple(int(n) for n in numbers.group().split("."))

    @property
    def make_setup(self) -> str:
        """The command that sets this environment up."""
        version = f"{self.python[0]}.{self.python[1]}"
        other = self.venv == f".venv-{version}"
        return f"make setup PYTHON=/path/to/python{version}" if other else "make setup"


def inspect_environment() -> Environment:
    """Inspect this machine; importing everything takes some ten seconds."""
    machine = choose_stack.ask_nvidia_smi()
    environment = Environment(
        python=tuple(sys.version_info[:3]),
        versions=_installed_versions(),
        import_errors=_try_imports(),
        driver=machine.driver,
        driver_note=machine.note,
        cards=machine.cards,
        start_method=multiprocessing.get_start_method(),
        shm_free_mib=_shm_free_mib(),
        venv=Path(sys.prefix).name,
    )

    def usable(module: str) -> bool:
        return sys.modules.get(module) is not None and module not in environment.import_errors

    if usable("torch"):
        _inspect_gpus(environment)
        if usable("torchvision"):
            environment.deform_conv_error = _error_of(_try_deform_conv)
    if usable("mmcv") and usable("mmcv._ext"):
        environment.config_dump_error = _error_of(_try_config_dump)
        environment.mmcv_cuda = _mmcv_has_cuda()
    return environment


def _installed_versions() -> Dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def _try_imports() -> Dict[str, str]:
    errors = {}  # "" for a module whose dependencies cannot be imported
    for module, needs in IMPORTS.items():
        if errors.keys() & set(needs):
            errors[module] = ""
            continue
        error = _error_of(importlib.import_module, module)
        if error:
            errors[module] = error
    return {module: error for module, error in errors.items() if error}


def _error_of(function: Callable, *arguments: Any) -> str:
    """Error of a call in one line, empty if there is none; a package may even call sys.exit."""
    try:
        function(*arguments)
    except (Exception, SystemExit) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
    return ""


def _try_deform_conv() -> None:
    import torch
    from torchvision.ops import deform_conv2d

    deform_conv2d(torch.zeros(1, 1, 3, 3), torch.zeros(1, 18, 1, 1), torch.zeros(1, 1, 3, 3))


def _try_config_dump() -> None:
    from mmcv import Config

    Config(dict(model=dict(type="A"))).pretty_text  # noqa: B018


def _mmcv_has_cuda() -> bool:
    from mmcv.ops import get_compiling_cuda_version

    return get_compiling_cuda_version() != "not available"


def _shm_free_mib() -> Optional[int]:
    try:
        return shutil.disk_usage("/dev/shm").free >> 20
    except OSError:
        return None


def _inspect_gpus(environment: Environment) -> None:
    import torch

    environment.torch_cuda = torch.version.cuda
    if torch.version.cuda is None:
        return
    environment.cuda_error = _error_of(torch.cuda.init)
    if environment.cuda_error:
        return
    environment.torch_architectures = torch.cuda.get_arch_list()
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        error = _error_of(lambda i=index: torch.ones(8, device=f"cuda:{i}").sum().item())
        free = 0
        if not error and hasattr(torch.cuda, "mem_get_info"):  # torch 1.11
            free = torch.cuda.mem_get_info(index)[0] >> 20
        environment.gpus.append(
            Gpu(
                properties.name,
                (properties.major, properties.minor),
                properties.total_memory >> 20,
                free or properties.total_memory >> 20,
                error,
            )
        )

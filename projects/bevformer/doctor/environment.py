"""The installation: versions against the tested ones, compiled parts, GPU and driver.

`inspect_environment` looks, `check_environment` judges; what it is given can as well be made up.
"""

import importlib
import importlib.metadata
import importlib.util
import multiprocessing
import re
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Optional, Tuple

from projects.bevformer.doctor.findings import broken, ok, warning


def _load_choose_stack():
    """The table of torch builds in requirements/choose_stack.py, which is not part of the package.

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

# Tested versions by torch 1 or 2; requirements/openmmlab.txt pins them.
OLD_PACKAGES = {"mmcv-full": "1.6.0", "nuscenes-devkit": "1.1.11"}
NEW_PACKAGES = {"mmcv-full": "1.7.2", "nuscenes-devkit": "1.2.0"}
ALL_STACKS = {"mmdet": "2.28.2", "mmsegmentation": "0.30.0", "mmdet3d": "1.0.0rc6"}
TESTED_PYTHONS = ((3, 8), (3, 11), (3, 12))  # by .ci/run
TESTED_MMCV = ("1.6.0", "1.7.0", "1.7.2")  # as compat.py has it, which may not import here
NEWEST_PYTHON = (3, 12)

# The smallest recipes need some 100 MiB.
LEAST_SHM_MIB = 256
SHM_REMEDY = (
    "in a container: docker run --shm-size=16g or --ipc=host; elsewhere a larger tmpfs, or "
    "data.workers_per_gpu=0"
)

# Module -> modules without which it cannot import, so that one cause is one finding.
IMPORTS = {
    "numpy": (),
    "cv2": ("numpy",),
    "scipy": ("numpy",),
    "matplotlib": ("numpy",),
    "shapely": ("numpy",),
    "einops": (),
    "numba": ("numpy",),
    "networkx": (),
    "trimesh": ("numpy",),
    "skimage": ("numpy",),
    "pandas": ("numpy",),
    "pyquaternion": ("numpy",),
    "six": (),
    "torch": ("numpy",),
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
    *("mmsegmentation", "mmdet3d", "nuscenes-devkit", "numpy", "numba", "networkx", "trimesh"),
    *("opencv-python", "opencv-python-headless", "matplotlib", "shapely", "yapf", "setuptools"),
    *("protobuf", "tensorboard", "timm"),
)
_SETUP = "run `make setup`, or install what requirements/ names"


@dataclass(frozen=True)
class Gpu:
    """A GPU that torch sees.

    Attributes:
        name: of the card.
        capability: (major, minor).
        total_mib, free_mib: memory.
        error: of a small computation on it; empty where it worked.
    """

    name: str
    capability: Tuple[int, int]
    total_mib: int
    free_mib: int
    error: str = ""


@dataclass
class Environment:
    """What was found on this machine.

    Attributes:
        python: version.
        versions: package -> version; packages that are not installed are left out.
        import_errors: module of `IMPORTS` -> error; modules that import, or whose own needs do not,
            are left out.
        mmcv_cuda: whether mmcv's operators were compiled with CUDA; None where that is not known.
        deform_conv_error: of torchvision's operator on a small input; empty where it worked.
        config_dump_error: of `mmcv.Config.pretty_text`; empty where it worked.
        torch_cuda: CUDA version that torch was built with, or None.
        torch_architectures: GPU architectures that torch was built for, such as "sm_90".
        driver: version of the NVIDIA driver, or None.
        driver_note: what else nvidia-smi says, such as an error, else empty.
        cards: compute capability of each card as reported by nvidia-smi, None if unknown.
        cuda_error: why torch sees no GPU, as far as it says.
        gpus: that torch sees.
        start_method: of worker processes.
        shm_free_mib: free shared memory in /dev/shm, or None where there is no such folder.
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

    def number(self, package):
        """Version of a package as a tuple of ints, (0,) where it is not installed."""
        numbers = re.match(r"\d+(\.\d+)*", self.versions.get(package, "0"))
        return tuple(int(n) for n in numbers.group().split("."))

    @property
    def make_setup(self):
        """The command that set this environment up."""
        version = _dotted(self.python[:2])
        other = self.venv == f".venv-{version}"
        return f"make setup PYTHON=/path/to/python{version}" if other else "make setup"


def inspect_environment():
    """Look at this machine; importing everything takes some ten seconds.

    Returns:
        Environment.
    """
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

    def usable(module):
        return sys.modules.get(module) is not None and module not in environment.import_errors

    if usable("torch"):
        _look_at_gpus(environment)
        if usable("torchvision"):
            environment.deform_conv_error = _error_of(_try_deform_conv)
    if usable("mmcv") and usable("mmcv._ext"):
        environment.config_dump_error = _error_of(_try_config_dump)
        environment.mmcv_cuda = _mmcv_has_cuda()
    return environment


def _installed_versions():
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _try_imports():
    errors = {}
    unusable = set()
    for module, needs in IMPORTS.items():
        if unusable & set(needs):
            unusable.add(module)
            continue
        error = _error_of(importlib.import_module, module)
        if error:
            errors[module] = error
            unusable.add(module)
    return errors


def _error_of(function, *arguments):
    """Error of a call in one line, empty where there is none; a package may even call sys.exit."""
    try:
        function(*arguments)
    except (Exception, SystemExit) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
    return ""


def _try_deform_conv():
    import torch
    from torchvision.ops import deform_conv2d

    deform_conv2d(torch.zeros(1, 1, 3, 3), torch.zeros(1, 18, 1, 1), torch.zeros(1, 1, 3, 3))


def _try_config_dump():
    from mmcv import Config

    Config(dict(model=dict(type="A"))).pretty_text  # noqa: B018


def _mmcv_has_cuda():
    from mmcv.ops import get_compiling_cuda_version

    return get_compiling_cuda_version() != "not available"


def _shm_free_mib():
    try:
        return shutil.disk_usage("/dev/shm").free >> 20
    except OSError:
        return None


def _look_at_gpus(environment):
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


def check_environment(environment):
    """Judge what was found.

    Args:
        environment: Environment.

    Returns:
        list of Finding.
    """
    findings = []
    for check in (
        _check_python,
        _check_stack,
        _check_mmcv,
        _check_libraries,
        _check_imports,
        _check_gpu,
        _check_training,
        _check_shared_memory,
    ):
        findings += check(environment)
    return findings


def _check_python(env):
    version = ".".join(map(str, env.python))
    if not (3, 8) <= env.python[:2] <= NEWEST_PYTHON:
        return [
            broken(
                "Python", f"{version} is not 3.8 to 3.12", "make setup PYTHON=/path/to/python3.11"
            )
        ]
    if env.python[:2] not in TESTED_PYTHONS:
        tested = ", ".join(map(_dotted, TESTED_PYTHONS))
        return [warning("Python", f"{version} is not tested", f"Tested are {tested}")]
    return [ok("Python", version)]


def _check_stack(env):
    """torch, its companions and the OpenMMLab packages."""
    findings = []
    for package, tested in _tested_versions(env).items():
        found = env.versions.get(package)
        if found is None:
            findings.append(_missing(env, package, tested))
        elif package == "mmcv-full":
            continue  # judged in _check_mmcv
        elif found.split("+")[0] == tested:
            findings.append(ok(package, found))
        elif package in ("mmdet", "mmdet3d", "mmsegmentation") and found[0] != tested[0]:
            findings.append(
                broken(package, f"{found} has other registries and configs than {tested}", _SETUP)
            )
        elif package == "mmdet3d" and env.number(package) >= (1, 1):
            findings.append(broken(package, f"{found} is of OpenMMLab 2, not {tested}", _SETUP))
        elif package == "torch" and env.number("torch") > _numbers(choose_stack.STACKS[0].torch):
            newest = choose_stack.STACKS[0].torch
            findings.append(
                warning(
                    "torch",
                    f"{found} is newer than the tested {newest}; headers of new versions need C++20, "
                    "which mmcv-full 1.7.2 is not compiled with",
                    f"install torch=={newest} where mmcv-full does not compile",
                )
            )
        else:
            cause = ""
            if package == "torch" and "timm" in env.versions:
                cause = "; timm, which nothing here needs, may have brought it"
            findings.append(warning(package, f"{found} is not the tested {tested}{cause}", _SETUP))
    for package in ("mmengine", "mmcv-lite"):
        if package in env.versions:
            findings.append(
                warning(
                    package,
                    "is installed, but of OpenMMLab 2 or without operators",
                    f"pip uninstall {package}",
                )
            )
    return findings


def _tested_versions(env):
    """Package -> tested version: the stack of the installed torch, or the one this Python gets."""
    old = env.number("torch") < (2,) if "torch" in env.versions else env.python < (3, 10)
    same_age = [s for s in choose_stack.STACKS if (_numbers(s.torch) < (2,)) == old]
    installed = _base(env.versions.get("torch", ""))
    stack = next((s for s in same_age if _base(s.torch) == installed), same_age[0])
    torch = {"torch": _base(stack.torch), "torchvision": _base(stack.torchvision)}
    return {**torch, **(OLD_PACKAGES if old else NEW_PACKAGES), **ALL_STACKS}


def _base(version):
    return version.split("+")[0]


def _numbers(version):
    return tuple(map(int, _base(version).split(".")))


def _missing(env, package, tested):
    remedy = _SETUP
    if package in ("mmcv-full", "mmdet3d"):
        remedy += f"; by hand: pip install --no-deps --no-build-isolation {package}=={tested}"
        if env.number("setuptools") >= (81,):
            remedy += (
                f", after pip install 'setuptools<81' (it builds with pkg_resources, which setuptools "
                f"{env.versions['setuptools']} has not)"
            )
    return broken(package, "is not installed", remedy)


def _check_mmcv(env):
    found = env.versions.get("mmcv-full")
    if found is None:
        return []
    findings = []
    if "mmcv" in env.versions:
        findings.append(
            broken(
                "mmcv",
                f"mmcv {env.versions['mmcv']} lies over mmcv-full {found}: they share a folder",
                f"pip uninstall mmcv mmcv-full, then pip install --no-build-isolation mmcv-full=={found}",
            )
        )
    if found not in TESTED_MMCV:
        findings.append(
            broken(
                "mmcv-full",
                f"{found} is not one of {', '.join(TESTED_MMCV)}, which are let past mmdet3d's version gate",
                _SETUP,
            )
        )
    elif env.number("torch") >= (2, 1) and found != "1.7.2":
        findings.append(
            broken(
                "mmcv-full",
                f"{found} does not compile with torch {env.versions['torch']}: it asks for C++14",
                "pip install --no-build-isolation mmcv-full==1.7.2",
            )
        )
    elif found not in (OLD_PACKAGES["mmcv-full"], NEW_PACKAGES["mmcv-full"]):
        findings.append(ok("mmcv-full", f"{found}, which no tested stack has"))
    else:
        findings.append(ok("mmcv-full", f"{found}; mmdet3d's version gate is passed in compat.py"))
    if env.mmcv_cuda is not None:
        kind = "with CUDA" if env.mmcv_cuda else "without CUDA"
        findings.append(
            ok("mmcv operators", f"compiled {kind}; the network needs no CUDA operator")
        )
    yapf_breaks = env.number("yapf") >= (0, 40, 2) and env.number("mmcv-full") < (1, 7, 2)
    if yapf_breaks or env.config_dump_error:
        findings.append(
            broken(
                "yapf",
                f"{env.versions.get('yapf')} cannot print configs of mmcv-full {found} "
                f"({env.config_dump_error or 'FormatCode() has no verify'}): training stops at its start",
                "pip install yapf==0.40.1",
            )
        )
    return findings


def _check_libraries(env):
    """Versions that import but break something later."""
    findings = []
    numpy = env.versions.get("numpy")
    if env.number("numpy") >= (2,):
        findings.append(
            broken("numpy", f"{numpy} is not supported by the devkit, mmcv and mmdet3d",
                   "pip install numpy==1.23.5 (Python 3.12: 1.26.4)")
        )  # fmt: skip
    elif env.number("numpy") >= (1, 24):
        findings.append(
            ok(
                "numpy",
                f"{numpy} has no np.bool; the steps of mmdet3d that need it are replaced here",
            )
        )
    elif numpy is not None:
        findings.append(ok("numpy", numpy))
    opencv = [name for name in ("opencv-python", "opencv-python-headless") if name in env.versions]
    if len(opencv) == 2:
        findings.append(
            warning("opencv", "opencv-python and opencv-python-headless lie over each other",
                    "pip uninstall both, then pip install opencv-python-headless==4.11.0.86")
        )  # fmt: skip
    for name in opencv:
        if env.number(name) >= (5,):
            findings.append(
                warning(name, f"{env.versions[name]} is not tested",
                        "pip install opencv-python-headless==4.11.0.86")
            )  # fmt: skip
    if env.number("nuscenes-devkit") >= (1, 2):
        wanted = (("shapely", (2,), (3,)), ("matplotlib", (3, 6), (4,)))
    else:
        wanted = (("shapely", (1,), (2,)), ("matplotlib", (3,), (3, 6)))
    for name, least, below in wanted:
        if name in env.versions and not least <= env.number(name) < below:
            findings.append(
                warning(
                    name,
                    f"{env.versions[name]} is not what nuscenes-devkit "
                    f"{env.versions.get('nuscenes-devkit')} asks for",
                    f"install {name} >= {_dotted(least)}, < {_dotted(below)}",
                )
            )
    return findings


def _dotted(numbers):
    return ".".join(map(str, numbers))


# Text of an import error -> what to do about it.
_IMPORT_REMEDIES = (
    ("libGL.so", "pip uninstall opencv-python, then pip install opencv-python-headless==4.11.0.86"),
    ("undefined symbol", "it was compiled for another torch: rm -rf .cache/wheels, make setup"),
    (
        "No module named 'mmcv._ext'",
        "mmcv has no operators: pip install mmcv-full, see requirements/",
    ),
    ("pkg_resources", "pip install 'setuptools<81'"),
    ("already registered", "another plugin or mmdet registers that name: import only this one"),
    ("fractions", "networkx 2.2 is for Python < 3.9: pip install networkx==3.4.2"),
    ("collections", "it is too old for this Python: install the version that requirements/ names"),
    ("numpy.dtype size changed", "it was compiled for another numpy: install it again"),
    ("Descriptors cannot", "pip install 'protobuf<5', or the tensorboard that requirements/ names"),
    ("'distutils' has no attribute 'version'", "pip install 'setuptools<60'"),
    ("np.bool", "it is too old for this numpy: install the version that requirements/ names"),
)


def _check_imports(env):
    findings = []
    for module, error in env.import_errors.items():
        remedy = next((text for sign, text in _IMPORT_REMEDIES if sign in error), _SETUP)
        findings.append(broken(f"import {module}", error, remedy))
    if env.deform_conv_error:
        findings.append(
            broken(
                "torchvision.ops.deform_conv2d",
                f"does not run ({env.deform_conv_error}), and the ResNets with DCN need it",
                f"install the torchvision that belongs to torch {env.versions.get('torch')}",
            )
        )
    if not findings:
        findings.append(
            ok("imports", f"all {len(IMPORTS)} modules import; the plugin is registered")
        )
    return findings


def _check_gpu(env):
    findings = []
    if env.driver_note:
        findings.append(
            warning("GPU", env.driver_note, "repair the driver until nvidia-smi lists the cards")
        )
    if not env.gpus:
        # Without a driver version the note explains it.
        return findings if findings and env.driver is None else [*findings, _why_no_gpu(env)]
    for index, gpu in enumerate(env.gpus):
        where = f"GPU {index}"
        if gpu.error or not _runs_on(gpu.capability, env.torch_architectures):
            findings.append(
                broken(
                    where,
                    f"{gpu.name} (sm_{gpu.capability[0]}{gpu.capability[1]}) cannot be used by torch "
                    f"{env.versions.get('torch')}, built for {' '.join(env.torch_architectures)}"
                    + (f": {gpu.error}" if gpu.error else ""),
                    _torch_remedy(env, tuple(g.capability for g in env.gpus)),
                )
            )
        elif gpu.free_mib < gpu.total_mib // 2:
            findings.append(
                warning(
                    where,
                    f"{gpu.name}: only {gpu.free_mib} of {gpu.total_mib} MiB are free",
                    "look with nvidia-smi who uses the rest",
                )
            )
        else:
            findings.append(
                ok(
                    where,
                    f"{gpu.name}, {gpu.free_mib} of {gpu.total_mib} MiB free, driver {env.driver}",
                )
            )
    return findings


def _why_no_gpu(env):
    if env.driver is None:
        return ok(
            "GPU", "none; training and evaluation run on the CPU, several processes through gloo"
        )
    torch = env.versions.get("torch")
    if torch is None or "torch" in env.import_errors:
        return ok("GPU", f"driver {env.driver}; not checked without torch")
    if env.torch_cuda is None:
        return warning(
            "GPU",
            f"there is a driver {env.driver}, but this torch was built without CUDA",
            _torch_remedy(env, env.cards),
        )
    cause = f" ({env.cuda_error})" if env.cuda_error else ""
    return broken(
        "GPU",
        f"torch {torch} for CUDA {env.torch_cuda} sees no GPU with driver {env.driver}{cause}",
        _torch_remedy(env, env.cards),
    )


def _torch_remedy(env, cards):
    """The `make setup` command for this driver and cards, if the installed torch is the wrong one."""
    if env.driver is None:
        return "see the table of drivers and cards in docs/install.md"
    try:
        stack = choose_stack.choose(env.python, env.driver, cards).stack
    except choose_stack.StackError as error:
        return error.remedy
    installed = env.versions.get("torch", "")
    if stack.torch not in (installed, _base(installed)):
        return f"{env.make_setup} TORCH={stack.torch}"
    if env.torch_cuda is None:
        return f"delete the folder {env.venv} and run {env.make_setup}"
    return (
        f"torch {installed} fits driver {env.driver}: check CUDA_VISIBLE_DEVICES, nvidia-smi and, in a "
        "container, docker run --gpus all"
    )


def _runs_on(capability, architectures):
    """Binaries run on the same major version and a minor one that is not lower; PTX on all later."""
    major, minor = capability
    for name in architectures:
        kind, _, number = name.partition("_")
        numbers = re.match(r"\d+", number)
        built = divmod(int(numbers.group()), 10) if numbers else (99, 0)
        if kind == "compute" and built <= (major, minor):
            return True
        if kind == "sm" and built[0] == major and built[1] <= minor:
            return True
    return not architectures  # not known


def _check_training(env):
    """What stock mmcv and mmdet trip over on this machine, and this project does not."""
    findings = []
    torch = env.number("torch")
    version = env.versions.get("torch")
    if torch >= (2, 1):
        findings.append(
            ok(
                "several processes",
                f"mmcv's DDP wrapper fails with torch {version}; this project's own is used, and "
                "every loss step goes through DDP.forward, so gradients are synchronised",
            )
        )
    if torch >= (2,):
        findings.append(
            ok("torchrun", "hands over --local-rank or LOCAL_RANK; both are understood")
        )
    if torch >= (2, 6):
        findings.append(
            ok(
                "checkpoints",
                "are read with weights_only=True; foreign files with numpy values are refused",
            )
        )
    elif (0,) < torch < (1, 13):
        findings.append(
            ok("checkpoints", f"are read by an own unpickler: torch {version} has no weights_only")
        )
    if env.start_method != "fork":
        findings.append(
            warning(
                "worker processes",
                f"start by {env.start_method}, which takes longer and needs everything to be picklable",
                "keep mp_start_method = 'fork' in the config",
            )
        )
    return findings


def _check_shared_memory(env):
    """Docker's default of 64 MiB; what a config needs is checked in `config.py`."""
    if env.shm_free_mib is None or env.shm_free_mib >= LEAST_SHM_MIB:
        return []
    return [
        warning(
            "/dev/shm",
            f"{env.shm_free_mib} MiB are free; data workers pass batches through it and die of a bus "
            "error when it is full",
            SHM_REMEDY,
        )
    ]

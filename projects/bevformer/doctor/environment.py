"""The installation: versions against the tested ones, imports, GPU and driver.

`machine.inspect_environment` collects the facts, `check_environment` judges them.
"""

from typing import Dict, Iterator, List, Tuple

from projects.bevformer.doctor.findings import Finding, broken, ok, warning
from projects.bevformer.doctor.gpu import check_gpus
from projects.bevformer.doctor.machine import IMPORTS, Environment, choose_stack

# Tested versions by torch 1 or 2; requirements/openmmlab.txt pins them.
OLD_PACKAGES = {"mmcv-full": "1.6.0", "nuscenes-devkit": "1.1.11"}
NEW_PACKAGES = {"mmcv-full": "1.7.2", "nuscenes-devkit": "1.2.0"}
ALL_STACKS = {"mmdet": "2.28.2", "mmsegmentation": "0.30.0", "mmdet3d": "1.0.0rc6"}
TESTED_PYTHONS = ((3, 8), (3, 11), (3, 12))  # by .ci/run
TESTED_MMCV = ("1.6.0", "1.7.0", "1.7.2")  # as in compat.py, which may not be imported here
NEWEST_PYTHON = (3, 12)

LEAST_SHM_MIB = 256  # enough for the smallest recipes
SHM_REMEDY = (
    "in a container: docker run --shm-size=16g or --ipc=host; elsewhere a larger tmpfs, or "
    "data.workers_per_gpu=0"
)
_SETUP = "run `make setup`, or install what requirements/ names"
_OPENCV = "pip install opencv-python-headless==4.11.0.86"


def check_environment(environment: Environment) -> List[Finding]:
    """Judge what was found."""
    checks = (
        _check_python,
        _check_stack,
        _check_mmcv,
        _check_libraries,
        _check_imports,
        check_gpus,
        _check_workers,
    )
    return [finding for check in checks for finding in check(environment)]


def _check_python(env: Environment) -> Iterator[Finding]:
    version = _dotted(env.python)
    if not (3, 8) <= env.python[:2] <= NEWEST_PYTHON:
        remedy = "make setup PYTHON=/path/to/python3.11"
        yield broken("Python", f"{version} is not 3.8 to {_dotted(NEWEST_PYTHON)}", remedy)
    elif env.python[:2] not in TESTED_PYTHONS:
        tested = ", ".join(map(_dotted, TESTED_PYTHONS))
        yield warning("Python", f"{version} is not tested", f"Tested are {tested}")
    else:
        yield ok("Python", version)


def _check_stack(env: Environment) -> Iterator[Finding]:
    """torch, its companions and the OpenMMLab packages."""
    newest = choose_stack.STACKS[0].torch
    for package, tested in _tested_versions(env).items():
        found = env.versions.get(package)
        if found is None:
            yield _missing(env, package, tested)
        elif package == "mmcv-full":
            continue  # judged in _check_mmcv
        elif _base(found) == tested:
            yield ok(package, found)
        elif package in ("mmdet", "mmdet3d", "mmsegmentation") and found[0] != tested[0]:
            yield broken(package, f"{found} has other registries and configs than {tested}", _SETUP)
        elif package == "mmdet3d" and env.number(package) >= (1, 1):
            yield broken(package, f"{found} is of OpenMMLab 2, not {tested}", _SETUP)
        elif package == "torch" and env.number("torch") > _numbers(newest):
            yield warning(
                "torch",
                f"{found} is newer than the tested {newest}; headers of new versions need C++20, "
                "which mmcv-full 1.7.2 is not compiled with",
                f"install torch=={newest} if mmcv-full does not compile",
            )
        else:
            cause = ""
            if package == "torch" and "timm" in env.versions:
                cause = "; timm, which nothing here needs, may have brought it"
            yield warning(package, f"{found} is not the tested {tested}{cause}", _SETUP)
    for package in ("mmengine", "mmcv-lite"):
        if package in env.versions:
            text = "is installed, but of OpenMMLab 2 or without operators"
            yield warning(package, text, f"pip uninstall {package}")


def _tested_versions(env: Environment) -> Dict[str, str]:
    """Package -> tested version: the stack of the installed torch, or the one this Python gets."""
    old = env.number("torch") < (2,) if "torch" in env.versions else env.python < (3, 10)
    same_age = [s for s in choose_stack.STACKS if (_numbers(s.torch) < (2,)) == old]
    installed = _base(env.versions.get("torch", ""))
    stack = next((s for s in same_age if _base(s.torch) == installed), same_age[0])
    torch = {"torch": _base(stack.torch), "torchvision": _base(stack.torchvision)}
    return {**torch, **(OLD_PACKAGES if old else NEW_PACKAGES), **ALL_STACKS}


def _base(version: str) -> str:
    return version.split("+")[0]


def _numbers(version: str) -> Tuple[int, ...]:
    return tuple(map(int, _base(version).split(".")))


def _dotted(numbers: Tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))


def _missing(env: Environment, package: str, tested: str) -> Finding:
    remedy = _SETUP
    if package in ("mmcv-full", "mmdet3d"):
        remedy += f"; by hand: pip install --no-deps --no-build-isolation {package}=={tested}"
        if env.number("setuptools") >= (81,):
            remedy += (
                ", after pip install 'setuptools<81' (it builds with pkg_resources, which setuptools "
                f"{env.versions['setuptools']} does not have)"
            )
    return broken(package, "is not installed", remedy)


def _check_mmcv(env: Environment) -> Iterator[Finding]:
    found = env.versions.get("mmcv-full")
    if found is None:
        return
    if "mmcv" in env.versions:
        yield broken(
            "mmcv",
            f"mmcv {env.versions['mmcv']} lies over mmcv-full {found}: they share a folder",
            f"pip uninstall mmcv mmcv-full, then pip install --no-build-isolation mmcv-full=={found}",
        )
    if found not in TESTED_MMCV:
        text = f"{found} is not one of {', '.join(TESTED_MMCV)}, which pass mmdet3d's version gate"
        yield broken("mmcv-full", text, _SETUP)
    elif env.number("torch") >= (2, 1) and found != "1.7.2":
        yield broken(
            "mmcv-full",
            f"{found} does not compile with torch {env.versions['torch']}: it asks for C++14",
            "pip install --no-build-isolation mmcv-full==1.7.2",
        )
    else:
        in_a_stack = found in (OLD_PACKAGES["mmcv-full"], NEW_PACKAGES["mmcv-full"])
        yield ok("mmcv-full", found if in_a_stack else f"{found}, which no tested stack has")
    if env.mmcv_cuda is not None:
        kind = "with CUDA" if env.mmcv_cuda else "without CUDA"
        yield ok("mmcv operators", f"compiled {kind}; the network needs no CUDA operator")
    yapf_breaks = env.number("yapf") >= (0, 40, 2) and env.number("mmcv-full") < (1, 7, 2)
    if yapf_breaks or env.config_dump_error:
        yield broken(
            "yapf",
            f"{env.versions.get('yapf')} cannot print configs of mmcv-full {found} "
            f"({env.config_dump_error or 'FormatCode() has no verify'}): training stops at its start",
            "pip install yapf==0.40.1",
        )


def _check_libraries(env: Environment) -> Iterator[Finding]:
    """Versions that import but break something later."""
    numpy = env.versions.get("numpy")
    if env.number("numpy") >= (2,):
        text = f"{numpy} is not supported by the devkit, mmcv and mmdet3d"
        yield broken("numpy", text, "pip install numpy==1.23.5 (Python 3.12: 1.26.4)")
    elif numpy is not None:
        yield ok("numpy", numpy)
    opencv = [name for name in ("opencv-python", "opencv-python-headless") if name in env.versions]
    if len(opencv) == 2:
        text = "opencv-python and opencv-python-headless lie over each other"
        yield warning("opencv", text, f"pip uninstall both, then {_OPENCV}")
    for name in opencv:
        if env.number(name) >= (5,):
            yield warning(name, f"{env.versions[name]} is not tested", _OPENCV)
    devkit = env.versions.get("nuscenes-devkit")
    if env.number("nuscenes-devkit") >= (1, 2):
        wanted = (("shapely", (2,), (3,)), ("matplotlib", (3, 6), (4,)))
    else:
        wanted = (("shapely", (1,), (2,)), ("matplotlib", (3,), (3, 6)))
    for name, least, below in wanted:
        if name in env.versions and not least <= env.number(name) < below:
            text = f"{env.versions[name]} is not what nuscenes-devkit {devkit} asks for"
            yield warning(name, text, f"install {name} >= {_dotted(least)}, < {_dotted(below)}")


# Text of an import error -> what to do about it.
_IMPORT_REMEDIES = (
    ("libGL.so", f"pip uninstall opencv-python, then {_OPENCV}"),
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


def _check_imports(env: Environment) -> Iterator[Finding]:
    for module, error in env.import_errors.items():
        remedy = next((text for sign, text in _IMPORT_REMEDIES if sign in error), _SETUP)
        yield broken(f"import {module}", error, remedy)
    if env.deform_conv_error:
        yield broken(
            "torchvision.ops.deform_conv2d",
            f"does not run ({env.deform_conv_error}), and the ResNets with DCN need it",
            f"install the torchvision that belongs to torch {env.versions.get('torch')}",
        )
    if not env.import_errors and not env.deform_conv_error:
        yield ok("imports", f"all {len(IMPORTS)} modules import; the plugin is registered")


def _check_workers(env: Environment) -> Iterator[Finding]:
    """Data workers and their shared memory: what a config needs of it is checked in `config.py`."""
    if env.start_method != "fork":
        yield warning(
            "worker processes",
            f"start by {env.start_method}, which takes longer and needs everything to be picklable",
            "keep mp_start_method = 'fork' in the config",
        )
    if env.shm_free_mib is not None and env.shm_free_mib < LEAST_SHM_MIB:
        yield warning(
            "/dev/shm",
            f"{env.shm_free_mib} MiB are free; data workers pass batches through it and die of a bus "
            "error when it is full",
            SHM_REMEDY,
        )

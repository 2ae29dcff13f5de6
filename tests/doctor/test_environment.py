"""Fabricated broken installations: each is recognised, and the finding says how to mend it."""

import re
from pathlib import Path

import pytest

from projects.bevformer import compat
from projects.bevformer.doctor import environment as doctor
from projects.bevformer.doctor import machine
from projects.bevformer.doctor.environment import check_environment
from projects.bevformer.doctor.gpu import runs_on
from projects.bevformer.doctor.machine import Environment, Gpu, inspect_environment

ROOT = Path(__file__).parents[2]
OLD_VERSIONS = {
    **{"numpy": "1.23.5", "yapf": "0.40.1", "opencv-python-headless": "4.11.0.86"},
    **{"shapely": "1.8.5", "matplotlib": "3.5.3", "torch": "1.10.0", "torchvision": "0.11.1"},
}
NEW_VERSIONS = {
    **{"numpy": "1.23.5", "yapf": "0.40.1", "opencv-python-headless": "4.11.0.86"},
    **{"shapely": "2.0.7", "matplotlib": "3.10.9", "torch": "2.11.0", "torchvision": "0.26.0"},
}
OLD = {**doctor.OLD_PACKAGES, **doctor.ALL_STACKS, **OLD_VERSIONS}
OLD_CUDA = {**OLD, "torch": "1.10.0+cu113", "torchvision": "0.11.1+cu113"}
NEW = {**doctor.NEW_PACKAGES, **doctor.ALL_STACKS, **NEW_VERSIONS}
CUDA_12 = {**NEW, "torch": "2.10.0", "torchvision": "0.25.0"}
H100 = Gpu("H100", (9, 0), 81_000, 80_000)
A100 = Gpu("A100", (8, 0), 81_000, 80_000)
V100 = Gpu("V100", (7, 0), 32_000, 31_000)


def environment(versions=NEW, without=(), **changes):
    """A healthy stack, changed."""
    fields = Environment.__dataclass_fields__
    old = versions["torch"].startswith("1.")
    options = {"python": (3, 8, 18) if old else (3, 11, 7), "mmcv_cuda": False}
    options.update({key: value for key, value in changes.items() if key in fields})
    packages = {key.replace("_", "-"): v for key, v in changes.items() if key not in fields}
    installed = {key: v for key, v in {**versions, **packages}.items() if key not in without}
    return Environment(versions=installed, **options)


def troubles(env):
    return [finding for finding in check_environment(env) if finding.level != "ok"]


@pytest.mark.parametrize("versions", [OLD, OLD_CUDA, NEW, CUDA_12])
def test_the_tested_stacks_are_healthy(versions):
    assert troubles(environment(versions)) == []


def test_torchvision_of_another_stack():
    (finding,) = troubles(environment(CUDA_12, torchvision="0.26.0"))
    assert finding.line().startswith("[warning] torchvision: 0.26.0 is not the tested 0.25.0")


def test_tested_versions_match_the_requirements():
    assert doctor.TESTED_MMCV == compat.TESTED_MMCV
    pins = (ROOT / "requirements" / "openmmlab.txt").read_text()
    for packages, marker in ((doctor.OLD_PACKAGES, '< "3.10"'), (doctor.NEW_PACKAGES, '>= "3.10"')):
        for package, version in packages.items():
            assert f"{package}=={version}; python_version {marker}" in pins
    for package, version in doctor.ALL_STACKS.items():
        assert f"{package}=={version}\n" in pins


CASES = {
    "python too new": (dict(python=(3, 14, 0)), "broken", "Python", "3.8 to 3.12.*make setup PYTHON"),
    "python untested": (dict(python=(3, 10, 1)), "warning", "Python", "3.10.1 is not tested"),
    "torch untested": (dict(torch="2.4.1", timm="0.6.13"), "warning", "torch", "timm.*make setup"),
    "torch too new": (dict(torch="2.12.0"), "warning", "torch", r"C\+\+20"),
    "no mmcv, new setuptools": (
        dict(without=["mmcv-full"], setuptools="82.0.1", mmcv_cuda=None),
        "broken", "mmcv-full", "no-build-isolation mmcv-full==1.7.2.*'setuptools<81'.*pkg_resources",
    ),
    "no mmdet3d": (dict(without=["mmdet3d"]), "broken", "mmdet3d", "--no-deps .*mmdet3d==1.0.0rc6"),
    "mmdet 3": (dict(mmdet="3.3.0"), "broken", "mmdet", "other registries"),
    "mmdet3d 1.4": (dict(mmdet3d="1.4.0"), "broken", "mmdet3d", "OpenMMLab 2"),
    "mmdet 2.25": (dict(mmdet="2.25.0"), "warning", "mmdet", "not the tested 2.28.2"),
    "mmengine": (dict(mmengine="0.10.7"), "warning", "mmengine", "pip uninstall mmengine"),
    "two mmcvs": (dict(mmcv="2.1.0"), "broken", "mmcv", "share a folder.*pip uninstall mmcv mmcv-full"),
    "mmcv behind the gate": (dict(mmcv_full="1.7.1"), "broken", "mmcv-full", "version gate"),
    "mmcv too old for torch": (dict(mmcv_full="1.7.0"), "broken", "mmcv-full", r"C\+\+14.*==1.7.2"),
    "yapf": (dict(versions=OLD, yapf="0.43.0"), "broken", "yapf", "verify.*pip install yapf==0.40.1"),
    "config dump": (dict(config_dump_error="TypeError: x"), "broken", "yapf", "TypeError: x"),
    "numpy 2": (dict(numpy="2.1.0"), "broken", "numpy", "pip install numpy==1.23.5"),
    "two opencvs": (dict(opencv_python="4.8.0"), "warning", "opencv", "over each other"),
    "opencv 5": (dict(opencv_python_headless="5.0.0"), "warning", "opencv-python-headless", "4.11"),
    "shapely": (dict(shapely="1.8.5"), "warning", "shapely", "devkit 1.2.0.*shapely >= 2, < 3"),
    "matplotlib": (dict(versions=OLD, matplotlib="3.7.1"), "warning", "matplotlib", "< 3.6"),
    "cpu build, gpu": (
        dict(driver="580.65", torch="2.11.0+cpu"), "warning", "GPU",
        r"built without CUDA\. delete the folder \.venv and run make setup",
    ),
    "cpu build, older driver": (
        dict(driver="550.54"), "warning", "GPU", r"without CUDA\. make setup TORCH=2\.10\.0",
    ),
    "driver too old for all": (
        dict(driver="450.1", torch_cuda="13.0", cuda_error="RuntimeError: too old"),
        "broken", "GPU", "CUDA 13.0 sees no GPU with driver 450.1.*too old.*update the driver",
    ),
    "driver too old for torch 2.11": (
        dict(driver="535.104.05", torch_cuda="13.0", cards=((8, 0),), cuda_error="too old"),
        "broken", "GPU", r"torch 2\.11\.0 for CUDA 13\.0 .*driver 535.*make setup TORCH=2\.10\.0$",
    ),
    "the same in an environment with a version": (
        dict(driver="535.104.05", torch_cuda="13.0", cuda_error="too old", venv=".venv-3.11"),
        "broken", "GPU", r"make setup PYTHON=/path/to/python3\.11 TORCH=2\.10\.0$",
    ),
    "driver fits, no gpu": (
        dict(versions=CUDA_12, driver="535.104.05", torch_cuda="12.8", cuda_error="no device"),
        "broken", "GPU", r"torch 2\.10\.0 fits driver 535.*CUDA_VISIBLE_DEVICES.*--gpus all",
    ),
    "nvidia-smi fails": (
        dict(driver_note="nvidia-smi failed with code 9 (no driver)"), "warning", "GPU",
        "failed with code 9",
    ),
    "gpu too new": (
        dict(versions=OLD, driver="550", torch_cuda="10.2", gpus=[H100],
             torch_architectures=["sm_37", "sm_60", "sm_70"]),
        "broken", "GPU 0", r"H100 \(sm_90\) cannot be used by torch 1.10.0.*python3.10 TORCH=2.10.0",
    ),
    "gpu too new for the index's torch 1.10": (
        dict(versions=OLD, driver="550", torch_cuda="10.2", gpus=[A100], venv=".venv-3.8",
             torch_architectures=["sm_37", "sm_60", "sm_70"]),
        "broken", "GPU 0", r"A100 .* make setup PYTHON=/path/to/python3\.8 TORCH=1\.10\.0\+cu113$",
    ),
    "gpu too old": (
        dict(driver="580.65", torch_cuda="13.0", gpus=[V100], torch_architectures=["sm_75"]),
        "broken", "GPU 0", r"V100 \(sm_70\) cannot be used by torch 2\.11\.0.*TORCH=2\.10\.0",
    ),
    "small /dev/shm": (
        dict(shm_free_mib=64), "warning", "/dev/shm", "64 MiB are free.*--shm-size=16g or --ipc=host",
    ),
    "gpu broken": (
        dict(driver="550", torch_cuda="13.0", torch_architectures=["sm_90"],
             gpus=[Gpu("H100", (9, 0), 81_000, 80_000, "RuntimeError: no kernel image")]),
        "broken", "GPU 0", "no kernel image",
    ),
    "gpu in use": (
        dict(driver="550", torch_cuda="13.0", torch_architectures=["sm_90"],
             gpus=[Gpu("H100", (9, 0), 81_000, 3_000)]),
        "warning", "GPU 0", "only 3000 of 81000 MiB are free",
    ),
    "spawn": (dict(start_method="spawn"), "warning", "worker processes", "mp_start_method"),
    "deform_conv2d": (
        dict(deform_conv_error="RuntimeError: Couldn't load custom C++ ops"),
        "broken", "torchvision.ops.deform_conv2d", "belongs to torch 2.11.0",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "level", "where", "says"), CASES.values(), ids=CASES)
def test_a_broken_installation_is_recognised(changes, level, where, says):
    (finding,) = troubles(environment(**changes))
    assert (finding.level, finding.where) == (level, where)
    assert re.search(says, finding.line())
    assert finding.remedy
    assert "\n" not in finding.line()


IMPORT_ERRORS = {
    "cv2": ("ImportError: libGL.so.1: cannot open shared object file", "opencv-python-headless"),
    "mmcv._ext": ("ImportError: _ext.so: undefined symbol: _ZN2at", "compiled for another torch"),
    "networkx": ("ImportError: cannot import name 'gcd' from 'fractions'", "networkx==3.4.2"),
    "torch.utils.tensorboard": ("TypeError: Descriptors cannot be created", "protobuf<5"),
    "projects.bevformer.plugin": (
        "KeyError: 'BBox3DL1Cost is already registered'",
        "another plugin",
    ),
    "mmdet": ("AssertionError: MMCV==1.8 is used but incompatible", "make setup"),
}


@pytest.mark.parametrize(("module", "error", "says"), [(m, *e) for m, e in IMPORT_ERRORS.items()])
def test_an_import_that_fails_is_a_finding_with_a_remedy(module, error, says):
    (finding,) = troubles(environment(import_errors={module: error}))
    assert (finding.level, finding.where) == ("broken", f"import {module}")
    assert error in finding.what
    assert says in finding.remedy


def test_one_cause_is_one_finding(monkeypatch):
    def import_module(name):
        if name in ("torch", "six"):
            raise SystemExit("broken\non two lines")

    monkeypatch.setattr(machine.importlib, "import_module", import_module)
    assert machine._try_imports() == {
        "torch": "SystemExit: broken on two lines",
        "six": "SystemExit: broken on two lines",
    }


def test_a_healthy_installation_is_summarised():
    lines = [finding.line() for finding in check_environment(environment(NEW))]
    for says in ("numpy: 1.23.5", "without CUDA; the network needs no CUDA operator", "gloo"):
        assert any(line.startswith("[ok]") and says in line for line in lines), says


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((8, 6), ["sm_80"], True),
        ((8, 0), ["sm_86"], False),
        ((9, 0), ["sm_80"], False),
        ((9, 0), ["sm_80", "compute_80"], True),
        ((9, 0), ["sm_90a"], True),
        ((12, 0), ["sm_120"], True),
    ],
)
def test_which_gpus_a_build_runs_on(capability, architectures, runs):
    assert runs_on(capability, architectures) is runs


def test_a_gpu_is_not_judged_without_torch():
    env = environment(without=["torch"], driver="550.54", import_errors={"torch": "ImportError: x"})
    assert [finding.where for finding in troubles(env)] == ["torch", "import torch"]


def test_large_shm_is_not_reported():
    assert troubles(environment(shm_free_mib=doctor.LEAST_SHM_MIB)) == []


def test_this_environment_can_be_inspected():
    env = inspect_environment()
    assert env.import_errors == {}
    assert env.versions["mmdet3d"] == "1.0.0rc6"
    assert env.mmcv_cuda in (True, False)
    assert env.deform_conv_error == env.config_dump_error == ""
    assert not [finding for finding in check_environment(env) if finding.level == "broken"]


def test_nvidia_smi_note_does_not_hide_torch_error():
    note = "nvidia-smi failed with code 14 (infoROM is corrupted)"
    env = environment(CUDA_12, driver="535.1", driver_note=note, cards=((8, 0),), torch_cuda="12.8")
    assert ["code 14" in finding.line() for finding in troubles(env)] == [True, False]
    assert "sees no GPU with driver 535.1" in troubles(env)[1].line()

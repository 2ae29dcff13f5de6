"""Broken installations, made up: each is recognised, and the finding says how to mend it."""

import re
from pathlib import Path

import pytest

from projects.bevformer import compat
from projects.bevformer.doctor import environment as doctor
from projects.bevformer.doctor.environment import Environment, Gpu, check_environment

ROOT = Path(__file__).parents[2]
OLD = {**doctor.OLD_STACK, **doctor.BOTH_STACKS, "numpy": "1.23.5", "yapf": "0.40.1"}
OLD.update({"opencv-python-headless": "4.11.0.86", "shapely": "1.8.5", "matplotlib": "3.5.3"})
NEW = {**doctor.NEW_STACK, **doctor.BOTH_STACKS, "numpy": "1.23.5", "yapf": "0.40.1"}
NEW.update({"opencv-python-headless": "4.11.0.86", "shapely": "2.0.7", "matplotlib": "3.10.9"})
H100 = Gpu("H100", (9, 0), 81_000, 80_000)


def environment(versions=NEW, without=(), **changes):
    """A healthy stack, changed."""
    fields = Environment.__dataclass_fields__
    options = {"python": (3, 11, 7) if versions is NEW else (3, 8, 18), "mmcv_cuda": False}
    options.update({key: value for key, value in changes.items() if key in fields})
    packages = {key.replace("_", "-"): v for key, v in changes.items() if key not in fields}
    installed = {key: v for key, v in {**versions, **packages}.items() if key not in without}
    return Environment(versions=installed, **options)


def troubles(env):
    return [finding for finding in check_environment(env) if finding.level != "ok"]


@pytest.mark.parametrize("versions", [OLD, NEW])
def test_the_tested_stacks_are_healthy(versions):
    assert troubles(environment(versions)) == []


def test_tested_versions_are_those_of_the_requirements():
    assert doctor.TESTED_MMCV == compat.TESTED_MMCV
    pins = "\n".join(
        (ROOT / "requirements" / name).read_text() for name in ("build.txt", "openmmlab.txt")
    )
    for stack, marker in ((doctor.OLD_STACK, '< "3.10"'), (doctor.NEW_STACK, '>= "3.10"')):
        for package, version in stack.items():
            assert f"{package}=={version}; python_version {marker}" in pins
    for package, version in doctor.BOTH_STACKS.items():
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
    "cpu build, gpu": (dict(driver="550.54"), "warning", "GPU", "built without CUDA"),
    "old driver": (
        dict(driver="450.1", torch_cuda="13.0", cuda_error="RuntimeError: too old"),
        "broken", "GPU", "CUDA 13.0 sees no GPU with driver 450.1.*too old.*update the driver",
    ),
    "gpu too new": (
        dict(versions=OLD, driver="550", torch_cuda="10.2", gpus=[H100],
             torch_architectures=["sm_37", "sm_60", "sm_70"]),
        "broken", "GPU 0", r"H100 \(sm_90\) cannot be used by torch 1.10.0.*torch 2.11.0",
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

    monkeypatch.setattr(doctor.importlib, "import_module", import_module)
    assert doctor._try_imports() == {
        "torch": "SystemExit: broken on two lines",
        "six": "SystemExit: broken on two lines",
    }


def test_what_is_known_to_trip_others_is_told_as_ok():
    lines = [finding.line() for finding in check_environment(environment(NEW, numpy="1.26.4"))]
    for says in ("np.bool", "DDP", "--local-rank", "weights_only=True", "no CUDA operator", "gloo"):
        assert any(line.startswith("[ok]") and says in line for line in lines), says
    old = [finding.line() for finding in check_environment(environment(OLD))]
    assert any("own unpickler" in line for line in old)


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
    assert doctor._runs_on(capability, architectures) is runs


def test_this_environment_can_be_inspected():
    env = doctor.inspect_environment()
    assert env.import_errors == {}
    assert env.versions["mmdet3d"] == "1.0.0rc6"
    assert env.mmcv_cuda in (True, False)
    assert env.deform_conv_error == env.config_dump_error == ""
    assert not [finding for finding in check_environment(env) if finding.level == "broken"]

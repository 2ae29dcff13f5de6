"""requirements/install.sh with a stubbed Python: which choice is made, remembered and installed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Stands for the user's Python and for that of the environment: logs calls of pip, runs the real
# interpreter only for choose_stack.py.
STUB = """#!/bin/sh
case "$*" in
  requirements/choose_stack.py*) exec {real} "$@" ;;
  *sys.version_info*) echo {version} ;;
  *torch.version.cuda*) echo 12.8 ;;
  *get_device_capability*) cat visible_cards ;;
  "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
  *"pip freeze") cat freeze 2>/dev/null; true ;;
  *pip*) echo "FORCE_CUDA=$FORCE_CUDA $*" | sed 's/.*\\(FORCE_CUDA=[01]* \\).*pip --disable-pip-version-check/\\1/' >> log
    case "$*" in
      *" wheel "*) touch "$(echo "$*" | sed 's/.* -w \\([^ ]*\\) .*/\\1/')/mmcv_full-1-py3-none-any.whl" ;;
      *"$(cat failing 2>/dev/null || echo never)"*)
        echo "ERROR: No matching distribution found for torch==1.10.0+cu113"; exit 1 ;;
    esac ;;
esac
"""
SMI = '#!/bin/sh\ncase "$1" in *=driver_version*) echo {driver} ;; *) echo 8.0 ;; esac\n'


class Checkout:
    """A folder with the files that install.sh reads."""

    def __init__(self, path, version="3.11"):
        self.path = path
        shutil.copytree(ROOT / "requirements", path / "requirements")
        for name in ("requirements.txt", "setup.py"):
            shutil.copy(ROOT / name, path)
        self.python = path / "bin" / "python"
        self._script(self.python, STUB.format(real=sys.executable, version=version))
        (path / "visible_cards").write_text("8.0\n8.0\n")
        for build in ("cp311-torch2.10.0", "cp311-torch2.11.0", "cp38-torch1.10.0"):
            self.wheel(build)

    def _script(self, path, text):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def wheel(self, build):
        folder = self.path / ".cache" / "wheels" / build
        folder.mkdir(parents=True)
        (folder / "mmcv_full-1-py3-none-any.whl").touch()

    def driver(self, version):
        self._script(self.path / "bin" / "nvidia-smi", SMI.format(driver=version))

    def setup(self, **variables):
        """Run install.sh; returns (exit code, what it printed, calls of pip)."""
        log = self.path / "log"
        log.write_text("")
        env = {key: value for key, value in os.environ.items() if key not in (
            "TORCH", "EXTRAS", "MMCV_CUDA", "TORCH_FIND_LINKS", "MAX_JOBS", "TORCH_CUDA_ARCH_LIST"
        )}  # fmt: skip
        env["PATH"] = f"{self.python.parent}:{env['PATH']}"
        done = subprocess.run(
            ["bash", "requirements/install.sh", str(self.python), ".venv"],
            cwd=self.path, env={**env, **variables}, capture_output=True, text=True,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr, log.read_text().splitlines()

    def stamp(self):
        text = (self.path / ".venv" / ".installed").read_text()
        return dict(line.split("=", 1) for line in text.splitlines())


@pytest.fixture
def checkout(tmp_path):
    checkout = Checkout(tmp_path)
    checkout.driver("535.104.05")
    return checkout


def installed_torch(calls):
    return [word for call in calls for word in call.split() if word.startswith("torch==")]


def test_first_setup_and_nothing_to_do_afterwards(checkout):
    code, reason, calls = checkout.setup()
    assert code == 0
    assert "driver 535.104.05, sm_80: torch 2.10.0" in reason
    assert installed_torch(calls) == ["torch==2.10.0"]
    assert any("--force-reinstall .cache/wheels/cp311-torch2.10.0/mmcv" in call for call in calls)
    stamp = checkout.stamp()
    assert {**stamp, "requirements": ""} == {
        "python": "3.11", "torch": "2.10.0", "extras": "", "mmcv_cuda": "0", "requirements": ""
    }  # fmt: skip
    checkout.driver("580.65")  # just a driver update changes nothing
    assert checkout.setup() == (0, "", [])
    assert checkout.setup(TORCH="2.10.0") == (0, "", [])


def test_stamp_of_an_earlier_version(checkout):
    checkout.setup()
    (checkout.path / ".venv" / ".installed").write_text("3.11 0123abc\n")
    assert installed_torch(checkout.setup()[2]) == ["torch==2.10.0"]


def test_override_is_remembered(checkout):
    assert installed_torch(checkout.setup(TORCH="2.11.0")[2]) == ["torch==2.11.0"]
    assert checkout.setup() == (0, "", [])
    (checkout.path / "requirements" / "runtime.txt").write_text("six\n")
    code, reason, calls = checkout.setup()  # an update keeps it
    assert installed_torch(calls) == ["torch==2.11.0"]
    assert "kept from the existing environment" in reason
    assert checkout.setup() == (0, "", [])
    assert installed_torch(checkout.setup(TORCH="auto")[2]) == ["torch==2.10.0"]
    assert checkout.setup(TORCH="auto")[2] == []
    code, error, calls = checkout.setup(TORCH="2.4.1")
    assert (code, calls) == (1, [])
    assert "Use TORCH=2.11.0 or TORCH=2.10.0" in error
    assert checkout.setup() == (0, "", [])


def test_extras_add_up_and_are_remembered(checkout):
    (checkout.path / "requirements" / "viewer.txt").write_text("six\n")
    calls = checkout.setup(EXTRAS="lint")[2]
    assert any(call.endswith("-r requirements/lint.txt") for call in calls)
    assert checkout.setup() == (0, "", [])
    assert checkout.setup(EXTRAS="lint") == (0, "", [])
    calls = checkout.setup(EXTRAS="viewer,lint")[2]
    assert any(call.endswith("-r requirements/viewer.txt") for call in calls)
    assert checkout.stamp()["extras"] == "lint,viewer"
    code, error, calls = checkout.setup(EXTRAS="export")
    assert (code, calls) == (1, [])
    assert error == (
        "error: EXTRAS=export: there is no requirements/export.txt; use one or more of lint,viewer\n"
    )


def test_mmcv_with_cuda_has_its_own_wheel(checkout):
    checkout.setup()
    path = f"{checkout.python.parent}:{without_nvcc(checkout.path / 'programs')}"
    code, error, calls = checkout.setup(MMCV_CUDA="1", PATH=path)
    assert (code, calls) == (1, [])
    assert "needs nvcc on PATH" in error
    nvcc = checkout.path / "bin" / "nvcc"
    checkout._script(nvcc, "#!/bin/sh\necho 'Cuda compilation tools, release 13.0, V13.0.88'\n")
    error = checkout.setup(MMCV_CUDA="1")[1]
    assert (
        "torch 2.10.0 was built with CUDA 12.8, put an nvcc of CUDA 12 on PATH or pass MMCV_CUDA=0"
        in error
    )
    assert "found release 13.0" in error
    checkout._script(nvcc, "#!/bin/sh\necho 'Cuda compilation tools, release 12.6, V12.6.1'\n")
    calls = checkout.setup(MMCV_CUDA="1")[2]
    (compiled,) = (call for call in calls if " wheel " in call)
    assert compiled.startswith("FORCE_CUDA=1 ")
    assert ".cache/wheels/cp311-torch2.10.0-cuda-8.0 " in compiled
    assert checkout.setup() == (0, "", [])
    calls = checkout.setup(MMCV_CUDA="0")[2]
    assert any(".cache/wheels/cp311-torch2.10.0/mmcv" in call for call in calls)
    assert "MMCV_CUDA=yes: use 1" in checkout.setup(MMCV_CUDA="yes")[1]


def without_nvcc(folder):
    """PATH with the programs that install.sh uses, and no nvcc."""
    folder.mkdir()
    for (
        name
    ) in "bash sh dirname basename cat cp cut echo grep ls mkdir paste rm sed sha256sum".split():
        (folder / name).symlink_to(shutil.which(name))
    for name in "sleep sort touch tr nproc env".split():
        (folder / name).symlink_to(shutil.which(name))
    return str(folder)


def test_cuda_wheels_are_kept_per_architecture(checkout):
    nvcc = checkout.path / "bin" / "nvcc"
    checkout._script(nvcc, "#!/bin/sh\necho 'Cuda compilation tools, release 12.6, V12.6.1'\n")
    checkout.setup(MMCV_CUDA="1")
    nvcc.unlink()
    path = f"{checkout.python.parent}:{without_nvcc(checkout.path / 'programs')}"
    (checkout.path / "requirements" / "runtime.txt").write_text("six\n")
    code, _, calls = checkout.setup(PATH=path)  # reuses the wheel without nvcc
    assert code == 0
    assert any(".cache/wheels/cp311-torch2.10.0-cuda-8.0/mmcv" in call for call in calls)
    assert not any(" wheel " in call for call in calls)

    (checkout.path / "visible_cards").write_text("9.0\n8.0\n")
    (checkout.path / "requirements" / "runtime.txt").write_text("attrs\n")
    code, error, _ = checkout.setup(PATH=path)
    assert code == 1
    assert "no wheel in .cache/wheels/cp311-torch2.10.0-cuda-8.0_9.0 yet" in error
    assert checkout.setup(PATH=path, TORCH_CUDA_ARCH_LIST="8.0")[0] == 0

    (checkout.path / "visible_cards").write_text("")
    (checkout.path / "requirements" / "runtime.txt").write_text("six\n")
    code, error, _ = checkout.setup(PATH=path)
    assert code == 1
    assert "no card is visible, set TORCH_CUDA_ARCH_LIST" in error
    checkout._script(nvcc, "#!/bin/sh\necho 'Cuda compilation tools, release 12.6, V12.6.1'\n")
    calls = checkout.setup(TORCH_CUDA_ARCH_LIST="8.6+PTX;8.0")[2]
    assert any(".cache/wheels/cp311-torch2.10.0-cuda-8.0_8.6+PTX " in call for call in calls)


def test_interrupted_setup_resumes_with_the_same_choice(checkout):
    checkout.setup()
    (checkout.path / "failing").write_text("openmmlab.txt")
    assert checkout.setup(TORCH="2.11.0")[0] == 1
    (checkout.path / "failing").unlink()
    assert installed_torch(checkout.setup()[2]) == ["torch==2.11.0"]
    assert checkout.setup() == (0, "", [])


def test_cuda_11_wheels_that_cannot_be_reached(tmp_path):
    checkout = Checkout(tmp_path, "3.8")
    checkout.driver("470.82")
    (tmp_path / "failing").write_text("cu113")
    code, error, calls = checkout.setup()
    assert code == 1
    assert len(calls) == 2  # of pip itself and of torch
    line = error.splitlines()[-1]
    assert "torch-1.10.0+cu113-cp38-cp38-linux_x86_64.whl" in line
    assert "torchvision-0.11.1+cu113-cp38-cp38-linux_x86_64.whl" in line
    (tmp_path / "failing").unlink()
    assert "is not a folder" in checkout.setup(TORCH_FIND_LINKS="gone")[1]
    (tmp_path / "my wheels").mkdir()
    checkout.wheel("cp38-torch1.10.0+cu113")
    code, _, calls = checkout.setup(TORCH_FIND_LINKS="my wheels")
    assert code == 0
    assert calls[1].endswith("torchvision==0.11.1+cu113 --find-links my wheels")
    assert any(".cache/wheels/cp38-torch1.10.0+cu113/mmcv" in call for call in calls)
    (tmp_path / "freeze").write_text("torch==1.10.0+cu113\n")
    calls = checkout.setup(TORCH="1.10.0")[2]
    assert calls[1].endswith("torch==1.10.0 torchvision==0.11.1 --force-reinstall")


def test_an_environment_of_another_python(checkout):
    checkout.setup()
    checkout._script(checkout.python, STUB.format(real=sys.executable, version="3.12"))
    code, error, calls = checkout.setup()
    assert (code, calls) == (1, [])
    assert ".venv has Python 3.11" in error
    assert "rm -rf .venv" in error

"""Tools answer before torch is imported, and start without notices of torch and mmcv."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = sorted(
    path.name
    for path in (ROOT / "tools").glob("*.py")
    if path.name[0] != "_" and path.name != "bootstrap.py"
)
CPU_SECONDS = 1.0  # unlike the time on a clock it does not depend on what else runs


def run(*arguments, **environment):
    """Exit code, stdout, stderr and CPU seconds of a Python process that finds no installed project."""
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    with subprocess.Popen(
        [sys.executable, *map(str, arguments)], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**clean, **environment},
    ) as process:  # fmt: skip
        out, err = process.stdout.read(), process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.WEXITSTATUS(status)
    return process.returncode, out, err, usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize("tool", TOOLS)
def test_help_is_quick_and_quiet(tool):
    code, out, err, seconds = run(f"tools/{tool}", "--help")
    assert (code, err) == (0, "")
    assert out.startswith("usage: ")
    assert seconds < CPU_SECONDS


@pytest.mark.parametrize("tool", TOOLS)
def test_wrong_argument_fails_quickly(tool):
    code, out, err, seconds = run(f"tools/{tool}", "--no-such-flag")
    assert (code, out) == (2, "")
    assert err.startswith("usage: ")
    assert err.splitlines()[-1].startswith(f"{tool}: error: ")
    assert seconds < CPU_SECONDS


def test_the_clone_that_a_tool_lies_in_is_used(tmp_path):
    """Also where another clone is installed, and from another folder."""
    clone = tmp_path / "clone"
    (clone / "tools").mkdir(parents=True)
    for name in ("bootstrap.py", "train.py"):
        (clone / "tools" / name).write_text((ROOT / "tools" / name).read_text())
    (clone / "projects" / "bevformer").mkdir(parents=True)
    (clone / "projects" / "bevformer" / "__init__.py").touch()
    (clone / "projects" / "bevformer" / "cli.py").write_text("raise SystemExit('this clone')")
    code, _, err, _ = run(clone / "tools" / "train.py")
    assert (code, err.strip()) == (1, "this clone")


@pytest.mark.slow
def test_notices_at_import_are_silenced():
    start = "from projects.bevformer.cli.errors import quiet_start; quiet_start();"
    code, out, err, _ = run(
        "-c", f"{start} import torch.utils.cpp_extension, mmcv", CUDA_HOME="/usr"
    )
    assert (code, out, err) == (0, "", "")

"""The version check of the installed mmdet3d: relaxed by the set-up, worked around by `compat`."""

import importlib.metadata
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "requirements" / "relax_mmdet3d.py"
INSTALLED = Path(find_spec("mmdet3d").origin).parent
PLUGIN = "from projects.bevformer import plugin"
MMCV = importlib.metadata.version("mmcv-full")


@pytest.fixture
def mmdet3d(tmp_path):
    """An mmdet3d as it was released: links to the installed files, but for the check."""
    package = tmp_path / "mmdet3d"
    package.mkdir()
    for path in INSTALLED.iterdir():
        if path.name not in ("__init__.py", "__pycache__"):
            (package / path.name).symlink_to(path)
    text = (INSTALLED / "__init__.py").read_text()
    lines = [
        "mmcv_maximum_version = '1.7.0'" if line.startswith("mmcv_maximum_version") else line
        for line in text.splitlines()
    ]
    (package / "__init__.py").write_text("\n".join(lines) + "\n")
    return package


def python(*arguments, path):
    """Run Python where mmdet3d lies in `path`."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (path, ROOT))),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-W", "ignore", *map(str, arguments)]
    return subprocess.run(command, env=environment, cwd=path, capture_output=True, text=True)


def test_the_script_changes_one_line_once(mmdet3d):
    before = (mmdet3d / "__init__.py").read_text().splitlines()
    assert python(SCRIPT, path=mmdet3d.parent).returncode == 0
    relaxed = (mmdet3d / "__init__.py").read_text()
    changed = [new for old, new in zip(before, relaxed.splitlines()) if old != new]
    assert [line.split("  #")[0] for line in changed] == ["mmcv_maximum_version = '1.7.2'"]
    again = python(SCRIPT, path=mmdet3d.parent)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert (mmdet3d / "__init__.py").read_text() == relaxed
    (mmdet3d / "__init__.py").write_text("")
    other = python(SCRIPT, path=mmdet3d.parent)
    assert other.returncode == 1
    assert "is it mmdet3d 1.0.0rc6?" in other.stderr


@pytest.mark.slow
@pytest.mark.skipif(MMCV <= "1.7.0", reason="mmdet3d accepts this mmcv as it is")
def test_mmdet3d_may_be_imported_first_once_it_is_relaxed(mmdet3d):
    """Without the script it is refused: see the next test."""
    python(SCRIPT, path=mmdet3d.parent)
    done = python("-c", f"import mmdet3d; print(mmdet3d.__file__); {PLUGIN}", path=mmdet3d.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == str(mmdet3d / "__init__.py")


@pytest.mark.slow
@pytest.mark.skipif(MMCV <= "1.7.0", reason="mmdet3d accepts this mmcv as it is")
def test_elsewhere_this_project_comes_first(mmdet3d):
    """Also after importing mmdet3d first has failed in the same process, as in a notebook."""
    program = f"""
try:
    import mmdet3d
except AssertionError:
    print("refused")
{PLUGIN}
import mmdet3d
print(mmdet3d.__file__)
"""
    done = python("-c", program, path=mmdet3d.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["refused", str(mmdet3d / "__init__.py")]


@pytest.mark.skipif(
    not (Path(sys.prefix) / ".installed").exists(), reason="not an environment of make setup"
)
def test_this_environment_is_relaxed():
    lines = (INSTALLED / "__init__.py").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("mmcv_maximum_version"))
    assert line.startswith("mmcv_maximum_version = '1.7.2'"), "run make setup again"

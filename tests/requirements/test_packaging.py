"""pyproject.toml, setup.py and the version."""

import re
import subprocess
import sys
from pathlib import Path

from projects import bevformer

ROOT = Path(__file__).parents[2]
PYPROJECT = (ROOT / "pyproject.toml").read_text()


def test_setup_py_has_the_version_of_the_package():
    done = subprocess.run(
        [sys.executable, "setup.py", "--name", "--version"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["bevformer", bevformer.__version__]
    assert 'dynamic = ["version"]' in PYPROJECT
    assert f"version: {bevformer.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_dependencies_are_those_that_the_set_up_pins():
    """And neither torch nor OpenMMLab, which pip cannot resolve on every supported Python."""
    listed = re.search(r"\ndependencies = \[\n(.*?)\n\]", PYPROJECT, re.DOTALL).group(1)
    names = set(re.findall(r'"([\w-]+)', listed))
    pinned = (ROOT / "requirements" / "runtime.txt").read_text()
    assert {"numpy", "numba", "opencv-python-headless"} <= names
    assert names <= set(re.findall(r"^([\w-]+)", pinned, re.MULTILINE))


def python(program):
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)


def test_a_missing_stack_is_reported_with_the_remedy():
    done = python("import sys; sys.modules['mmcv'] = None; import projects.bevformer.plugin")
    assert done.returncode == 1
    assert "ModuleNotFoundError" in done.stderr
    assert "are installed by `make setup`" in done.stderr


def test_files_are_read_and_written_without_torch():
    """The doctor reads info files in installations where torch is broken."""
    program = "import sys; sys.modules.update(torch=None, mmcv=None)"
    modules = ("data_files", "pickles", "writing")
    imports = ", ".join(f"projects.bevformer.files.{module}" for module in modules)
    done = python(f"{program}; import {imports}")
    assert done.returncode == 0, done.stderr

"""The command line of tools/doctor.py."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from projects.bevformer.doctor.machine import Environment

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the tool in this process; returns its exit code and its lines, of stdout if any."""
    spec = importlib.util.spec_from_file_location("doctor_tool", ROOT / "tools" / "doctor.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    environment = Environment(python=(3, 11, 7))
    monkeypatch.setattr(tool, "inspect_environment", lambda: environment)
    monkeypatch.setattr(tool, "check_environment", lambda env: [])

    def run(*arguments, import_errors=None):
        environment.import_errors = import_errors or {}
        monkeypatch.setattr(sys, "argv", ["doctor.py", *map(str, arguments)])
        code = 0
        try:
            tool.main()
        except SystemExit as stop:
            code = stop.code
        printed = capsys.readouterr()
        return code, (printed.out or printed.err).splitlines()

    return run


def options(root):
    return [
        "--cfg-options",
        "load_from=None",
        *(
            f"data.{split}.ann_file={root}/synthetic_infos_temporal_{part}.pkl"
            for split, part in (("train", "train"), ("val", "val"), ("test", "val"))
        ),
    ]


def test_nothing_is_broken(run, whole_root):
    config = ["--config", ROOT / "configs" / "demo.py", "--data-root", whole_root]
    code, lines = run(*config, *options(whole_root), "--deep")
    assert code == 0
    assert lines[-1].endswith("0 warnings, 0 broken")
    for says in ("48 of 48 decoded", "[ok] data.train:", "million parameters"):
        assert any(says in line for line in lines), says
    assert run(*config, *options(whole_root), "--quiet")[1] == lines[-1:]


def test_something_is_broken(run, data_root):
    (data_root / "synthetic_infos_temporal_val.pkl").unlink()
    (data_root / "other_infos_temporal_val.pkl").write_bytes(b"")
    code, lines = run(
        "--config", ROOT / "configs" / "demo.py", "--data-root", data_root, *options(data_root),
        "--quiet",
    )  # fmt: skip
    assert code == 1
    broken = [line for line in lines if line.startswith("[broken]")]
    assert len(broken) == 2
    assert "data.val" in broken[0]
    assert broken[1].startswith("[broken] info file other_infos_temporal_val.pkl: ")
    assert "other_infos_temporal_val.pkl is not an info file" in broken[1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--canbus", "data"], "--canbus is about a data set: give --data-root or --config"),
        (["--deep"], "--deep is about a data set"),
        (["--data-root", "data", "--cfg-options", "a=1"], "give --config too"),
        (["--workers", "0"], "--workers 0: it must be at least 1"),
    ],
)
def test_flags_without_effect_are_refused(run, arguments, says):
    code, lines = run(*arguments)
    assert code == 2
    assert says in lines[-1]


def test_missing_config(run):
    code, lines = run("--config", "none.py")
    assert code == 1
    assert lines[0] == "[broken] none.py: config none.py does not exist. check the path"


def test_data_and_config_are_skipped_if_imports_fail(run):
    code, lines = run("--data-root", "none", import_errors={"mmcv": "ImportError: x"})
    assert code == 0
    assert "[warning] data set and config: are not checked" in lines[0]


def test_without_flags_only_the_environment_is_checked(run):
    assert run() == (0, ["0 ok, 0 warnings, 0 broken"])


def test_the_tool_starts_without_the_stack():
    """What is imported before the first finding must be there in every Python."""
    program = (
        "import sys; sys.modules.update(torch=None, mmcv=None, mmdet=None, mmdet3d=None, cv2=None,"
        f" numpy=None); sys.argv = ['doctor.py']; sys.path.insert(0, {str(ROOT / 'tools')!r});"
        f"import runpy; runpy.run_path({str(ROOT / 'tools' / 'doctor.py')!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "[broken] import numpy: " in done.stdout
    assert "[broken] import torch" not in done.stdout  # numpy is the cause
    assert "Traceback" not in done.stderr

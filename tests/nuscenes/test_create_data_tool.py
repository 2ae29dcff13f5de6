import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "create_data.py"


def run_tool(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["create_data.py", "nuscenes", *map(str, arguments)])
    runpy.run_path(str(TOOL), run_name="__main__")


def test_the_published_command(synthetic_root, tmp_path, monkeypatch, capsys):
    run_tool(
        monkeypatch,
        *("--root-path", synthetic_root, "--out-dir", tmp_path / "new" / "folder"),
        *("--extra-tag", "nuscenes", "--version", "v1.0-mini", "--canbus", synthetic_root),
        *("--max-sweeps", 0, "--workers", 4),
    )
    output = capsys.readouterr().out
    assert "nuscenes_infos_temporal_train.pkl: 4 frames" in output
    assert "nuscenes_infos_temporal_val.pkl: 4 frames" in output
    assert "0 scenes have no CAN bus" in output
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [
        "nuscenes_infos_temporal_train.pkl",
        "nuscenes_infos_temporal_val.pkl",
    ]


def test_mono3d_writes_another_file_per_split(synthetic_root, tmp_path, monkeypatch):
    run_tool(
        monkeypatch,
        *("--root-path", synthetic_root, "--out-dir", tmp_path, "--version", "v1.0-mini"),
        *("--canbus", synthetic_root, "--mono3d"),
    )
    assert sorted(path.name for path in tmp_path.glob("*mono3d*")) == [
        "nuscenes_infos_temporal_train_mono3d.coco.json",
        "nuscenes_infos_temporal_val_mono3d.coco.json",
    ]


def test_empty_split_is_a_warning(real_root, tmp_path, monkeypatch, capsys):
    run_tool(
        monkeypatch,
        *("--root-path", real_root, "--out-dir", tmp_path, "--version", "v1.0-mini"),
        *("--canbus", real_root.parent),
    )
    assert "warning: " in capsys.readouterr().out


def test_wrong_can_bus_path_gives_one_line(synthetic_root, tmp_path, monkeypatch):
    with pytest.raises(SystemExit) as stop:
        run_tool(
            monkeypatch,
            *("--root-path", synthetic_root, "--out-dir", tmp_path, "--version", "v1.0-mini"),
            *("--canbus", tmp_path),
        )
    assert str(stop.value).startswith("error (rank 0): no CAN bus folder")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--max-sweeps", -1], "--max-sweeps -1: it must be 0 or more"),
        (["--extra-tag", "a/b"], "--extra-tag 'a/b' must be the first part of a file name"),
        (["--extra-tag", ""], "--extra-tag '' must be"),
        (["--out-dir", TOOL], r"--out-dir .*create_data.py cannot be written \(.*choose another"),
    ],
)
def test_arguments_are_checked_first(synthetic_root, tmp_path, monkeypatch, arguments, says):
    with pytest.raises(SystemExit, match=says):
        run_tool(
            monkeypatch,
            *("--root-path", synthetic_root, "--version", "v1.0-mini", "--canbus", synthetic_root),
            *("--out-dir", tmp_path, *arguments),
        )
    assert not list(tmp_path.iterdir())


def test_tool_restores_signal_handlers(synthetic_root, tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    run_tool(
        monkeypatch,
        *("--root-path", synthetic_root, "--out-dir", tmp_path, "--version", "v1.0-mini"),
        *("--canbus", synthetic_root),
    )
    assert signal.getsignal(signal.SIGTERM) is before


def test_terminated_run_stops_its_workers():
    """Idle workers would wait for ever for the process that is gone."""
    program = f"""
import os, runpy, sys, time
sys.path.insert(0, {str(TOOL.parent)!r})
tool = runpy.run_path({str(TOOL)!r})
from concurrent.futures import ProcessPoolExecutor
import multiprocessing
with tool["ended_by_sigterm"](), ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as executor:
    print("worker", executor.submit(os.getpid).result(), flush=True)
    time.sleep(600)
"""
    run = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    # Imports of older versions print, too.
    worker = next(int(line.split()[1]) for line in run.stdout if line.startswith("worker"))
    run.terminate()
    assert run.wait(60) == 143
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)

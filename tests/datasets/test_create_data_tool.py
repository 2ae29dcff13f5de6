import runpy
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


def test_empty_split_is_a_warning(real_root, tmp_path, monkeypatch, capsys):
    run_tool(
        monkeypatch,
        *("--root-path", real_root, "--out-dir", tmp_path, "--version", "v1.0-mini"),
        *("--canbus", real_root.parent),
    )
    assert "warning: " in capsys.readouterr().out


def test_wrong_can_bus_path_ends_in_one_line(synthetic_root, tmp_path, monkeypatch):
    with pytest.raises(SystemExit) as stop:
        run_tool(
            monkeypatch,
            *("--root-path", synthetic_root, "--out-dir", tmp_path, "--version", "v1.0-mini"),
            *("--canbus", tmp_path),
        )
    assert str(stop.value).startswith("error (rank 0): no CAN bus folder")
    assert not list(tmp_path.iterdir())

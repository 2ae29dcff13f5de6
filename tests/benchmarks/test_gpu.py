"""The GPU script runs where there is no GPU, and no section of it stops the others."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import gpu
import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_sections_without_gpu_run_on_cpu(tmp_path):
    out = tmp_path / "gpu.json"
    run = subprocess.run(
        [
            sys.executable, "-W", "ignore", "benchmarks/gpu.py", "--device", "cpu", "--quick",
            "--out", str(out),
        ],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    result = json.loads(out.read_text())
    assert {"date", "commit", "hardware", "versions"} <= set(result)
    status = {name: section["status"] for name, section in result["sections"].items()}
    assert set(status) == {section.__name__ for section in gpu.SECTIONS}
    assert status["correctness"] == status["msda_time"] == "done"
    assert set(status.values()) == {"done", "skipped"}
    errors = result["sections"]["correctness"]["result"]
    assert {"packed float32 lean", "packed bfloat16 reference"} <= set(errors)


def test_a_failing_section_is_recorded_and_the_rest_runs(tmp_path, capsys):
    def broken(context):
        raise RuntimeError("out of memory")

    def impossible(context):
        raise gpu.Skip("no such card")

    def fine(context):
        return {"answer": 42}

    context = argparse.Namespace(device=torch.device("cpu"), quick=True)
    out = tmp_path / "folder" / "gpu.json"
    assert gpu.run_sections([broken, impossible, fine], context, out) == ["broken"]
    sections = json.loads(out.read_text())["sections"]
    assert sections["broken"]["error"] == "RuntimeError: out of memory"
    assert "raise RuntimeError" in sections["broken"]["traceback"]
    assert (sections["impossible"]["status"], sections["fine"]["status"]) == ("skipped", "done")
    assert sections["fine"]["result"] == {"answer": 42}


def test_a_wrong_backend_fails_the_section(monkeypatch):
    monkeypatch.setattr(gpu, "_errors", lambda case, backend, *rest: {"output": float("nan")})
    with pytest.raises(AssertionError, match="packed float32 lean"):
        gpu.correctness(argparse.Namespace(device=torch.device("cpu"), quick=True))

"""The benchmark of the evaluation runs, and compares the scores before it reports times."""

import importlib.util
import json
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def bench():
    path = Path(__file__).parents[2] / "benchmarks" / "bench_eval.py"
    spec = importlib.util.spec_from_file_location("bench_eval", str(path))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_reports_figures(bench, tmp_path, capsys):
    out = tmp_path / "figures.json"
    bench.main(["--samples", "5", "--devkit-samples", "4", "--out", str(out)])
    figures = json.loads(out.read_text())
    assert figures["samples"] == 5
    assert figures["samples for both"] == 4
    assert figures["boxes in range"] > 0.95 * 5 * bench.PREDICTIONS
    assert figures["largest difference"] < 1e-9
    assert set(figures["seconds"]) == set(bench.STEPS)
    assert "devkit / project" in capsys.readouterr().out


def test_scores_that_differ_are_an_error(bench, monkeypatch, tmp_path):
    right = bench.detection_metrics

    def wrong(boxes, truth, config):
        summary, details = right(boxes, truth, config)
        return {**summary, "nd_score": summary["nd_score"] + 1e-6}, details

    monkeypatch.setattr(bench, "detection_metrics", wrong)
    with pytest.raises(ValueError, match="differ by"):
        bench.main(["--samples", "2", "--devkit-samples", "2"])

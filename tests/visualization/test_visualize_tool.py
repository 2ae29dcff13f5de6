"""tools/visualize.py: which samples it draws, with what, and how it fails."""

import importlib.util
import json
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from projects.bevformer.engine import config, data_loading

TOOL = Path(__file__).parents[2] / "tools" / "visualize.py"
CAR = (0.0, 20.0, 0.0, 4.0, 2.0, 1.5, 0.0, 3.0, 0.0)


@pytest.fixture
def tool():
    spec = importlib.util.spec_from_file_location("visualize_tool", str(TOOL))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(tool, sample, make_boxes, monkeypatch, tmp_path):
    """Runs the tool on five samples s0 to s4, the last without annotations; returns its calls."""
    info, data_root = sample
    infos = [dict(info, token=f"s{i}", gt_boxes=()) for i in range(5)]
    del infos[-1]["gt_boxes"]

    def ground_truth(index):
        return make_boxes(*[CAR] * index) if "gt_boxes" in infos[index] else None

    dataset = SimpleNamespace(
        data_infos=infos,
        info_with_paths=infos.__getitem__,
        data_root=data_root,
        CLASSES=("car",),
        ground_truth=ground_truth,
    )
    monkeypatch.setattr(config, "load_config", lambda path, options, data_root: None)
    monkeypatch.setattr(data_loading, "build_test_dataset", lambda cfg: dataset)
    calls = []
    names = ("predictions", "ground_truth", "data_root", "score_threshold", "class_names")
    monkeypatch.setattr(
        "projects.bevformer.visualization.draw_sample",
        lambda out_dir, info, *rest: calls.append((info["token"], dict(zip(names, rest)))),
        raising=False,
    )

    def run_tool(*arguments):
        monkeypatch.setattr(sys, "argv", ["visualize.py", "c.py", "--out-dir", "out", *arguments])
        tool.main()
        return calls

    return run_tool


@pytest.fixture
def results_file(make_boxes, tmp_path):
    results = [{"pts_bbox": make_boxes(CAR, scores=[i / 10])} for i in range(5)]
    path = tmp_path / "results.pkl"
    path.write_bytes(pickle.dumps(results))
    return str(path)


def test_each_sample_gets_its_own_boxes(run, results_file):
    calls = run(results_file, "--num-samples", "0", "--score-thr", "0.2")
    assert [token for token, _ in calls] == ["s0", "s1", "s2", "s3", "s4"]
    for i, (_, drawn) in enumerate(calls):
        assert drawn["predictions"]["scores_3d"].tolist() == pytest.approx([i / 10])
        assert drawn["score_threshold"] == 0.2
        assert drawn["class_names"] == ("car",)
        if i < 4:
            assert len(drawn["ground_truth"]["boxes_3d"]) == i
    assert calls[4][1]["ground_truth"] is None


def test_ground_truth_only(run):
    calls = run("--ground-truth-only", "--samples", "s3", "s1")
    assert [token for token, _ in calls] == ["s3", "s1"]
    assert all(drawn["predictions"] is None for _, drawn in calls)
    assert len(calls[0][1]["ground_truth"]["boxes_3d"]) == 3


def test_samples_are_evenly_spaced(run):
    assert [token for token, _ in run("--ground-truth-only", "--num-samples", "3")] == [
        "s0",
        "s2",
        "s4",
    ]


def test_json_of_some_samples_draws_those(run, tmp_path):
    path = tmp_path / "results_nusc.json"
    path.write_text(json.dumps({"meta": {}, "results": {"s1": [], "s3": []}}))
    assert [token for token, _ in run(str(path))] == ["s1", "s3"]
    with pytest.raises(SystemExit, match="sample s2 is not in both the test set and the results"):
        run(str(path), "--samples", "s1", "s2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a results file, or --ground-truth-only"),
        (["r.pkl", "--ground-truth-only"], "takes no results file"),
        (["--ground-truth-only", "--num-samples", "-1"], "-1 is negative"),
    ],
)
def test_wrong_arguments(run, capsys, arguments, message):
    with pytest.raises(SystemExit) as exit_info:
        run(*arguments)
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


def test_missing_results_are_one_line(run):
    with pytest.raises(SystemExit, match=r"^error .*results file none\.pkl does not exist.*$"):
        run("none.pkl")

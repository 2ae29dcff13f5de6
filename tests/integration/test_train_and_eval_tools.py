"""tools/train.py, eval.py and visualize.py one after the other, as a user calls them."""

import json

import mmcv
import pytest
import torch
from tool_runs import DEMO, SMALL_BEV, as_flags, run

from projects.bevformer import compat  # noqa: F401  (the results are pickled mmdet3d boxes)

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def training(synthetic_infos, tmp_path_factory):
    """Work dir of two iterations, and what was printed."""
    work_dir = tmp_path_factory.mktemp("train")
    printed = run(
        "tools/train.py", DEMO, "--work-dir", work_dir, "--seed", 0, "--max-iters", 2,
        *as_flags({**synthetic_infos.options, **SMALL_BEV}),
    )  # fmt: skip
    return work_dir, printed


@pytest.fixture(scope="module")
def trained(training):
    """Work dir of two iterations."""
    return training[0]


@pytest.fixture(scope="module")
def evaluated(trained, synthetic_infos, tmp_path_factory):
    """Work dir of an evaluation, and what it printed."""
    work_dir = tmp_path_factory.mktemp("eval")
    printed = run(
        "tools/eval.py", DEMO, trained / "iter_2.pth", "--work-dir", work_dir,
        "--out", work_dir / "results.pkl",
        "--show-dir", work_dir / "pictures", "--show-samples", 1,
        *as_flags({**synthetic_infos.options, **SMALL_BEV}),
    )  # fmt: skip
    return work_dir, printed


def tokens_of(infos):
    return [info["token"] for info in mmcv.load(str(infos))["infos"]]


def test_training_starts_with_its_summary_and_without_notices(training, evaluated):
    _, printed = training
    lines = printed.splitlines()
    start = next(i for i, line in enumerate(lines) if line.endswith("mmdet3d - INFO - training"))
    assert start <= 4  # intervals that --max-iters drops and replaced types may come before
    assert "4 samples in 1 scene" in lines[start + 1]
    assert len(lines) < 60
    for text in (printed, evaluated[1]):
        assert "CUDA_HOME" not in text  # torch
        assert "UserWarning" not in text  # mmcv
    assert "initialize" not in printed


def test_training_leaves_checkpoint_log_and_metrics(trained):
    checkpoint = torch.load(trained / "iter_2.pth", map_location="cpu")
    assert checkpoint["meta"]["iter"] == 2
    assert checkpoint["meta"]["trained_with"] == {
        "box_convention": "wlh_negyaw",
        "rotate_center": [10.0, 10.0],
        "can_bus_quaternion": "wxyz",
        "can_bus_message": "same",
        "can_bus_heading": "wrapped",
        "lidar_axes": "lidar2ego",
        "replaced_parts": [],
    }
    assert (trained / "latest.pth").resolve() == (trained / "iter_2.pth").resolve()
    assert (trained / "demo.py").is_file()
    (log,) = trained.glob("*.log")
    assert "loss" in log.read_text()
    (lines,) = trained.glob("*.log.json")
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [r["iter"] for r in records if r.get("mode") == "train"][-1] == 2
    assert [r for r in records if r.get("mode") == "val"][-1]["NDS"] >= 0
    assert list((trained / "tf_logs").glob("events.out.tfevents.*"))
    assert "nd_score" in json.loads((trained / "metrics_summary.json").read_text())


def test_evaluation_writes_every_sample_and_prints_the_table(evaluated, synthetic_infos):
    work_dir, printed = evaluated
    assert "| mAP" in printed
    assert "traffic_cone" in printed
    assert "was trained with" not in printed
    submission = json.loads((work_dir / "results_nusc.json").read_text())
    assert sorted(submission["results"]) == sorted(tokens_of(synthetic_infos.val))
    summary = json.loads((work_dir / "metrics_summary.json").read_text())
    assert 0 <= summary["mean_ap"] <= 1
    results = mmcv.load(str(work_dir / "results.pkl"))
    assert len(results) == 4
    assert results[0]["pts_bbox"]["boxes_3d"].tensor.shape[1] == 9


def test_evaluation_gives_the_numbers_of_the_training_run(trained, evaluated):
    work_dir, _ = evaluated
    summaries = [
        json.loads((folder / "metrics_summary.json").read_text()) for folder in (trained, work_dir)
    ]
    for key in ("mean_ap", "nd_score", "mean_dist_aps"):
        assert summaries[0][key] == summaries[1][key]


def test_evaluation_draws_one_sample(evaluated, synthetic_infos):
    pictures = sorted(p.name for p in (evaluated[0] / "pictures").iterdir())
    token = tokens_of(synthetic_infos.val)[0]
    assert pictures == [f"{token}_bev.png", f"{token}_camera.png"]


@pytest.mark.parametrize("file", ["results.pkl", "results_nusc.json"])
def test_visualize_draws_the_results(evaluated, synthetic_infos, tmp_path, file):
    token = tokens_of(synthetic_infos.val)[2]
    run(
        "tools/visualize.py", DEMO, evaluated[0] / file, "--out-dir", tmp_path,
        "--samples", token, *as_flags(synthetic_infos.options),
    )  # fmt: skip
    for name in (f"{token}_bev.png", f"{token}_camera.png"):
        assert mmcv.imread(str(tmp_path / name)).std() > 0

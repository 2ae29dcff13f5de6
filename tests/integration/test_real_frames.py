"""Info files, evaluation and pictures of real nuScenes key frames, with a BEVFormer-tiny of random weights."""

import json

import mmcv
import pytest
import torch
from tool_runs import REPOSITORY, TINY, as_flags, data_options, run, scale_options

from projects.bevformer import compat  # noqa: F401
from projects.bevformer.engine.checkpoint import save_checkpoint
from projects.bevformer.engine.config import load_config

from mmdet3d.models import build_model  # isort: skip

FIXTURE = REPOSITORY.parent / "shared" / "data" / "nuscenes_real4"
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not FIXTURE.is_dir(), reason=f"{FIXTURE} is not there"),
]


@pytest.fixture(scope="module")
def infos(tmp_path_factory):
    """Info file of the four key frames."""
    out_dir = tmp_path_factory.mktemp("real")
    run(
        "tools/create_data.py", "nuscenes", "--root-path", FIXTURE / "nuscenes",
        "--out-dir", out_dir, "--extra-tag", "real", "--version", "v1.0-mini", "--canbus", FIXTURE,
    )  # fmt: skip
    return out_dir / "real_infos_temporal_val.pkl"


def test_evaluation_and_pictures(infos, tmp_path):
    torch.manual_seed(0)
    cfg = load_config(TINY, {"model.pretrained": None})
    detector = build_model(cfg.model)
    detector.init_weights()
    save_checkpoint(tmp_path / "random.pth", detector)

    key = f"data.test.pipeline.{len(cfg.data.test.pipeline) - 1}.transforms"
    transforms = cfg.data.test.pipeline[-1].transforms
    printed = run(
        "tools/eval.py", TINY, tmp_path / "random.pth", "--work-dir", tmp_path,
        "--show-dir", tmp_path / "pictures", "--show-samples", 2, "--show-score-thr", 0,
        *as_flags({
            **data_options(FIXTURE / "nuscenes", infos, infos),
            **scale_options({key: transforms}, scale=0.125),
        }),
    )  # fmt: skip
    assert "| mAP" in printed

    tokens = [info["token"] for info in mmcv.load(str(infos))["infos"]]
    assert len(tokens) == 4
    submission = json.loads((tmp_path / "results_nusc.json").read_text())["results"]
    assert sorted(submission) == sorted(tokens)
    assert any(submission.values())
    summary = json.loads((tmp_path / "metrics_summary.json").read_text())
    assert 0 <= summary["mean_ap"] < 0.1
    pictures = {p.name for p in (tmp_path / "pictures").iterdir()}
    drawn = (tokens[0], tokens[3])
    assert pictures == {f"{token}_{view}.png" for token in drawn for view in ("bev", "camera")}

"""BEVFormer v2 with two frames and groups of queries, through the tools: trained, evaluated."""

import json

import pytest
import torch
from tool_runs import REPOSITORY, SMALL_BEV, as_flags, run

CONFIG = REPOSITORY / "configs" / "bevformerv2" / "bevformerv2_r50_t1_base_24ep.py"
FRAMES = (-1, 0)
# The published crop keeps the lower 640 of 900 rows.
CROP = {"reisze": [64], "crop": (0, 65, 400, 225), "H": 225, "W": 400}
CROP_STEP = {"train": 5, "val": 1, "test": 1}
SMALL = {
    **SMALL_BEV,
    **{
        f"data.{split}.pipeline.{step}.data_aug_conf.{key}": value
        for split, step in CROP_STEP.items()
        for key, value in CROP.items()
    },
    **{f"data.{split}.frames": FRAMES for split in CROP_STEP},
    "model.frames": FRAMES,
    "model.pts_bbox_head.transformer.frames": FRAMES,
    "model.pts_bbox_head.transformer.num_fusion": 1,
    "model.pts_bbox_head.transformer.encoder.num_layers": 1,
    "model.pts_bbox_head.transformer.decoder.num_layers": 1,
    "model.pts_bbox_head.group_detr": 2,
    "model.pts_bbox_head.type": "BEVFormerHead_GroupDETR",
}

pytestmark = pytest.mark.integration


def test_trains_and_evaluates(synthetic_infos, tmp_path):
    options = as_flags({**synthetic_infos.options, **SMALL})
    run(
        "tools/train.py", CONFIG, "--work-dir", tmp_path, "--seed", 0, "--max-iters", 2, *options
    )  # fmt: skip
    trained = json.loads((tmp_path / "metrics_summary.json").read_text())
    weights = torch.load(tmp_path / "iter_2.pth", map_location="cpu")["state_dict"]
    assert "pts_bbox_head.transformer.fusion.layers.0.conv1.weight" in weights
    assert "fcos3d_bbox_head.fcos2d_head.cls_tower.0.norm.0.running_mean" in weights

    out = tmp_path / "eval"
    run("tools/eval.py", CONFIG, tmp_path / "iter_2.pth", "--work-dir", out, *options)
    evaluated = json.loads((out / "metrics_summary.json").read_text())
    assert evaluated["nd_score"] == pytest.approx(trained["nd_score"], abs=1e-6)

"""Training steps on a pretended GPU: launches, host reads and uploads of the published recipes."""

import re

import pytest

pytest.importorskip("torch._subclasses.fake_tensor", reason="torch < 2.1 cannot run the model")

import fake_cuda  # noqa: E402
from common import ROOT  # noqa: E402

# Kernels of a training step in float32, one sample, without those of deformable attention.
MOST_LAUNCHES = {"tiny train fp32 b1": 3400, "base train fp32 b1": 6000}
MOST_READS = {"train": 5, "test": 2}
CASES = fake_cuda.all_cases()
IN_EVERY_RUN = ("tiny train fp32 b1", "tiny test fp32 b1")


@pytest.mark.parametrize(
    "name",
    [
        name if name in IN_EVERY_RUN else pytest.param(name, marks=pytest.mark.long)
        for name in CASES
    ],
)
def test_case(name):
    status, *rest = fake_cuda.in_a_fork(ROOT, CASES[name])
    assert status == "ok", rest
    (records,) = rest
    assert records["faults"] == []
    assert sum(records["reads"].values()) <= MOST_READS[CASES[name].kind], records["reads"]
    launches = {
        place: number
        for place, number in records["launches"].items()
        if not place.startswith("ops/deform_attn")
    }
    assert sum(launches.values()) <= MOST_LAUNCHES.get(name, float("inf")), launches
    assert records["h2d_count"] <= 50


def test_images_as_bytes_are_distorted_without_blocking():
    options = {
        "data.train.queue_length": 2,
        "model.img_backbone.depth": 50,
        "model.pts_bbox_head.bev_h": 50,
        "model.pts_bbox_head.bev_w": 50,
        "model.pts_bbox_head.transformer.encoder.num_layers": 1,
        "model.pts_bbox_head.transformer.decoder.num_layers": 1,
    }
    case = fake_cuda.Case("configs/config.py", options, "train", 1, "lean")
    status, *rest = fake_cuda.in_a_fork(ROOT, case)
    assert status == "ok", rest
    (records,) = rest
    assert records["faults"] == []
    assert sum(records["reads"].values()) <= MOST_READS["train"]
    assert any(place.startswith("model/image_preprocessor.py") for place in records["h2d"])


def test_list_shows_matching_cases(capsys):
    fake_cuda.main([".", "--list", "--only", "^base test"])
    assert re.fullmatch(r"(base test \w+ b1\n){3}", capsys.readouterr().out)

"""Tensors that a recipe forgets on the CPU are found without a GPU."""

import pytest

pytest.importorskip("torch._subclasses.fake_tensor", reason="torch < 2.1 lacks meta kernels")

import meta_device  # noqa: E402
import torch  # noqa: E402
from common import ROOT  # noqa: E402

CONFIGS = sorted(p for p in (ROOT / "configs").rglob("*.py") if p.parent.name != "_base_")
REDUCED = [
    "model.img_backbone.depth=50",
    "model.pts_bbox_head.bev_h=20",
    "model.pts_bbox_head.bev_w=20",
    "model.pts_bbox_head.transformer.encoder.num_layers=1",
    "model.pts_bbox_head.transformer.decoder.num_layers=1",
]
TWO_FRAMES = ["model.frames=(-1,0)", "model.pts_bbox_head.transformer.frames=(-1,0)"]
V2 = "bevformerv2/bevformerv2_r50_t1_base_24ep.py"


def run(capsys, config, *options):
    meta_device.main([str(ROOT / "configs" / config), *options])
    assert capsys.readouterr().out.splitlines() == ["backward ok", "test stream ok"]


@pytest.mark.parametrize(
    ("config", "options"),
    [("bevformer/bevformer_low_memory.py", ["data.train.queue_length=2"]), (V2, TWO_FRAMES)],
    ids=["base", "v2"],
)
def test_reduced_networks_with_batches_of_two(capsys, config, options):
    run(capsys, config, "data.samples_per_gpu=2", *REDUCED, *options)


@pytest.mark.long
@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_every_recipe(capsys, path, samples):
    frames = TWO_FRAMES if path.stem.startswith("bevformerv2") and samples == 2 else []
    run(capsys, path.relative_to(ROOT / "configs"), f"data.samples_per_gpu={samples}", *frames)


def test_a_tensor_left_on_the_cpu_is_named():
    with meta_device.MetaDevice(), pytest.raises(RuntimeError, match="mixes devices"):
        torch.zeros(2, device="meta") + torch.zeros(2)


def test_a_shape_that_depends_on_contents_is_refused():
    with meta_device.MetaDevice(), pytest.raises(RuntimeError, match="nonzero"):
        torch.zeros(2, device="meta").nonzero()

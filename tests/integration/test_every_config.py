"""Every config builds and trains a step: on small pictures and a small BEV, otherwise as it is."""

import logging

import pytest
import torch
from mmcv.runner import build_optimizer
from tool_runs import REPOSITORY, SMALL_BEV

from projects.bevformer import compat  # noqa: F401
from projects.bevformer.engine.config import load_config, runner_settings
from projects.bevformer.engine.data_loading import (
    build_test_dataset,
    build_train_dataset,
    build_train_loader,
)
from projects.bevformer.engine.precision import set_compute_format
from projects.bevformer.engine.seed import set_seed
from projects.bevformer.engine.training_model import TrainingModel

from mmdet3d.models import build_model  # isort: skip

# The network of small again, and half a minute: test_fast_configs.py compares its input with that of small.
SLOW_TWINS = ["bevformer_small_fast"]
# Recipes that differ from another one only in the number of epochs.
LONGER = {
    f"bevformerv2_r50_{name}_48ep": f"bevformerv2_r50_{name}_24ep"
    for name in ("t1_base", "t1", "t2")
}
# Recipes that moved to configs/bevformer, and their names there.
MOVED = {
    "config_bev120": "bevformer_bev120",
    "config_bf16": "bevformer_bf16",
    "config_low_memory": "bevformer_low_memory",
    "config_mini": "bevformer_mini",
}
CONFIGS = sorted(
    path
    for path in (REPOSITORY / "configs").rglob("*.py")
    if path.parent.name != "_base_"  # what recipes are made of, not recipes
    and path.stem not in SLOW_TWINS
    and path.stem not in LONGER
    and path.stem not in MOVED
)
CPU = torch.device("cpu")
# Recipes with groups of queries, many frames or a large backbone: less of each.
FEWER = {
    "num_query": 30,
    "model.pts_bbox_head.transformer.encoder.num_layers": 1,
    "model.pts_bbox_head.transformer.decoder.num_layers": 1,
}
R18 = {"model.img_backbone.depth": 18, "model.img_neck.in_channels": [128, 256, 512]}
V2_99 = {**FEWER, "queue_length": 2, "model.img_backbone.spec_name": "V-19-eSE"}

pytestmark = pytest.mark.integration


def small(cfg):
    """Pictures of 56 x 100: the scale of the config's own step, or a step where it has none.

    Where a step cuts the pictures its numbers fit the synthetic ones: pictures of 64 x 160.
    """
    pipeline = list(cfg.data.train.pipeline)
    scale = dict(type="RandomScaleImageMultiViewImage", scales=[0.25])
    types = [step["type"] for step in pipeline]
    if "CropResizeFlipImage" in types:
        crop = pipeline[types.index("CropResizeFlipImage")]
        crop.data_aug_conf.update(reisze=[64], crop=(0, 65, 400, 225), H=225, W=400)
    elif scale["type"] in types:
        pipeline[types.index(scale["type"])] = scale
    else:
        pipeline.insert(types.index("LoadMultiViewImageFromFiles") + 1, scale)
    cfg.data.train.pipeline = pipeline
    return cfg


@pytest.mark.parametrize("name", MOVED)
def test_moved_recipes_are_found_in_their_old_place(name):
    configs = REPOSITORY / "configs"
    old = load_config(configs / f"{name}.py")
    assert old._cfg_dict == load_config(configs / "bevformer" / f"{MOVED[name]}.py")._cfg_dict


@pytest.mark.parametrize("name", LONGER)
def test_longer_recipes_differ_only_in_their_schedule(name):
    folder = REPOSITORY / "configs" / "bevformerv2"
    longer, shorter = (load_config(folder / f"{stem}.py") for stem in (name, LONGER[name]))
    assert runner_settings(longer).max_epochs == 48
    assert longer.lr_config.step == [44]
    for cfg in (longer, shorter):
        cfg.lr_config.step = cfg.runner = cfg.total_epochs = None
    assert longer._cfg_dict == shorter._cfg_dict


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_config_builds_and_trains_a_step(path, synthetic_infos):
    fewer = {**FEWER, **R18} if path.parent.name == "bevformerv2" else {}
    fewer = V2_99 if path.stem == "bevformer_base_v2_99" else fewer
    cfg = small(load_config(path, {**synthetic_infos.two_scenes, **SMALL_BEV, **fewer}))
    cfg.model.pretrained = None  # nothing is downloaded
    set_seed(0)
    assert runner_settings(cfg).max_epochs >= 1
    assert build_test_dataset(cfg).test_mode
    batch = next(iter(build_train_loader(cfg, build_train_dataset(cfg), seed=0)))
    train = cfg.data.train
    frames = train.queue_length if "queue_length" in train else len(train.frames)
    assert batch["img"].data[0].shape[:2] == (cfg.data.samples_per_gpu, frames)

    detector = build_model(cfg.model)
    detector.init_weights()
    set_compute_format(detector, cfg, CPU, logging.getLogger())
    model = TrainingModel(detector.train(), CPU)
    optimizer = build_optimizer(detector, cfg.optimizer)
    outputs = model.train_step(batch, optimizer)
    assert torch.isfinite(outputs["loss"])
    outputs["loss"].backward()
    weight = detector.pts_bbox_head.transformer.encoder.layers[0].ffns[0].layers[1].weight
    before = weight.detach().clone()
    optimizer.step()
    assert torch.isfinite(weight).all()
    assert not torch.equal(weight, before)

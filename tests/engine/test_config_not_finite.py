"""Numbers of a config that would make a NaN."""

import copy
import functools
from pathlib import Path

import pytest

from projects.bevformer.engine.config import load_config
from projects.bevformer.engine.config_checks import check_config, config_problems

TINY = Path(__file__).parents[2] / "configs" / "bevformer" / "bevformer_tiny.py"
NAN, INF = float("nan"), float("inf")


@functools.lru_cache(maxsize=None)
def recipe():
    return load_config(TINY)


def changed(key, value):
    cfg = copy.deepcopy(recipe())
    node, *parts = cfg, *key.split(".")
    for part in parts[:-1]:
        if node.get(part) is None:
            node[part] = {}
        node = node[part]
    node[parts[-1]] = value
    return cfg


HEAD = "model.pts_bbox_head"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("optimizer.lr", value) for value in (NAN, INF, -1e-4)),
        *(("optimizer.weight_decay", value) for value in (NAN, INF)),
        ("optimizer.betas", (0.9, NAN)),
        ("optimizer.eps", NAN),
        ("optimizer.paramwise_cfg.custom_keys.img_backbone.lr_mult", INF),
        ("lr_config.min_lr_ratio", NAN),
        ("lr_config.warmup_ratio", INF),
        ("optimizer_config.grad_clip.max_norm", NAN),
        ("fp16.loss_scale", NAN),
        *((f"{HEAD}.loss_cls.loss_weight", value) for value in (NAN, INF)),
        (f"{HEAD}.code_weights", [1.0] * 9 + [NAN]),
        (f"{HEAD}.code_weights", [1.0] * 9 + [INF]),
        ("model.train_cfg.pts.assigner.reg_cost.weight", NAN),
        ("img_norm_cfg", {"mean": [0.0] * 3, "std": [1.0, 0.0, 1.0], "to_rgb": True}),
        ("non_finite.policy", "ignore"),
        ("non_finite.max_skipped", -1),
        ("non_finite.max_skipped", 1.5),
        ("non_finite.limit", 3),
        ("non_finite", "skip"),
    ],
)
def test_a_number_that_makes_a_nan_is_refused(key, value):
    if key == "img_norm_cfg":
        cfg = changed(key, value)
        for split in ("train", "val", "test"):
            for step in cfg.data[split].pipeline:
                step.update(value if step["type"] == "NormalizeMultiviewImage" else {})
        key = "std"
    else:
        cfg = changed(key, value)
    with pytest.raises(ValueError, match=rf"{key.rpartition('.')[2]}[.\d]* .*"):
        check_config(cfg)


def test_a_variable_that_is_nan_is_refused(tmp_path):
    path = tmp_path / "nan.py"
    path.write_text(f'_base_ = ["{TINY}"]\nlr = float("nan")\n')
    with pytest.raises(ValueError, match=r"optimizer\.lr is nan: it must be"):
        check_config(load_config(path))


@pytest.mark.parametrize("policy", ["stop", "skip", None])
def test_policies(policy):
    cfg = changed("non_finite", policy and {"policy": policy, "max_skipped": 0})
    assert config_problems(cfg) == []


def test_an_infinite_order_of_the_norm_is_one():
    assert config_problems(changed("optimizer_config.grad_clip.norm_type", INF)) == []

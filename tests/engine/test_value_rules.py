"""Values of a config that mean nothing are refused with their key before anything is built."""

import pytest
from mmcv import Config
from test_config_checks import (
    CODER,
    DEMO,
    ENCODER,
    FAST,
    LAYER,
    TINY,
    V2,
    changed,
    recipe,
)

from projects.bevformer.engine.config_checks import _all_values, check_config, config_problems
from projects.bevformer.engine.config_keys import SECTIONS
from projects.bevformer.engine.value_rules import is_number, senseless

# Read by nothing, or only one value passes: the class that takes it says so. Ranges are judged as a whole.
_ELSEWHERE = (
    *("voxel_size", "img_scale", "pts_scale_ratio", "fallback_on_stride", "as_two_stage"),
    *("return_intermediate", "_range", "pc_range"),
)
BASE = "config.py"


@pytest.mark.parametrize("name", [BASE, TINY, V2, DEMO])
def test_no_number_and_no_switch_of_a_recipe_may_be_a_text(name):
    values = [one for one in _all_values(recipe(name)) if one.given]
    numbers = [one for one in values if isinstance(one.value, bool) or is_number(one.value)]
    assert len(numbers) > 90
    for one in numbers:
        if not any(part in one.key for part in _ELSEWHERE):
            assert senseless(one.key, one.reader, "text"), one.key
            assert senseless(one.key, one.reader, {}), one.key


@pytest.mark.parametrize(
    ("name", "key", "value", "says"),
    [
        (TINY, "data.workers_per_gpu", -1, "a whole number of 0 or more"),
        (TINY, "optimizer.betas", 0.9, "a list of at least two numbers"),
        (TINY, "seed", "x", "a whole number of 0 or more"),
        (TINY, "data.workers_per_gpu", None, "a whole number of 0 or more"),
        (TINY, "data.samples_per_gpu", "two", "a whole number of at least 1"),
        (TINY, "data.train.ann_file", 5, "the path of an info file"),
        (TINY, "data.train.pipeline", [], "a list of steps"),
        (TINY, "data.test.pipeline", None, "a list of steps"),
        (TINY, "data.test.pipeline.2.transforms", [], "a list of steps"),
        (TINY, "data.train.pipeline.6.scales", [0.001], "a number from 0.01 to 4"),
        (TINY, "data.train.pipeline.6.scales", [100], "a number from 0.01 to 4"),
        (TINY, "data.train.pipeline.7.size_divisor", 0, "a whole number of at least 1"),
        (TINY, "data.train.classes", "car", "a list of names, each once"),
        (TINY, "data.train.modality", [], "a dict"),
        (FAST, "model.data_preprocessor.scale", -1, "a number from 0.01 to 4"),
        (FAST, "model.data_preprocessor.std", [0, 1, 1], "a positive number"),
        (TINY, "runner.max_epochs", 2.5, "a whole number of at least 1"),
        (TINY, "total_epochs", 0, "a whole number of at least 1"),
        (TINY, "checkpoint_config.interval", 0, "a whole number of at least 1, or -1"),
        (TINY, "checkpoint_config.interval", "1", "a whole number of at least 1, or -1"),
        (TINY, "checkpoint_config.max_keep_ckpts", 0, "a whole number of at least 1, or -1"),
        (TINY, "checkpoint_config.max_keep_ckpts", True, "a whole number of at least 1, or -1"),
        (TINY, "checkpoint_config.on_error", "ignore", "'stop' or 'continue'"),
        (TINY, "checkpoint_config.interval", -1, None),
        (TINY, "non_finite.max_skipped", 0, None),
        (TINY, "evaluation.interval", -1, "a whole number of at least 1"),
        (TINY, "lr_config.warmup_iters", "x", "a whole number of 0 or more"),
        (TINY, "lr_config.warmup_ratio", 2, "a number from 0 to 1"),
        (TINY, "optimizer.lr", float("nan"), "a positive number"),
        (TINY, "optimizer.lr", 0, "a positive number"),
        (TINY, "optimizer.weight_decay", -1, "a number of 0 or more"),
        (TINY, "optimizer_config.grad_clip", 35, "a dict"),
        (TINY, "optimizer_config.grad_clip.norm_type", "x", "a positive number or 'inf'"),
        (TINY, "evaluation", 5, "a dict"),
        (TINY, "lr_config", [], "a dict"),
        (TINY, "workflow", [("val", 1)], "only 'train' is supported"),
        (TINY, "work_dir", 5, "a path"),
        (TINY, "load_from", [], "a path"),
        (TINY, "find_unused_parameters", "no", "True or False"),
        (TINY, "tf32", 0, "True or False"),
        (TINY, "load_from_other_classes", 1, "True or False"),
        (TINY, "custom_hooks", 5, "a list of dicts with a `type`"),
        (TINY, "model", "BEVFormer", "a dict"),
        (TINY, "model.pts_bbox_head", -1, "a dict"),
        (TINY, "model.img_backbone", "ResNet", "a dict"),
        (TINY, "model.img_backbone.norm_eval", None, "True or False"),
        (TINY, "model.pts_bbox_head.loss_cls.loss_weight", "abc", "a number of 0 or more"),
        (TINY, f"{CODER}.pc_range", [0, 0, 0, 0, 0, 0], "six finite numbers"),
        (TINY, f"{CODER}.post_center_range", [5, 5, 5, -5, -5, -5], "six finite numbers"),
        (TINY, f"{ENCODER}.pc_range", ["x"] * 6, "six finite numbers"),
        (TINY, f"{LAYER}.ffn_dropout", 7, "a number from 0 to 1"),
        (TINY, f"{LAYER}.attn_cfgs.1.deformable_attention.num_points", 0, "a whole number of at l"),
        (TINY, f"{ENCODER}.num_layers", 0, "a whole number of at least 1"),
        (TINY, "model.pts_bbox_head.num_query", 0, "a whole number of at least 1"),
        (V2, "data.train.frames", [0.5], "a whole number"),
    ],
)
def test_values_without_a_meaning_are_refused(name, key, value, says):
    problems = [
        what for found, what in config_problems(changed({key: value}, name)) if key in found
    ]
    if says is None:
        assert problems == []
    else:
        assert "it must be" in problems[0]
        assert says in problems[0]


def test_more_boxes_than_scores_are_refused():
    says = r"max_num is 9001, more than the scores of a frame, 900 queries x 10 classes: lower it"
    with pytest.raises(ValueError, match=says):
        check_config(changed({f"{CODER}.max_num": 9001}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (DEMO, "text"),
        *(
            pytest.param(name, value, marks=pytest.mark.long)
            for name in (DEMO, V2)
            for value in (None, "text", -1, [], {})
        ),
    ],
)
def test_nothing_at_any_section_ends_in_another_error(name, value):
    """Sections and the parts of the network, which the other checks look into."""
    tree = recipe(name)._cfg_dict
    for key in [*(SECTIONS & set(tree)), *(f"model.{part}" for part in tree.model)]:
        cfg = changed({key: value}, name)
        assert isinstance(config_problems(cfg), list), key


def test_an_argument_of_a_part_of_ones_own_may_be_anything(monkeypatch):
    from mmcv.cnn.bricks.registry import ATTENTION

    class Own(ATTENTION.module_dict["TemporalSelfAttention"]):
        def __init__(self, num_heads=8, **kwargs):
            super().__init__(num_heads=num_heads, **kwargs)

    monkeypatch.setitem(ATTENTION.module_dict, "Own", Own)
    assert senseless("model.a.num_heads", "TemporalSelfAttention", "x")
    assert senseless("model.a.num_heads", "Own", "x") is None
    assert senseless("model.a.num_points", "Own", "x")  # an argument of the base


def test_a_cycle_has_an_iteration_at_least():
    hook = "GradientCumulativeOptimizerHook"
    for value in (0, 1.5, True):
        assert senseless("optimizer_config.cumulative_iters", hook, value)
    assert senseless("optimizer_config.cumulative_iters", hook, 1) is None


def test_an_empty_config_lacks_its_sections():
    with pytest.raises(ValueError, match="model is None: a config must have it"):
        check_config(Config({}))

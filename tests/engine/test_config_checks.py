"""Keys that nothing reads, and values that contradict each other, in configs that are not built."""

import copy
import functools
from pathlib import Path

import pytest
from mmcv import Config
from mmcv.cnn.bricks.registry import ATTENTION

from projects.bevformer.engine.config import load_config
from projects.bevformer.engine.config_checks import check_config, config_problems
from projects.bevformer.engine.unread_keys import arguments_of

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = sorted(path for path in CONFIGS.rglob("*.py") if path.parent.name != "_base_")
TINY, V2 = "bevformer/bevformer_tiny.py", "bevformerv2/bevformerv2_r50_t1_base_24ep.py"
FAST, DEMO = "bevformer/bevformer_tiny_fast.py", "demo.py"


@functools.lru_cache(maxsize=None)
def recipe(name):
    return load_config(CONFIGS / name)


def changed(changes, name=TINY):
    """A recipe with some values set; missing dicts on the way are made."""
    cfg = Config(copy.deepcopy(recipe(name)._cfg_dict.to_dict()))
    for dotted, value in changes.items():
        node, *parts = cfg, *dotted.split(".")
        for part in parts[:-1]:
            if isinstance(node, list):
                node = node[int(part)]
            else:
                if node.get(part) is None:
                    node[part] = {}
                node = node[part]
        node[int(parts[-1]) if isinstance(node, list) else parts[-1]] = value
    return cfg


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_passes(path):
    assert config_problems(load_config(path)) == []


ENCODER = "model.pts_bbox_head.transformer.encoder"
LAYER = f"{ENCODER}.transformerlayers"
DECODER_LAYER = "model.pts_bbox_head.transformer.decoder.transformerlayers"
CODER = "model.pts_bbox_head.bbox_coder"


@pytest.mark.parametrize(
    ("name", "key", "nearest"),
    [
        (TINY, "model.use_gridmask", "use_grid_mask"),
        (TINY, "data.val.modality.use_cameras", "use_camera"),
        (TINY, "model.img_backbone.frozen_stage", "frozen_stages"),
        (TINY, "model.img_backbone.norm_cfg.requires_gradient", "requires_grad"),
        (TINY, "model.img_neck.num_out", "num_outs"),
        (TINY, "model.pts_bbox_head.num_querry", "num_query"),
        (TINY, "model.pts_bbox_head.loss_cls.gama", "gamma"),
        (TINY, f"{CODER}.max_nums", "max_num"),
        (TINY, f"{ENCODER}.num_layer", "num_layers"),
        (TINY, f"{LAYER}.ffn_dropuot", "ffn_dropout"),
        (TINY, f"{LAYER}.attn_cfgs.1.deformable_attention.num_point", "num_points"),
        (TINY, f"{DECODER_LAYER}.feedforward_channel", "feedforward_channels"),
        (TINY, f"{DECODER_LAYER}.attn_cfgs.0.dropot", "dropout"),
        (TINY, "model.pretrained.imgs", "img"),
        (TINY, "model.train_cfg.pts.asigner", "assigner"),
        (TINY, "model.train_cfg.pts.assigner.cls_costs", "cls_cost"),
        (TINY, "train_cfg.pts.asigner", "assigner"),
        (TINY, "data.sample_per_gpu", "samples_per_gpu"),
        (TINY, "data.train.queue_len", "queue_length"),
        (TINY, "data.train.pipeline.0.to_float", "to_float32"),
        (TINY, "data.test.pipeline.2.transforms.1.size_divisors", "size_divisor"),
        (TINY, "optimizer.weight_decey", "weight_decay"),
        (TINY, "optimizer.paramwise_cfg.custom_key", "custom_keys"),
        (TINY, "optimizer.paramwise_cfg.custom_keys.img_backbone.lr_mul", "lr_mult"),
        (TINY, "optimizer_config.gradclip", "grad_clip"),
        (TINY, "optimizer_config.grad_clip.maxnorm", "max_norm"),
        (TINY, "lr_config.warmup_iter", "warmup_iters"),
        (TINY, "checkpoint_config.max_keep_ckpt", "max_keep_ckpts"),
        (TINY, "log_config.interva", "interval"),
        (TINY, "log_config.hooks.0.by_epochs", "by_epoch"),
        (TINY, "evaluation.save_bests", "save_best"),
        (TINY, "fp16.loss_scales", "loss_scale"),
        (TINY, "runner.max_epoch", "max_epochs"),
        (TINY, "auto_scale_lr.base_batch", "base_batch_size"),
        (FAST, "model.data_preprocessor.size_divisors", "size_divisor"),
        (V2, "model.fcos3d_bbox_head.fcos2d_cfg.num_cls_conv", "num_cls_convs"),
        (V2, "model.fcos3d_bbox_head.nusc_loss_weight.attr_weight", "attr_loss_weight"),
        (V2, "data.train.mono_cfg.min_num_lidar_point", "min_num_lidar_points"),
        (V2, "data.train.frame", "frames"),
        (V2, "data.train.pipeline.5.data_aug_conf.rand_flips", "rand_flip"),
    ],
)
def test_a_misspelt_key_is_refused_with_its_path(name, key, nearest):
    with pytest.raises(ValueError, match=rf"^{key} is not read .*, did you mean '{nearest}'\?$"):
        check_config(changed({key: 1}, name))


def test_hooks_and_wrapped_data_sets_are_looked_into():
    hooks = [dict(type="EMAHook", momentun=0.1, priority="LOW")]
    inner = dict(recipe(TINY).data.train, queue_len=3)
    wrapped = dict(type="RepeatDataset", times=2, dataset=inner)
    cfg = changed(
        {"custom_hooks": hooks, "data.train": wrapped, "lr_config": dict(policy="step", stop=[1])}
    )
    assert [key for key, _ in config_problems(cfg)] == [
        "data.train.dataset.queue_len", "lr_config.stop", "custom_hooks.0.momentun",
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"\(and 2 more: tools/doctor\.py --config lists them\)"):
        check_config(cfg)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        (
            TINY,
            {
                "model.train_cfg.pts.grid_size": [512, 512, 1],
                "model.train_cfg.pts.voxel_size": [0.2, 0.2, 8],
                "model.train_cfg.pts.point_cloud_range": [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0],
                "model.train_cfg.pts.out_size_factor": 4,
                "model.test_cfg": dict(pts=dict(score_thr=0.0)),
                "data.train.bev_size": (50, 50),
                "data.val.samples_per_gpu": 1,
                "data.shuffler_sampler": dict(type="DistributedGroupSampler"),
                "data.nonshuffler_sampler": dict(type="DistributedSampler"),
                "evaluation.pipeline": [],
                "evaluation.gpu_collect": True,
                "evaluation.by_epoch": True,
            },
        ),
        (
            V2,
            {
                "model.train_cfg.pts.grid_size": [512, 512, 1],
                "model.fcos3d_bbox_head.box3d_on": True,
                "model.fcos3d_bbox_head.fcos3d_loss_cfg.max_loss_per_group": 20,
                "model.fcos3d_bbox_head.fcos2d_cfg.use_scale": True,
                "data.train.mono_cfg.name": "nusc_trainval",
                "data.train.mono_cfg.data_root": "data/nuscenes/",
                "data.train.pipeline.5.debug": False,
                "data.train.pipeline.10.is_train": True,
            },
        ),
    ],
)
def test_keys_of_the_original_without_effect_pass(name, changes):
    assert config_problems(changed(changes, name)) == []


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        (TINY, {f"{ENCODER}.pc_range": [-50, -50, -5, 50, 50, 3]}, r"pc_range is \[-50, .* is \[-51\.2"),
        (TINY, {f"{LAYER}.attn_cfgs.1.pc_range": [0] * 6}, r"attn_cfgs\.1\.pc_range is \[0, "),
        (TINY, {"model.train_cfg.pts.assigner.pc_range": [0] * 6}, r"assigner\.pc_range is \[0, "),
        (
            TINY,
            {"data.train.pipeline.3.point_cloud_range": [0, 0, 0, 9, 9, 9]},
            r"data\.train\.pipeline\.3\.point_cloud_range is \[0, .*pc_range is \[-51\.2, ",
        ),
        (
            TINY,
            {f"{CODER}.post_center_range": [-61.2, -50, -10, 61.2, 61.2, 10]},
            r"post_center_range is .* drops a part of .*pc_range",
        ),
        (TINY, {"model.img_neck.out_channels": 128}, r"neck\.out_channels is 128, .* is 256"),
        (TINY, {f"{LAYER}.attn_cfgs.0.embed_dims": 128}, r"attn_cfgs\.0\.embed_dims is 128, "),
        (
            TINY,
            {"model.pts_bbox_head.positional_encoding.num_feats": 64},
            r"^2 \* .*num_feats is 128, .* is 256: they must be equal",
        ),
        (V2, {"model.fcos3d_bbox_head.in_channels": 128}, r"fcos3d_bbox_head\.in_channels is 128"),
        (TINY, {"model.pts_bbox_head.num_classes": 11}, r"head\.num_classes is 11, .* is 10"),
        (V2, {"model.fcos3d_bbox_head.num_classes": 9}, r"head\.num_classes is 9, .* is 10"),
        (TINY, {f"{LAYER}.attn_cfgs.1.deformable_attention.num_levels": 4}, r"num_levels is 4, .*num_outs is 1: |num_outs is 1, .*num_levels is 4: "),
        (TINY, {"model.img_backbone.out_indices": (2, 3)}, r"len\(.*out_indices\) is 2, len\(.*in_channels\) is 1: |in_channels\) is 1, len\(.*indices\) is 2: "),
        (V2, {"model.frames": (-1, 0)}, r"model\.frames is \[-1, 0\], .* is \[0\]"),
        (
            TINY,
            {"data.val.classes": ["truck", "car"]},
            r"data\.val\.classes is \['truck', 'car'\], data\.train\.classes is \['car', 'truck', ",
        ),
        (TINY, {"data.val.classes": None}, r"data\.val\.classes is \['car', 'truck', 'trailer'"),
        (TINY, {"data.train.pipeline.4.classes": ["car"]}, r"pipeline\.4\.classes is \['car'\], "),
        (TINY, {"data.test.pipeline.1.mean": [0, 0, 0]}, r"test\.pipeline\.1\.mean is \[0, 0, 0\], "),
        (
            FAST,
            {"data.val.pipeline": "of tiny"},
            r"data\.val\.pipeline\.1 normalises images that model\.data_preprocessor takes",
        ),
        (
            FAST,
            {"model.data_preprocessor": None},
            r"data\.train\.pipeline\.5 ends with uint8 images, .*data_preprocessor is not set",
        ),
        (
            TINY,
            {"data.train_dataloader": dict(samples_per_gpu=2)},
            r"data\.train_dataloader\.samples_per_gpu is 2, data\.samples_per_gpu is 1",
        ),
        (
            TINY,
            {"model.img_backbone.init_cfg": dict(type="Pretrained", checkpoint="mine.pth")},
            r"^model\.pretrained\.img is 'torchvision://resnet50', .*checkpoint is 'mine\.pth'",
        ),
        (
            TINY,
            {"model.pretrained": "a.pth", "model.img_backbone.pretrained": "mine.pth"},
            r"^model\.pretrained is 'a\.pth', model\.img_backbone\.pretrained is 'mine\.pth'",
        ),
        (
            TINY,
            {"runner": dict(type="IterBasedRunner", max_iters=9), "evaluation.by_epoch": True},
            r"^evaluation\.by_epoch is True, but runner\.type is IterBasedRunner: set it False",
        ),
        (
            TINY,
            {"data.val.benchmark": dict(distances=[1.0, 2.0])},
            r"^data\.val\.benchmark is \{.*\}, data\.train\.benchmark is None: they must be equal",
        ),
        (TINY, {"model.pts_bbox_head.bev_h": 0}, r"^model\.pts_bbox_head\.bev_h is 0: it must be a whole"),
        (TINY, {"model.pts_bbox_head.bev_w": 30.5}, r"bev_w is 30\.5: it must be a whole number"),
        (TINY, {f"{LAYER}.attn_cfgs.0.num_heads": 0}, r"attn_cfgs\.0\.num_heads is 0: "),
        (TINY, {f"{CODER}.max_num": -1}, r"bbox_coder\.max_num is -1: "),
        (TINY, {"data.train.queue_length": None}, r"^data\.train\.queue_length is None: "),
        (TINY, {"data.samples_per_gpu": 0}, r"^data\.samples_per_gpu is 0: "),
        (
            TINY,
            {f"{DECODER_LAYER}.attn_cfgs.0.attn_drop": 0.3},
            r"attn_cfgs\.0\.attn_drop is 0\.3, .*dropout is 0\.1 and counts instead",
        ),
        (TINY, {"auto_scale_lr.base_batch_size": 0}, r"^auto_scale_lr\.base_batch_size is 0: "),
        (TINY, {"dist_params.timeout_minutes": 0}, "timeout_minutes is 0: it must be a positive number"),
        (TINY, {"optimizer_config.grad_clip.max_norm": -1}, "max_norm is -1: it must be a positive number"),
        (TINY, {"runner.max_epochs": 0}, r"^runner\.max_epochs is 0: "),
        (TINY, {"data.train.classes": ["car", "car"]}, r"classes is \['car', 'car'\]: .*each once"),
        (TINY, {"data.train.classes": []}, r"^data\.train\.classes is \[\]: "),
        (TINY, {"custom_hooks": ["{type: EMAHook}"]}, r"^custom_hooks is \['{type: EMAHook}'\]: it must be"),
        (TINY, {"log_config.hooks": ["Text"]}, r"^log_config\.hooks is \['Text'\]: it must be a list of dicts"),
    ],
)  # fmt: skip
def test_values_that_contradict_each_other_are_refused(name, changes, says):
    if changes.get("data.val.pipeline"):
        changes = {"data.val.pipeline": copy.deepcopy(recipe(TINY).data.val.pipeline)}
    with pytest.raises(ValueError, match=says):
        check_config(changed(changes, name))


class Base:
    def __init__(self, width, depth=1, colour=None):
        pass


class HandsOn(Base):
    def __init__(self, height, **kwargs):
        super().__init__(depth=2, **kwargs)


class Looks:
    def __init__(self, height, **options):
        renamed = dict(old_name="height")
        self.sizes = [options[name] for name in renamed if name in options]
        self.kind = options.pop("kind", None)


class Keeps:
    def __init__(self, **kwargs):
        self.kwargs = kwargs


class Calls:
    def __init__(self, **kwargs):
        self.inner = Base(1, **kwargs)


@pytest.mark.parametrize(
    ("cls", "arguments"),
    [
        (Base, {"width", "depth", "colour"}),
        (HandsOn, {"height", "width", "colour"}),
        (Looks, {"height", "old_name", "kind"}),
        (Calls, {"width", "depth", "colour"}),
        (Keeps, None),
    ],
)
def test_arguments_are_followed_through_keyword_arguments(cls, arguments):
    assert arguments_of(cls) == arguments


def test_only_what_is_certain_is_refused_of_own_parts(monkeypatch):
    monkeypatch.setitem(ATTENTION.module_dict, "Keeps", Keeps)
    attention = dict(type="Keeps", anything=dict(type="L1Loss", weight=1))
    problems = config_problems(changed({f"{LAYER}.attn_cfgs.0": attention}))
    assert [key for key, _ in problems] == [f"{LAYER}.attn_cfgs.0.anything.weight"]


@pytest.mark.parametrize(
    "changes",
    [
        {"model.img_backbone.out_indices": 3},
        {"model.img_backbone.init_cfg": [dict(type="Kaiming", layer="Conv2d")]},
        {"model.pts_bbox_head": None},
        {"model": None},
        {"data": None},
        {"lr_config": None, "evaluation": None, "log_config": None, "custom_hooks": None},
    ],
)
def test_values_of_another_kind_are_left_to_those_who_read_them(changes):
    assert config_problems(changed(changes)) == []


def test_a_refusal_names_the_variable_that_was_given():
    cfg = load_config(CONFIGS / TINY, {"img_norm_cfg.gamma": 3})
    with pytest.raises(
        ValueError, match=r"5\.gamma is not .* \(made of --cfg-options img_norm_cfg\.gam"
    ):
        check_config(cfg, ["img_norm_cfg.gamma"])


@pytest.mark.parametrize("section", ["model", "data"])
def test_a_config_must_have_a_network_and_data(section):
    with pytest.raises(ValueError, match=f"^{section} is None: a config must have it"):
        check_config(changed({section: None}))

"""A value given at the top of a config or on the command line reaches all that depends on it."""

import ast
import logging

import pytest
from dummy_task import REPOSITORY
from test_tools import load_tool

from projects.bevformer import compat  # noqa: F401
from projects.bevformer.cli.arguments import parse_options
from projects.bevformer.engine.config import load_config
from projects.bevformer.engine.config_keys import READ_KEYS

from mmdet3d.models import build_model  # isort: skip

CONFIGS = REPOSITORY / "configs"
TINY = CONFIGS / "bevformer" / "bevformer_tiny.py"
BASE = CONFIGS / "bevformer" / "bevformer_base.py"
DEFAULT, DEMO = CONFIGS / "config.py", CONFIGS / "demo.py"
V2 = CONFIGS / "bevformerv2" / "bevformerv2_r50_t1_base_24ep.py"

HEAD = "model.pts_bbox_head"
ENCODER = f"{HEAD}.transformer.encoder"
DECODER = f"{HEAD}.transformer.decoder"
TEMPORAL = f"{ENCODER}.transformerlayers.attn_cfgs.0"
CROSS = f"{ENCODER}.transformerlayers.attn_cfgs.1"
SELF = f"{DECODER}.transformerlayers.attn_cfgs.0"
TO_BEV = f"{DECODER}.transformerlayers.attn_cfgs.1"
TRAIN, TEST = "data.train.pipeline", "data.test.pipeline"
SPLITS = ("train", "val", "test")
RANGE = [-30, -20, -5, 30, 20, 3]


def everywhere(value, *places):
    return dict.fromkeys(places, value)


WIDTHS = {
    **everywhere(128, "model.img_neck.out_channels", f"{HEAD}.in_channels"),
    **everywhere(128, f"{HEAD}.transformer.embed_dims", f"{TEMPORAL}.embed_dims"),
    **everywhere(128, f"{CROSS}.embed_dims", f"{CROSS}.deformable_attention.embed_dims"),
    **everywhere(128, f"{SELF}.embed_dims", f"{TO_BEV}.embed_dims"),
    f"{HEAD}.positional_encoding.num_feats": 64,
    **everywhere(256, *(f"{p}.transformerlayers.feedforward_channels" for p in (ENCODER, DECODER))),
}
RANGES = {
    **everywhere(RANGE, f"{ENCODER}.pc_range", f"{CROSS}.pc_range", f"{HEAD}.bbox_coder.pc_range"),
    **everywhere(RANGE, "model.train_cfg.pts.assigner.pc_range"),
    f"{HEAD}.bbox_coder.post_center_range": [-40, -30, -10, 40, 30, 10],
}
NAMES = ["car", "bus"]
CLASSES = {
    **everywhere(2, f"{HEAD}.num_classes", f"{HEAD}.bbox_coder.num_classes"),
    **everywhere(NAMES, *(f"data.{split}.classes" for split in SPLITS)),
}
STATISTICS = dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], to_rgb=True)
# recipe, variable, value, dotted key -> what it must be
TABLE = [
    (TINY, "queue_length", 5, {"data.train.queue_length": 5}),
    (DEMO, "queue_length", 5, {"data.train.queue_length": 5}),
    (
        TINY, "bev_h", 30,
        {f"{HEAD}.bev_h": 30, f"{HEAD}.positional_encoding.row_num_embed": 30, f"{HEAD}.bev_w": 50},
    ),
    (DEMO, "bev_w", 30, everywhere(30, f"{HEAD}.bev_w", f"{HEAD}.positional_encoding.col_num_embed")),
    (TINY, "samples_per_gpu", 3, {"data.samples_per_gpu": 3}),
    (V2, "workers_per_gpu", 3, {"data.workers_per_gpu": 3}),
    (TINY, "point_cloud_range", RANGE, {**RANGES, f"{TRAIN}.3.point_cloud_range": RANGE}),
    (DEMO, "point_cloud_range", RANGE, {**RANGES, f"{TRAIN}.2.point_cloud_range": RANGE}),
    (V2, "point_cloud_range", RANGE, {**RANGES, f"{HEAD}.bbox_coder.voxel_size": [0.3, 0.2, 8]}),
    (TINY, "embed_dims", 128, WIDTHS),
    (V2, "embed_dims", 128, {**WIDTHS, "model.fcos3d_bbox_head.in_channels": 128}),
    (
        DEFAULT, "num_heads", 4,
        everywhere(4, *(f"{p}.num_heads" for p in (TEMPORAL, f"{CROSS}.deformable_attention", SELF, TO_BEV))),
    ),
    (TINY, "num_query", 20, {f"{HEAD}.num_query": 20, f"{HEAD}.bbox_coder.max_num": 200}),
    (TINY, "max_num", 100, {f"{HEAD}.bbox_coder.max_num": 100, f"{HEAD}.num_query": 900}),
    (TINY, "lr", 1e-4, {"optimizer.lr": 1e-4}),
    (DEMO, "lr", 1e-4, {"optimizer.lr": 1e-4}),
    (
        TINY, "class_names", NAMES,
        {
            **CLASSES, f"{TRAIN}.4.classes": NAMES, f"{TRAIN}.8.class_names": NAMES,
            f"{TEST}.2.transforms.2.class_names": NAMES,
        },
    ),
    (DEFAULT, "class_names", NAMES, {**CLASSES, f"{TRAIN}.4.classes": NAMES}),
    (
        V2, "class_names", NAMES,
        {
            **CLASSES, "model.fcos3d_bbox_head.num_classes": 2,
            "model.fcos3d_bbox_head.fcos3d_loss_cfg.canon_box_sizes":
                [[1.9751819, 4.641267, 1.74352], [2.9139307, 10.725025, 3.2832346]],
        },
    ),
    (BASE, "img_norm_cfg.mean", [1.0, 2.0, 3.0], everywhere([1, 2, 3], f"{TRAIN}.5.mean", f"{TEST}.1.mean")),
    (DEFAULT, "img_norm_cfg", STATISTICS, {f"model.data_preprocessor.{k}": v for k, v in STATISTICS.items()}),
    (
        TINY, "image_scale", 0.25,
        everywhere([0.25], f"{TRAIN}.6.scales", f"{TEST}.2.transforms.0.scales"),
    ),
    (BASE, "image_scale", 0.25, everywhere([0.25], f"{TRAIN}.6.scales", f"{TEST}.2.transforms.0.scales")),
    (DEFAULT, "image_scale", 0.25, {"model.data_preprocessor.scale": 0.25}),
    (V2, "image_size", (1600, 940), {f"{TRAIN}.5.data_aug_conf.crop": (0, 300, 1600, 940)}),
    (DEMO, "image_divisor", 64, everywhere(64, f"{TRAIN}.6.size_divisor", f"{TEST}.3.size_divisor")),
    (
        TINY, "num_levels", 2,
        everywhere(2, "model.img_neck.num_outs", f"{CROSS}.deformable_attention.num_levels"),
    ),
    (DEMO, "num_points", 2, {f"{CROSS}.deformable_attention.num_points": 2}),
    (
        TINY, "dropout", 0.0,
        everywhere(0.0, f"{TEMPORAL}.dropout", f"{SELF}.dropout", f"{ENCODER}.transformerlayers.ffn_dropout"),
    ),
    (
        DEMO, "data_root", "/data/own",
        {
            **everywhere("/data/own", *(f"data.{split}.data_root" for split in SPLITS)),
            "data.val.ann_file": "/data/own/synthetic_infos_temporal_val.pkl",
        },
    ),
    (TINY, "info_prefix", "own", {"data.train.ann_file": "data/nuscenes/own_infos_temporal_train.pkl"}),
    (TINY, "total_epochs", 3, {"total_epochs": 3, "runner.max_epochs": 3}),
    (V2, "total_epochs", 3, {"lr_config.step": [1], "runner.max_epochs": 3}),
    (TINY, "images_on_device", True, {"model.data_preprocessor.scale": 0.5, f"{TRAIN}.1.type": "DrawColorDistortion"}),
    (V2, "frames", (0, -1), everywhere((0, -1), "model.frames", f"{HEAD}.transformer.frames", "data.test.frames")),
]  # fmt: skip


def at(config, dotted):
    for part in dotted.split("."):
        config = config[int(part) if isinstance(config, (list, tuple)) else part]
    return config


def child(tmp_path, text, base=TINY, name="child.py"):
    path = tmp_path / name
    path.write_text(f"_base_ = [{str(base)!r}]\n{text}\n")
    return path


@pytest.mark.parametrize("given", ["command line", "child"])
@pytest.mark.parametrize(
    ("recipe", "name", "value", "expected"), TABLE, ids=[f"{r.stem}-{n}" for r, n, *_ in TABLE]
)
def test_a_value_arrives_wherever_it_counts(tmp_path, recipe, name, value, expected, given):
    first, _, rest = name.partition(".")
    if given == "command line":
        cfg = load_config(recipe, {name: value})
    else:
        cfg = load_config(
            child(tmp_path, f"{first} = {({rest: value}) if rest else value!r}", recipe)
        )
    assert {key: at(cfg, key) for key in expected} == {
        key: pytest.approx(want) if isinstance(want, list) and want[0] == 0.3 else want
        for key, want in expected.items()
    }


@pytest.mark.parametrize("given", ["options", "file"])
def test_variables_that_need_each_other_count_together(tmp_path, given):
    options = {"class_names": ["auto"], "canonical_sizes": {"auto": [2.0, 4.0, 1.5]}}
    if given == "options":
        cfg = load_config(V2, options)
    else:
        path = tmp_path / "child.py"
        lines = [f"{name} = {value!r}\n" for name, value in options.items()]
        path.write_text(f"_base_ = [{str(V2)!r}]\n" + "".join(lines))
        cfg = load_config(path)
    head = cfg.model.fcos3d_bbox_head
    assert (head.num_classes, head.fcos3d_loss_cfg.canon_box_sizes) == (1, [[2.0, 4.0, 1.5]])
    with pytest.raises(ValueError, match="canonical_sizes needs every class of class_names"):
        load_config(V2, {"class_names": ["auto"]})


def test_words_of_the_command_line_have_the_types_of_the_config():
    words = [
        "lr=1e-4", "class_names=[car, traffic cone]", "point_cloud_range=[-30,-20,-5,30,20,3]",
        "margins=(-1,-2,-3,1,2,3)", "load_from=None", "point_cloud_range=[-30,-20,-5,30,20,4]",
    ]  # fmt: skip
    cfg = load_config(TINY, parse_options(words))
    assert cfg.optimizer.lr == 1e-4
    assert cfg.data.val.classes == ["car", "traffic cone"]
    assert at(cfg, f"{HEAD}.bbox_coder.post_center_range") == [-31, -22, -8, 31, 22, 7]
    assert cfg.load_from is None
    assert at(cfg, f"{ENCODER}.pc_range") == [-30, -20, -5, 30, 20, 4]  # the last counts


def test_a_network_of_other_sizes_builds():
    options = {
        "bev_h": 6, "bev_w": 8, "embed_dims": 32, "num_heads": 2, "num_query": 7, "class_names": NAMES,
        "num_levels": 3, "point_cloud_range": RANGE, "model.img_backbone.base_channels": 8,
        "model.img_neck.in_channels": [16, 32], "workers_per_gpu": 0,
    }  # fmt: skip
    head = build_model(load_config(DEMO, options).model).pts_bbox_head
    shapes = {name: tuple(value.shape) for name, value in head.named_parameters()}
    assert shapes["bev_embedding.weight"] == (48, 32)
    assert shapes["positional_encoding.row_embed.weight"] == (6, 16)
    assert shapes["positional_encoding.col_embed.weight"] == (8, 16)
    assert shapes["transformer.encoder.layers.0.ffns.0.layers.0.0.weight"] == (64, 32)
    assert shapes["cls_branches.0.6.weight"] == (2, 32)
    assert shapes["transformer.level_embeds"] == (3, 32)
    assert head.bbox_coder.max_num == 14
    assert head.num_query == 7


# What the published configs and the demo weights have; everything here is derived.
PUBLISHED = {
    (BASE, TINY, CONFIGS / "bevformer" / "bevformer_small.py", V2, DEFAULT): {
        f"{HEAD}.bbox_coder.post_center_range": [-61.2, -61.2, -10.0, 61.2, 61.2, 10.0],
        **everywhere([-51.2, -51.2, -5.0, 51.2, 51.2, 3.0], *list(RANGES)[:4]),
        **everywhere(256, *list(WIDTHS)[:8]),
        f"{HEAD}.positional_encoding.num_feats": 128,
        f"{ENCODER}.transformerlayers.feedforward_channels": 512,
        f"{HEAD}.bbox_coder.max_num": 300,
        f"{HEAD}.num_query": 900,
        f"{HEAD}.num_classes": 10,
        f"{TEMPORAL}": dict(type="TemporalSelfAttention", embed_dims=256, num_levels=1),
        f"{TO_BEV}": dict(type="CustomMSDeformableAttention", embed_dims=256, num_levels=1),
        f"{SELF}.num_heads": 8,
        f"{SELF}.dropout": 0.1,
    },
    (V2,): {
        f"{HEAD}.bbox_coder.voxel_size": [0.512, 0.512, 8],
        f"{TRAIN}.5.data_aug_conf": dict(
            reisze=[640], crop=(0, 260, 1600, 900), H=900, W=1600, rand_flip=False
        ),
        f"{TEST}.4.img_scale": (1600, 640),
    },
    (DEMO,): {
        f"{HEAD}.bbox_coder.max_num": 200,
        f"{TRAIN}.4": dict(type="RandomScaleImageMultiViewImage", scales=[0.5]),
        f"{TRAIN}.6.size_divisor": 16,
        f"{TEST}.4.img_scale": (800, 450),
        f"{TEMPORAL}.dropout": 0.0,
        f"{CROSS}.deformable_attention.num_heads": 4,
        "data.train.ann_file": "data/synthetic/synthetic_infos_temporal_train.pkl",
    },
}


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [(recipe, expected) for recipes, expected in PUBLISHED.items() for recipe in recipes],
    ids=lambda value: getattr(value, "stem", ""),
)
def test_published_values(recipe, expected):
    cfg = load_config(recipe)
    assert {key: at(cfg, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("recipe", "types"),
    [
        (BASE, ["Normalize", "Pad", "MultiScaleFlipAug3D", "DefaultFormatBundle3D", "CustomCollect3D"]),
        (TINY, ["Normalize", "MultiScaleFlipAug3D", "RandomScaleImage", "Pad", "DefaultFormat"]),
    ],
)  # fmt: skip
def test_order_of_the_published_test_pipelines(recipe, types):
    steps = load_config(recipe).data.test.pipeline
    steps = [step.type for step in [*steps[1:], *steps[-1].transforms]]
    assert [step.startswith(kind) for step, kind in zip(steps, types)] == [True] * len(types)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["bev_hh=30"], r"--cfg-options bev_hh: .*did you mean 'bev_h'"),
        (["num_classes=3"], r"--cfg-options num_classes: .*'model\.pts_bbox_head\.num_classes'"),
        (["sample_per_gpu=2"], r"--cfg-options sample_per_gpu: .*'samples_per_gpu'"),
        (["a.b=2"], r"--cfg-options a\.b: nothing reads 'a'"),
        (["optimizer.weight_decey=0"], r"--cfg-options optimizer\.weight_decey: .*'weight_decay'"),
        (["class_names=car"], r"--cfg-options class_names: .*write class_names=\[car\]"),
        (["bev_h=many"], r"--cfg-options bev_h: bev_h is a int, and 'many' is not"),
        (["data=3"], "--cfg-options data: data is a dict, and 3 is not"),
        (["fp16=bfloat16"], "fp16 is 'bfloat16' in .*it must be a dict"),
        (["bev_h.x=3"], r"--cfg-options bev_h\.x does not fit the config: bev_h is 50"),
        (["point_cloud_range.6=3"], r"--cfg-options point_cloud_range\.6 .*no index '6'"),
        (["caffe_statistics.mean=[1,2,3]"], r"--cfg-options caffe_statistics\.mean: nothing in"),
        # Only `img_scale` is made of it, which no step reads.
        (["image_size=(800,450)"], "--cfg-options image_size: nothing in .*has this name or value"),
        (
            ["data.train.queue_length=3", "queue_length=5"],
            r"data\.train\.queue_length and queue_length contradict each other: .* is 3, 5 by queue",
        ),
        (["log_level=TRACE"], "log_level is 'TRACE' in .*: it must be one of INFO"),
        (["mp_start_method=thread"], "mp_start_method is 'thread' in .*: it must be one of fork"),
        (["point_cloud_range=[0,0,0,9]"], "--cfg-options point_cloud_range: .*list index"),
        (
            ["images_on_device=True", "data.train.pipeline.8.keys=[]"],
            r"--cfg-options images_on_device: data\.train\.pipeline .*no index '8'",
        ),
    ],
)
def test_options_without_effect_are_refused_in_one_line(words, says):
    with pytest.raises(ValueError, match=says) as error:
        load_config(TINY, parse_options(words))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("train", []),
        ("eval", ["weights.pth"]),
        ("visualize", ["--ground-truth-only", "--out-dir", "pictures"]),
        ("browse_dataset", ["--out", "pictures"]),
    ],
)
def test_every_tool_refuses_them(monkeypatch, tool, arguments):
    words = ["tool.py", str(TINY), *arguments, "--cfg-options", "lr=1", "--cfg-options", "bev_hh=3"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit, match=r"^error[^\n]*bev_hh: [^\n]*'bev_h'[^\n]*$"):
        load_tool(tool).main()


@pytest.mark.parametrize(
    ("recipe", "name", "says"),
    [
        (V2, "queue_length = 7", "child.py: queue_length differs .*no key that is read has"),
        (
            TINY,
            "queue_length = 7\ndata = dict(train=dict(queue_length=8))",
            r"queue_length differs from .* nothing depends on it: set data\.train\.queue_length$",
        ),
        (TINY, "caffe_statistics = dict(to_rgb=True)", "caffe_statistics differs"),
        (
            DEMO,
            "images_on_device = True",
            r"AssertionError\): line 5 of .*demo\.py: images_on_device",
        ),
    ],
)
def test_variables_of_a_child_without_effect_are_refused(tmp_path, recipe, name, says):
    with pytest.raises(ValueError, match=says):
        load_config(child(tmp_path, name, recipe))


@pytest.fixture(scope="module")
def kept_config(tmp_path_factory):
    """The flat config that a run keeps in its work dir."""
    path = tmp_path_factory.mktemp("work_dir") / "bevformer_tiny.py"
    values = load_config(TINY)._cfg_dict.to_dict()
    path.write_text("".join(f"{name} = {value!r}\n" for name, value in values.items()))
    return path


def test_a_kept_config_names_the_keys_that_count(kept_config):
    places = r"nothing in .* depends on queue_length: set data\.train\.queue_length$"
    with pytest.raises(ValueError, match=places):
        load_config(kept_config, {"queue_length": 5})
    with pytest.raises(ValueError, match=f"set .*{HEAD}.transformer.encoder.pc_range"):
        load_config(kept_config, {"point_cloud_range": RANGE})
    assert load_config(kept_config, {"queue_length": 3}).data.train.queue_length == 3
    cfg = load_config(kept_config, {"lr": 1.0, "samples_per_gpu": 2, "data.train.queue_length": 5})
    assert (cfg.optimizer.lr, cfg.data.samples_per_gpu, cfg.data.train.queue_length) == (1.0, 2, 5)


def test_short_names_count_in_every_config(config_path):
    assert "lr" not in load_config(config_path)
    cfg = load_config(config_path, {"lr": 0.5, "workers_per_gpu": 3})
    assert (cfg.optimizer.lr, cfg.data.workers_per_gpu) == (0.5, 3)


@pytest.mark.parametrize("recipe", [TINY, None])
@pytest.mark.parametrize(
    ("order", "counts"), [(("lr", "optimizer.lr"), 2), (("optimizer.lr", "lr"), 2)]
)
def test_of_a_short_name_and_its_key_the_last_counts(config_path, recipe, order, counts):
    words = [f"{key}={value}" for key, value in zip(order, (1, 2))]
    assert load_config(recipe or config_path, parse_options(words)).optimizer.lr == counts


@pytest.mark.parametrize(
    ("text", "options", "key", "value"),
    [
        ("lr = {{_base_.lr}} * 2", {}, "optimizer.lr", 4e-4),
        ("lr = {{_base_.lr}} * 2", {"lr": 1.0}, "optimizer.lr", 1.0),
        ("bev_h = 30\nbev_w = bev_h", {"bev_h": 20}, f"{HEAD}.bev_w", 20),
        ("queue_length = 7\ndata = dict(train=dict(queue_length=7))", {}, "data.train.queue_length", 7),
        ("queue_length = 1\nqueue_length = 2", {}, "data.train.queue_length", 2),
        ("queue_length, bev_h = 1, 2", {"bev_h": 3}, f"{HEAD}.bev_h", 3),
        ("img_norm_cfg = dict(to_rgb=False)", {}, f"{TRAIN}.5.mean", [123.675, 116.28, 103.53]),
        ("img_norm_cfg = dict(_delete_=True, mean=0)", {}, f"{TRAIN}.5.to_rgb", None),
        ("img_norm_cfg = dict(mean=0)", {"img_norm_cfg.std": 3}, f"{TRAIN}.5.mean", 0),
        ("a = 1", {"point_cloud_range.0": -9}, f"{HEAD}.bbox_coder.post_center_range.0", -19),
        ("total_epochs = 5\nrunner = dict(max_epochs=6)", {}, "runner.max_epochs", 6),
        ("model = dict(pts_bbox_head=dict(bev_h=9))", {"bev_h": 8}, f"{HEAD}.bev_h", 9),
        ("post_center_range = {{_base_.post_center_range}}[:5] + [9]\n"
         "point_cloud_range = [0, 0, 0, 1, 1, 1]", {}, f"{HEAD}.bbox_coder.post_center_range",
         [-10, -10, -5, 11, 11, 9]),
    ],
)  # fmt: skip
def test_which_value_counts(tmp_path, text, options, key, value):
    try:
        held = at(load_config(child(tmp_path, text), options), key)
    except KeyError:
        held = None
    assert held == value


def test_variables_that_need_each_other_count(tmp_path):
    sizes = "model.fcos3d_bbox_head.fcos3d_loss_cfg.canon_box_sizes"
    options = {"class_names": ["boat"], "canonical_sizes.boat": [1, 2, 3]}
    assert at(load_config(V2, options), sizes) == [[1, 2, 3]]
    text = "class_names = ['boat']\ncanonical_sizes = dict(boat=[1, 2, 3])"
    assert at(load_config(child(tmp_path, text, V2)), sizes) == [[1, 2, 3]]


@pytest.mark.parametrize(
    "key",
    [f"{HEAD}.loss_cls.class_weight", "optimizer.paramwise_cfg.custom_keys.backbone.lr_mult"],
)
def test_keys_that_are_read_may_look_like_others(key):
    assert at(load_config(TINY, {key: 0.5}), key) == 0.5


def test_equal_values_and_values_of_single_places_do_not_contradict():
    cfg = load_config(TINY, {"queue_length": 5, "data.train.queue_length": 5})
    assert cfg.data.train.queue_length == 5
    cfg = load_config(TINY, {"data_root": "/x", "data.train.ann_file": "/y/own.pkl"})
    assert (cfg.data.train.ann_file, cfg.data.val.data_root) == ("/y/own.pkl", "/x")


def test_the_nearest_file_counts(tmp_path):
    middle = child(tmp_path, "queue_length = 6\nbev_h = 30", name="middle.py")
    cfg = load_config(child(tmp_path, "queue_length = 7", middle))
    assert (cfg.data.train.queue_length, at(cfg, f"{HEAD}.bev_h")) == (7, 30)


def test_variables_that_chase_each_other_are_refused(tmp_path):
    (tmp_path / "base.py").write_text("a = 0\nb = a\nmodel = dict(b=b)")
    with pytest.raises(ValueError, match=r"a of .*child\.py .* never come to rest"):
        load_config(child(tmp_path, "a = {{_base_.b}} + 1", "base.py"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("total_epoch = 3", "nothing reads total_epoch, did you mean total_epochs?"),
        ("optimiser = dict(lr=3)", "nothing reads optimiser, did you mean optimizer?"),
        ("bev_h_ = 3", "nothing reads bev_h_, did you mean bev_h?"),
        ("dist_params = dict(backend='gloo')\nown = 3\nmore = [own]", None),
        ("total_epoch = 3\nrunner = dict(max_epochs=total_epoch)", None),
    ],
)
def test_names_that_look_like_keys_are_warned_of(tmp_path, text, says, caplog, monkeypatch):
    path = child(tmp_path, text)
    with caplog.at_level(logging.WARNING):
        load_config(path)
        lines = [f"config {path}: {says}"] if says else []
        assert [record.getMessage() for record in caplog.records] == lines
        monkeypatch.setenv("RANK", "1")
        load_config(path)
        assert len(caplog.records) == len(lines)


def test_a_changed_variable_of_a_kept_config_is_warned_of(kept_config, tmp_path, caplog):
    path = tmp_path / "kept.py"
    path.write_text(kept_config.read_text().replace("\nqueue_length = 3", "\nqueue_length = 5"))
    load_config(path)
    (record,) = caplog.records
    assert record.getMessage().endswith("queue_length = 5; data.train.queue_length is 3")


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.py")), ids=lambda path: path.stem)
def test_no_recipe_is_warned_of(path, caplog):
    if path.parent.name != "_base_":
        load_config(path)
        assert not caplog.records


def test_the_list_of_keys_is_that_of_the_code():
    """Names that are read from `cfg`; mmdet's setup_multi_processes reads the others."""
    read = set()
    for folder in ("projects/bevformer/engine", "projects/bevformer/doctor", "tools"):
        for path in (REPOSITORY / folder).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                read |= names_read(node)
    of_mmcv = {"get", "pretty_text", "_cfg_dict", "filename"}
    assert read - of_mmcv == READ_KEYS - {"mp_start_method", "opencv_num_threads"}


def names_read(node):
    """`{"x"}` for `cfg.x` and `cfg.get("x")`; `settings` is a copy of the config."""
    called = getattr(node, "func", None)
    if isinstance(called, ast.Attribute) and is_config(called.value):
        return {argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant)}
    return {node.attr} if isinstance(node, ast.Attribute) and is_config(node.value) else set()


def is_config(node):
    return isinstance(node, ast.Name) and node.id in ("cfg", "settings")

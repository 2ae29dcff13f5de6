"""Parts of the user: what custom_imports, plugin and plugin_dir bring in, and names that are nowhere."""

import logging
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from dummy_task import REPOSITORY, DummyDetector
from mmcv import Config
from mmcv.runner import HOOKS, build_optimizer
from mmcv.utils import Registry
from mmdet.core.bbox.match_costs.builder import MATCH_COST, build_match_cost
from mmdet.models.builder import DETECTORS, LOSSES, build_loss
from mmdet3d.datasets.builder import PIPELINES, build_dataset

from projects.bevformer import published
from projects.bevformer.engine import plugins
from projects.bevformer.engine.config import config_errors, load_config
from projects.bevformer.engine.original_names import SUBSTITUTES
from projects.bevformer.engine.plugins import import_parts
from projects.bevformer.engine.runner import RUNNERS
from projects.bevformer.model.detection.match_costs import BBox3DL1Cost

COST = """
from mmdet.core.bbox.match_costs.builder import MATCH_COST

@MATCH_COST.register_module({force})
class BBox3DL1Cost:
    def __init__(self, weight=1.0):
        self.source = {source!r}
"""


@pytest.fixture(autouse=True)
def _as_before(monkeypatch, tmp_path):
    """Modules, search path and registries are as before the test."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(plugins, "_registered_by", {})
    known = set(sys.modules)
    yield
    import_parts(Config({}))
    for name in set(sys.modules) - known:
        module = sys.modules[name]
        if str(tmp_path) in f"{module.__dict__.get('__file__')} {module.__dict__.get('__path__')}":
            del sys.modules[name]
    for name in ("OwnLoss", "LogCoshLoss"):
        LOSSES.module_dict.pop(name, None)


@pytest.fixture
def write(tmp_path):
    """Write files below the folder of the test, each with an __init__.py beside it."""

    def write(**files):
        for name, text in files.items():
            path = (tmp_path / name.replace("__", "/")).with_suffix(".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            if path.parent != tmp_path:
                (path.parent / "__init__.py").touch()

    return write


def config(tmp_path, **keys):
    return Config(keys, cfg_text="text", filename=str(tmp_path / "configs" / "own.py"))


def source_of_cost():
    return getattr(build_match_cost(dict(type="BBox3DL1Cost")), "source", "ours")


@pytest.mark.parametrize(
    "keys",
    [
        dict(custom_imports=dict(imports=["parts_a.costs"])),
        dict(custom_imports=dict(imports="parts_a.costs")),
        dict(plugin=True, plugin_dir="parts_a/costs/"),
        dict(plugin=["parts_a/costs"]),
        dict(plugin="parts_a.costs"),
    ],
    ids=str,
)
@pytest.mark.parametrize("force", ["", "force=True"])
def test_a_part_of_the_user_replaces_ours_and_one_line_says_so(
    tmp_path, write, caplog, keys, force
):
    write(parts_a__costs=COST.format(source="a", force=force))
    import_parts(config(tmp_path, **keys))
    assert source_of_cost() == "a"
    (line,) = [r.getMessage() for r in caplog.records]
    assert re.fullmatch(
        r"\w+ parts_a\S+ replaces for this run: BBox3DL1Cost of projects\.bevformer\.\S+", line
    )
    assert plugins.notices() == [line]


@pytest.mark.parametrize("where", ["absolute", "../parts_a"])
def test_folders_by_path(tmp_path, write, where):
    write(parts_a__more=COST.format(source="a", force=""))
    (tmp_path / "parts_a" / "__init__.py").write_text("from parts_a import more")
    (tmp_path / "configs").mkdir()
    folder = str(tmp_path / "parts_a") if where == "absolute" else where
    import_parts(config(tmp_path, plugin=True, plugin_dir=folder))
    assert source_of_cost() == "a"
    for missing in (str(tmp_path / "json"), "../json"):  # not the module of that name
        with pytest.raises(ValueError, match=f"there is no folder {missing}"):
            import_parts(config(tmp_path, plugin=True, plugin_dir=missing))


def test_a_folder_that_another_module_hides_is_refused(tmp_path, write):
    write(one__parts_a__costs="", two__parts_a__costs="", two__json__more="")
    import_parts(config(tmp_path, plugin=True, plugin_dir=str(tmp_path / "one" / "parts_a")))
    for name in ("parts_a", "json"):
        cfg = config(tmp_path, plugin=True, plugin_dir=str(tmp_path / "two" / name))
        with pytest.raises(ValueError, match=rf"ImportError: {name} is also /.*Python finds first"):
            import_parts(cfg)


def test_the_next_config_has_its_own_parts_only(tmp_path, write):
    write(parts_a__costs=COST.format(source="a", force=""))
    write(parts_b__costs=COST.format(source="b", force=""))
    one, two, both, none = (
        config(tmp_path, custom_imports=dict(imports=imports))
        for imports in (
            ["parts_a.costs"],
            ["parts_b.costs"],
            ["parts_b.costs", "parts_a.costs"],
            [],
        )
    )
    for cfg, source in [
        (one, "a"),
        (none, "ours"),
        (two, "b"),
        (both, "a"),
        (two, "b"),
        (one, "a"),
    ]:
        import_parts(cfg)
        assert source_of_cost() == source
        assert ("BBox3DL1Cost" in published.REPLACED_TYPES) == (cfg is not none)
    import_parts(none)
    assert MATCH_COST.get("BBox3DL1Cost") is BBox3DL1Cost


def test_own_parts_are_not_translated_to_ours(tmp_path, write):
    """`FocalLoss` becomes TorchFocalLoss when a network is built, unless it is the user's."""
    write(
        parts_a="from mmdet.models.builder import LOSSES\n@LOSSES.register_module()\nclass FocalLoss: pass"
    )

    def built():
        part = dict(loss=dict(type="FocalLoss"))
        return published.translate(part, lambda p: dict(p, type="Ours"), logging.getLogger())

    assert built() == dict(loss=dict(type="Ours"))
    import_parts(config(tmp_path, custom_imports=dict(imports=["parts_a"])))
    assert built() == dict(loss=dict(type="FocalLoss"))


def test_a_plugin_folder_of_a_fork_is_imported_after_ours(tmp_path, write, monkeypatch):
    """In the layout of the original: beside `projects/configs`, and not in the working directory."""
    write(projects__mmdet3d_plugin__core__cost=COST.format(source="fork", force="force=True"))
    init = tmp_path / "projects" / "mmdet3d_plugin" / "__init__.py"
    init.write_text("from projects.mmdet3d_plugin.core.cost import BBox3DL1Cost")
    keys = dict(plugin=True, plugin_dir="projects/mmdet3d_plugin/")
    path = tmp_path / "projects" / "configs" / "fork" / "tiny.py"
    import_parts(Config(keys, cfg_text="text", filename=str(path)))
    assert source_of_cost() == "fork"


def test_a_folder_of_the_original_that_does_not_exist_is_ours(tmp_path, caplog):
    for keys in (dict(plugin=True, plugin_dir="elsewhere/mmdet3d_plugin/"), dict(plugin=True)):
        import_parts(config(tmp_path, **keys))
    import_parts(config(tmp_path, plugin=False, plugin_dir="elsewhere/other"))
    assert not caplog.records


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (dict(plugin=["not_there"]), r"plugin_dir not_there .*PYTHONPATH"),
        (dict(plugin=True, plugin_dir="not/there/"), r"plugin_dir not/there/ cannot be imported"),
        (dict(plugin=["empty_folder"]), r"there is no __init__\.py in .*empty_folder"),
        (dict(custom_imports=dict(imports=["parts_bad"])), r"NameError: .*, /.*parts_bad\.py:2\)"),
        (dict(custom_imports=dict(imports=["parts_syntax"])), r"parts_syntax\.py, line 1"),
        (dict(custom_imports=dict(imports=["parts_twice"])), "OwnLoss is already registered"),
        (
            dict(custom_imports=dict(imports=["parts_fork"])),
            r"'projects\.mmdet3d_plugin', .*parts_fork\.py:1\): the modules of the original are not",
        ),
        (dict(plugin=3), "custom_imports.imports take a module, a folder or a list, not 3"),
        (dict(custom_imports=dict(imports=[], allow=True)), "custom_imports has no 'allow'"),
        (
            dict(plugin=True, plugin_dir="fork/mmdet3d_plugin"),
            r"No module named 'detectron0', .*/mmdet3d_plugin/__init__.py:1\): set plugin=False",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_imported_is_one_line_with_reason_and_file(tmp_path, write, keys, says):
    own = "@LOSSES.register_module()\nclass OwnLoss: pass\n"
    write(
        parts_bad="x = 1\nundefined_name",
        parts_syntax="x = (",
        parts_twice="from mmdet.models.builder import LOSSES\n" + own + own,
        parts_fork="from projects.mmdet3d_plugin.core.bbox import util",
    )
    (tmp_path / "empty_folder").mkdir()
    (tmp_path / "fork" / "mmdet3d_plugin").mkdir(parents=True)
    (tmp_path / "fork" / "mmdet3d_plugin" / "__init__.py").write_text("import detectron0")
    with pytest.raises(ValueError, match=says):
        import_parts(config(tmp_path, **keys))
    assert "OwnLoss" not in LOSSES.module_dict
    assert Registry._register_module.__name__ == "_register_module"


def test_missing_modules_may_be_allowed(tmp_path, write, caplog):
    write(parts_bad="undefined_name", parts_a__costs=COST.format(source="a", force=""))
    allowed = dict(imports=["not_there", "parts_a.costs"], allow_failed_imports=True)
    import_parts(config(tmp_path, custom_imports=allowed))
    assert source_of_cost() == "a"
    assert "custom_imports not_there cannot be imported" in caplog.records[0].getMessage()
    with pytest.raises(ValueError, match="NameError"):
        import_parts(config(tmp_path, custom_imports=dict(allowed, imports=["parts_bad"])))


def message_of(build, part):
    with pytest.raises(ValueError, match="is not in the") as caught, config_errors("model"):
        build(part)
    return str(caught.value)


def test_a_part_in_no_registry_is_explained(tmp_path):
    import_parts(config(tmp_path, plugin=True, plugin_dir="fork/mmdet3d_plugin/"))
    for build, name in ((DETECTORS.build, "TrackingDetector"), (build_dataset, "OwnCarDataset")):
        message = message_of(build, dict(type=name))
        assert 'custom_imports = dict(imports=["your.module"])' in message
        assert "plugin_dir fork/mmdet3d_plugin/ does not exist, this project's plugin st" in message
    import_parts(config(tmp_path))
    assert "plugin_dir" not in message_of(build_loss, dict(type="NoSuchLoss"))
    assert message_of(build_loss, dict(type="FocalLos")).endswith("did you mean 'FocalLoss'?")


@pytest.mark.parametrize("name", sorted(SUBSTITUTES))
def test_names_of_the_original_that_are_not_here_have_a_substitute(name):
    message = message_of(DETECTORS.build, dict(type=name))
    assert SUBSTITUTES[name] in message
    assert "custom_imports" not in message


def test_the_page_has_every_name_of_the_original():
    page = (REPOSITORY / "docs" / "checkpoint_compatibility.md").read_text()
    section = page.split("### Names of the original")[1].split("\n### ")[0]
    built = ["BEVFormer_fp16", "EpochBasedRunner_video", "TransferWeight", "GradChecker", "AdamW2"]
    for name in [*built, "CustomDefaultFormatBundle3D", *SUBSTITUTES]:
        assert f"`{name}`" in section


def test_names_that_are_the_same_thing():
    assert DETECTORS.get("BEVFormer_fp16") is DETECTORS.get("BEVFormer")
    model, logger = torch.nn.Linear(1, 1), logging.getLogger()
    model.train_step = None
    video = RUNNERS["EpochBasedRunner_video"](model, logger=logger, keys=["img"], max_epochs=3)
    assert isinstance(video, RUNNERS["EpochBasedRunner"])
    assert video.max_epochs == 3
    assert isinstance(build_optimizer(model, dict(type="AdamW2", lr=0.1)), torch.optim.AdamW)
    bundle = PIPELINES.build(dict(type="CustomDefaultFormatBundle3D", class_names=["car"]))
    masks = bundle(dict(gt_map_masks=torch.ones(2, 3).numpy()))["gt_map_masks"]
    assert masks.stack
    assert masks.data.shape == (2, 3)


def test_hooks_of_the_original(caplog):
    transfer = HOOKS.build(dict(type="TransferWeight", every_n_inters=1))
    checker = HOOKS.build(dict(type="GradChecker"))
    detector = DummyDetector()
    model = SimpleNamespace(module=detector)
    runner = SimpleNamespace(model=model, logger=logging.getLogger("mmdet3d"))
    detector.head(torch.ones(1, 4)).sum().backward()
    detector.norm.requires_grad_(False)
    with caplog.at_level(logging.INFO, "mmdet3d"):
        transfer.before_run(runner)
        checker.before_run(runner)
        for _ in range(2):
            checker.after_train_iter(runner)
    first, *rest = [record.getMessage() for record in caplog.records]
    assert "nothing to transfer" in first
    names = ("img_backbone.weight", "img_backbone.bias")
    assert rest == [f"GradChecker: {name} gets no gradient" for name in names]


def test_the_example_of_the_page(tmp_path, write):
    page = (REPOSITORY / "docs" / "own_parts.md").read_text()
    part, text = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    write(my_parts__losses=part)
    base = REPOSITORY / "configs" / "bevformer" / "bevformer_tiny.py"
    path = tmp_path / "my_config.py"
    path.write_text(text.replace("configs/bevformer/bevformer_tiny.py", str(base)))
    cfg = load_config(path)
    loss = build_loss(cfg.model.pts_bbox_head.loss_bbox)
    pred = torch.tensor([[0.0, 2.0]], requires_grad=True)
    value = loss(pred, torch.zeros(1, 2), torch.tensor([[1.0, 0.5]]), avg_factor=2.0)
    expected = 0.25 * 0.5 * torch.log(torch.cosh(torch.tensor(2.0))) / 2
    torch.testing.assert_close(value, expected)

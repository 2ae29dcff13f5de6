import gc
import sys

import pytest
from mmdet.models import HEADS, build_head, build_neck
from tiny_bevformer import head_config

from projects.bevformer.engine.config import (
    config_errors,
    load_config,
    resolve_work_dir,
    runner_settings,
)


def test_options_override_and_may_add_keys(config_path):
    cfg = load_config(
        config_path,
        {"optimizer.lr": 0.5, "log_config.hooks.0.interval": 3, "fp16.dtype": "bfloat16"},
    )
    assert cfg.optimizer.lr == 0.5
    assert cfg.log_config.hooks[0].interval == 3
    assert cfg.fp16.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("key", "hint"), [("optimizerr.lr", "optimizer"), ("optimizer.weight_decey", "weight_decay")]
)
def test_misspelt_options_are_refused(config_path, key, hint):
    with pytest.raises(ValueError, match=f"did you mean '{hint}'"):
        load_config(config_path, {key: 1})


def test_data_root_replaces_that_of_all_splits(config_path, tmp_path):
    cfg = load_config(config_path, data_root=tmp_path)
    assert [cfg.data[split].data_root for split in ("train", "val", "test")] == [str(tmp_path)] * 3
    with pytest.raises(FileNotFoundError, match="--data-root .*none is not a folder"):
        load_config(config_path, data_root=tmp_path / "none")


def test_info_files_are_found_below_another_data_root(config_path, tmp_path):
    options = {"data.val.data_root": "data/old/", "data.val.ann_file": "data/old/infos/val.pkl"}

    def ann_file():
        return load_config(config_path, options, data_root=tmp_path / "new").data.val.ann_file

    (tmp_path / "new" / "infos").mkdir(parents=True)
    assert ann_file() == "data/old/infos/val.pkl"  # neither here nor there
    (tmp_path / "new" / "infos" / "val.pkl").touch()
    assert ann_file() == str(tmp_path / "new" / "infos" / "val.pkl")
    named = tmp_path / "named.pkl"
    named.touch()
    options["data.val.ann_file"] = str(named)
    assert ann_file() == str(named)


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"num_querry": 7}, "'num_querry', did you mean 'num_query'"),
        ({"type": "BEVFormerHed"}, "did you mean 'BEVFormerHead'"),
        ({"loss_cls": {"type": "FocalLoss", "use_sigmoid": True, "gama": 2.0}}, "mean 'gamma'"),
        ({"xyz": 1}, r"'xyz' \(it takes num_classes, in_channels, "),
        ({"cod_size": 10}, "'cod_size', did you mean 'code_size'"),
    ],
)
def test_unknown_names_are_reported_with_a_suggestion(section, says):
    config = {**head_config(), "type": "BEVFormerHead", **section}
    with pytest.raises(ValueError, match="config section `model`.*" + says), config_errors("model"):
        build_head(config)


def test_an_unknown_argument_of_a_class_under_another_name(monkeypatch):
    monkeypatch.setitem(HEADS.module_dict, "own_head", type("OwnHead", (), {}))
    with pytest.raises(ValueError, match="OwnHead"), config_errors("model"):
        build_head({"type": "own_head", "width": 3})


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"in_channels": 8}, r"FPN: fails at `assert isinstance\(in_channels, list\)`"),
        ({"num_outs": 1}, r"FPN: fails at `assert num_outs >= self\.num_ins"),
    ],
)
def test_assertions_of_mmdet_are_config_errors_too(section, says):
    config = {"type": "FPN", "in_channels": [8, 16], "out_channels": 4, "num_outs": 2, **section}
    with pytest.raises(ValueError, match="config section `model`: " + says), config_errors("model"):
        build_neck(config)


def test_unreadable_configs_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.py does not exist"):
        load_config(tmp_path / "none.py")
    (tmp_path / "README.md").touch()
    with pytest.raises(ValueError, match=r"README\.md is not a config: it must end in \.py"):
        load_config(tmp_path / "README.md")
    path = tmp_path / "broken.py"
    path.write_text("a = (")
    with pytest.raises(ValueError, match=r"broken\.py cannot be read"):
        load_config(path)
    path.write_text("custom_imports = dict(imports=['no_such_module'])")
    with pytest.raises(ValueError, match="no_such_module"):
        load_config(path)
    path.write_text("points = 3\nhalf = points[0]")
    with pytest.raises(
        ValueError, match=r"broken\.py cannot be read \(TypeError\): .*subscriptable"
    ):
        load_config(path)
    path.write_text("_base_ = ['./missing_base.py']")
    with pytest.raises(FileNotFoundError, match="missing_base"):
        load_config(path)
    # mmcv leaves its temporary files to the garbage collector when a config fails; collected while a
    # later test parses a config, their complaints upset Python 3.11's parser.
    gc.collect()


def test_plugin_dir_is_imported(tmp_path, monkeypatch):
    package = tmp_path / "my_plugin"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    path = tmp_path / "config.py"
    path.write_text("plugin = True\nplugin_dir = 'my_plugin/'")
    load_config(path)
    assert sys.modules.pop("my_plugin").__file__ == str(package / "__init__.py")
    path.write_text("plugin = True\nplugin_dir = 'not_there/'")
    with pytest.raises(ValueError, match="plugin_dir not_there"):
        load_config(path)


def test_work_dir_comes_from_flag_then_config_then_config_name(tmp_path, config_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = load_config(config_path)
    assert resolve_work_dir(cfg, config_path, tmp_path / "flag") == tmp_path / "flag"
    assert cfg.work_dir == str(tmp_path / "flag")
    cfg.work_dir = str(tmp_path / "from_config")
    assert resolve_work_dir(cfg, config_path) == tmp_path / "from_config"
    cfg.work_dir = None
    assert resolve_work_dir(cfg, config_path).resolve() == tmp_path / "work_dirs" / "dummy"
    assert list((tmp_path / "flag").iterdir()) == []


def test_unwritable_work_dir(tmp_path, config_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="work dir .*file/a cannot be written"):
        resolve_work_dir(load_config(config_path), config_path, tmp_path / "file" / "a")


def test_runner_settings(config_path):
    cfg = load_config(config_path)
    assert runner_settings(cfg) == {"type": "EpochBasedRunner", "max_epochs": 2}
    cfg.runner = None
    assert runner_settings(cfg) == {"type": "EpochBasedRunner", "max_epochs": 2}
    cfg.runner = {"type": "EpochBasedRunner", "max_epochs": 3}
    with pytest.raises(ValueError, match=r"total_epochs = 2 and runner\.max_epochs = 3"):
        runner_settings(cfg)
    cfg.runner = {"type": "IterBasedRunner", "max_iters": 3}
    assert runner_settings(cfg).max_iters == 3
    cfg.runner.max_epochs = 2
    with pytest.raises(
        ValueError, match=r"runner\.max_iters = 3 and runner\.max_epochs = 2 contradict"
    ):
        runner_settings(cfg)
    cfg.runner.max_epochs = None
    assert runner_settings(cfg) == {"type": "IterBasedRunner", "max_iters": 3}
    cfg.runner = cfg.total_epochs = None
    with pytest.raises(ValueError, match="does not say how long to train"):
        runner_settings(cfg)


def test_max_iters_must_be_positive(config_path):
    cfg = load_config(config_path)
    assert runner_settings(cfg, 1) == {"type": "IterBasedRunner", "max_iters": 1}
    with pytest.raises(ValueError, match="--max-iters is 0: it must be at least 1"):
        runner_settings(cfg, 0)

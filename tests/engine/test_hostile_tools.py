"""Tools on files of other people, in this process: nothing runs, and one line says what is wrong."""

import importlib.util
import json

import pytest
import yaml
from dummy_task import REPOSITORY, DummyDetector
from hostile_files import bounded_memory, hostile_pickles, hostile_weights
from mmdet.models import DETECTORS

from projects.bevformer.doctor.machine import Environment
from projects.bevformer.engine.checkpoint import save_checkpoint, to_plain
from projects.bevformer.engine.config import load_config

WEIGHTS = hostile_weights("ran")
SOME = ("runs in meta", "a bit flipped", "compressed", "memo of 16 GiB", "TorchScript")
TOOLS = {
    "train, load_from": ("train", "{config} --work-dir out --cfg-options load_from=a.pth"),
    "train, resume_from": ("train", "{config} --work-dir out --resume-from a.pth"),
    "train, init_cfg": ("train", "{config} --work-dir out --cfg-options {init}"),
    "eval": ("eval", "{config} a.pth --work-dir out"),
    "inspect": ("inspect_checkpoint", "a.pth"),
    "inspect with a config": ("inspect_checkpoint", "a.pth {config}"),
    "publish": ("publish_model", "a.pth out/b.pth"),
    "publish safetensors": ("publish_model", "a.pth out/b.safetensors"),
    "doctor": ("doctor", "--config {config} --cfg-options load_from=a.pth {files}"),
}
CONFIG_TOOLS = {
    "train": "{config} --work-dir out",
    "eval": "{config} good.pth --work-dir out",
    "inspect_checkpoint": "good.pth {config}",
    "doctor": "--config {config}",
    "browse_dataset": "{config} --out out",
    "visualize": "{config} --ground-truth-only --out-dir out",
}


@DETECTORS.register_module()
class StartedDetector(DummyDetector):
    """One that `init_cfg` can give a file."""

    def __init__(self, init_cfg=None, **options):
        super().__init__(**options)
        self.init_cfg = init_cfg


@pytest.fixture
def tool(monkeypatch, quick, tmp_path, capsys):
    """Run a tool in a folder of its own; returns its error, of the doctor what is broken, or None."""
    monkeypatch.chdir(tmp_path)

    def tool(name, arguments):
        spec = importlib.util.spec_from_file_location(
            f"tool_{name}", REPOSITORY / "tools" / f"{name}.py"
        )
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if name == "doctor":
            monkeypatch.setattr(module, "inspect_environment", lambda: Environment((3, 11, 7)))
            monkeypatch.setattr(module, "check_environment", lambda environment: [])
        device = ["--device", "cpu"] if name in ("train", "eval") else []
        monkeypatch.setattr("sys.argv", [f"{name}.py", *arguments.split(), *device])
        capsys.readouterr()
        line = None
        try:
            module.main()
        except SystemExit as stopped:
            line = stopped.code
        printed = capsys.readouterr().out.splitlines()
        broken = [line for line in printed if line.startswith("[broken]")]
        return "; ".join(broken) if name == "doctor" else line

    return tool


def refused_weights(tool, config_path, tmp_path, how, name):
    (tmp_path / "a.pth").write_bytes(WEIGHTS[name])
    config_path.write_text(config_path.read_text().replace("DummyDetector", "StartedDetector"))
    init = "model.init_cfg.type=Pretrained model.init_cfg.checkpoint=a.pth"
    files = " ".join(f"data.{split}.ann_file=none.pkl" for split in ("train", "val", "test"))
    program, arguments = TOOLS[how]
    with bounded_memory(len(WEIGHTS[name]) + 2**22):
        line = tool(program, arguments.format(config=config_path, init=init, files=files))
    assert "checkpoint a.pth" in line
    assert "\n" not in line
    assert "weights_only" not in line
    files = {path.name for path in tmp_path.rglob("*") if path.suffix != ".log"}
    assert "ran" not in files
    assert not {file for file in files if file.startswith("b.") or file.startswith("epoch")}


@pytest.mark.parametrize("how", TOOLS)
@pytest.mark.parametrize("name", SOME)
def test_weights_through_the_tools(tool, config_path, tmp_path, how, name):
    refused_weights(tool, config_path, tmp_path, how, name)


@pytest.mark.long
@pytest.mark.parametrize("how", TOOLS)
@pytest.mark.parametrize("name", [name for name in WEIGHTS if name not in SOME])
def test_all_weights_through_the_tools(tool, config_path, tmp_path, how, name):
    refused_weights(tool, config_path, tmp_path, how, name)


CONFIGS = {
    "runs a function": (
        "!!python/object/apply:os.mkdir [ran]",
        r"the tag !!python/object/apply:os",
    ),
    "a name": ("!!python/name:os.mkdir", r"the tag !!python/name:os\.mkdir"),
    "new": ("!!python/object/new:os.mkdir [ran]", r"the tag !!python/object/new:os\.mkdir"),
    "module": ("!!python/module:antigravity", r"the tag !!python/module:antigravity"),
    "deep in it": ("{a: [1, {b: !!python/tuple [1]}]}", r"the tag !!python/tuple"),
}
LAUGHS = "".join(f"\n  b{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60))
MERGED = "a: &a0 {x: 1}" + "".join(
    f"\nb{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, 60)
)


@pytest.mark.parametrize("name", CONFIG_TOOLS)
@pytest.mark.parametrize(
    ("text", "says"),
    [CONFIGS["runs a function"], (f"\n  b0: &a0 [1]{LAUGHS}", "its aliases stand for more than")],
    ids=["runs", "aliases"],
)
def test_yaml_through_the_tools(tool, config_path, tmp_path, name, text, says):
    save_checkpoint(tmp_path / "good.pth", DummyDetector())
    path = tmp_path / "hostile.yaml"
    path.write_text(f"_base_: {config_path.name}\nmodel: {text}\n")
    with bounded_memory(2**20):
        line = tool(name, CONFIG_TOOLS[name].format(config=path))
    assert says in line
    assert "hostile.yaml" in line
    assert "\n" not in line
    assert {path.name for path in tmp_path.iterdir()} <= {"dummy.py", "good.pth", path.name}


@pytest.mark.parametrize("name", CONFIGS)
def test_tags_of_python_are_named(config_path, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    text, says = CONFIGS[name]
    (tmp_path / "a.yml").write_text(f"_base_: {config_path.name}\nx: {text}\n")
    with pytest.raises(ValueError, match=rf"a\.yml cannot be read .*line 2 has {says}.*which runs"):
        load_config(tmp_path / "a.yml")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("suffix", "text", "says"),
    [
        (".json", "[" * 100_000, "RecursionError|too many nested"),
        (".json", "[1]", "no keys with values"),
        (".json", "", "Expecting value"),
        (".json", '{"x": ' + "9" * 5000 + "}", "Exceeds the limit"),
        (".yaml", "- 1", "no keys with values"),
        (".yaml", "", "no keys with values"),
        (".yaml", "x: " + "[" * 500, "recursion"),
        (".yaml", "x: &x [*x]", "aliases stand for more"),
        (".yaml", MERGED, "aliases stand for more"),
    ],
)
def test_other_configs_that_are_not_plain(tmp_path, suffix, text, says):
    path = tmp_path / f"a{suffix}"
    path.write_text(text)
    with bounded_memory(len(text)), pytest.raises(ValueError, match=rf"a{suffix}.*({says})"):
        load_config(path)


INFO_TOOLS = {
    "train": "{config} --work-dir out {options}",
    "eval": "{config} good.pth --work-dir out {options}",
    "doctor": "--config {config} {options}",
    "browse_dataset": "{config} --out out {options}",
    "visualize": "{config} --ground-truth-only --out-dir out {options}",
}


@pytest.mark.parametrize("tool_name", INFO_TOOLS)
@pytest.mark.parametrize("name", ["runs in a list, protocol 4", "memo of 16 GiB"])
def test_info_files_through_the_tools(tool, tmp_path, tool_name, name):
    content = hostile_pickles("ran")[name]
    (tmp_path / "a.pkl").write_bytes(content)
    (tmp_path / "data").mkdir()
    options = "--data-root data --cfg-options load_from=None " + " ".join(
        f"data.{split}.ann_file=a.pkl" for split in ("train", "val", "test")
    )
    arguments = INFO_TOOLS[tool_name].format(
        config=REPOSITORY / "configs" / "demo.py", options=options
    )
    with bounded_memory(2**23):
        line = tool(tool_name, arguments)
    assert "a.pkl is not read: it names" in line or "a.pkl is not an info file" in line
    assert "\n" not in line
    assert {path.name for path in tmp_path.iterdir()} <= {"a.pkl", "data", "out"}


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_a_config_of_plain_values_trains_and_scores(
    tool, config_path, tmp_path, monkeypatch, quick, suffix, capsys
):
    values = to_plain(load_config(config_path)._cfg_dict.to_dict())
    path = tmp_path / f"plain{suffix}"
    path.write_text(json.dumps(values) if suffix == ".json" else yaml.safe_dump(values))
    for name, arguments in (
        ("train", f"{path} --seed 0 --no-validate"),
        ("eval", f"{path} work/epoch_2.pth"),
        ("inspect_checkpoint", f"work/epoch_2.pth {path}"),
    ):
        assert tool(name, arguments) is None
    assert (tmp_path / "work" / "eval_epoch_2" / "results_nusc.json").exists()


@pytest.mark.parametrize(
    "target", ["out/b.safetensors", "out/b.pth --safetensors", "out/b.pth --safetensors --half"]
)
def test_published_safetensors_can_be_used_as_checkpoints_are(tool, config_path, tmp_path, target):
    save_checkpoint(tmp_path / "good.pth", DummyDetector())
    path = target.split()[0]
    assert tool("publish_model", f"good.pth {target}") is None
    assert (tmp_path / path).read_bytes()[8:9] == b"{"
    assert tool("eval", f"{config_path} {path} --work-dir work") is None
    assert tool("inspect_checkpoint", f"{path} {config_path}") is None
    options = f"--no-validate --work-dir trained --cfg-options load_from={path}"
    assert tool("train", f"{config_path} {options}") is None
    assert "is the checkpoint" in tool("publish_model", f"{path} {path}")

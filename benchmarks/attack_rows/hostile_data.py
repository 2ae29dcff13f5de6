"""Configs, info files and metas that execute or point elsewhere, given to every tool."""

import gzip
import json
import os
import pickle

import torch

from attack_rows import payloads
from attack_rows.hostile_files import MEMORY, SAFE, canary_of, expect_harmless
from attack_rows.table import end_of, expect, expect_refusal, row
from attack_rows.world import load

_TAGS = {
    "apply": "!!python/object/apply:os.system ['touch {canary}']",
    "new": "!!python/object/new:os.system ['touch {canary}']",
    "long_tag": "!<tag:yaml.org,2002:python/object/apply:os.system> ['touch {canary}']",
    "subprocess": "!!python/object/apply:subprocess.check_call [['touch', '{canary}']]",
    "eval": "!!python/object/apply:eval [\"__import__('os').system('touch {canary}')\"]",
    "module": "!!python/module:os",
    "name": "!!python/name:os.system",
}


def _configs(world, text):
    """Configs that are not .py and hold a tag."""
    base = world.file("base.yaml", f"runs: {text}\n")
    yield world.file("recipe.py", f"_base_ = ['{base}']\n")
    for ending in ("yaml", "yml"):
        yield world.file(f"recipe.{ending}", f"model:\n  type: {text}\nruns: {text}\n")
    yield world.file("recipe.json", f'{{"model": {text}}}')


def config_readers(world, config, good):
    """(what, started tool) of every tool that takes a config."""
    more = ("--device", "cpu", "--work-dir", world.new())
    yield "train", world.fork("tools/train.py", config, *more)
    yield "eval", world.fork("tools/eval.py", config, good, *more)
    yield "doctor", world.fork("tools/doctor.py", "--config", config, "--quiet")
    yield "inspect", world.fork("tools/inspect_checkpoint.py", good, config)
    yield "browse", world.fork("tools/browse_dataset.py", config, "--out", world.new())
    yield (
        "visualize",
        world.fork("tools/visualize.py", config, "--ground-truth-only", "--out-dir", world.new()),
    )


@row(
    "harm",
    "a config that is YAML or JSON and holds a Python tag: nothing executes, one line",
    cases=_TAGS,
    quick=("apply",),
)
def yaml_configs(world, tag):
    canary, wrong = canary_of(world), []
    good = world.trained() / "iter_4.pth"
    for config in _configs(world, tag.format(canary=canary)):
        for what, started in config_readers(world, config, good):
            result = started.finish(60)
            try:
                expect_harmless(result, f"{what} {config.name}", canary)
                expect(result.code != 0, f"{what} {config.name}: accepted")
            except Exception as error:
                wrong.append(str(error))
                canary.unlink() if canary.exists() else None
    expect(not wrong, f"{len(wrong)}: {'; '.join(wrong[:3])}")


@row(
    "harm",
    "a config of plain values works as {case}, or is refused in one line by every tool",
    cases={"json": "json", "yaml": "yaml", "yml": "yml"},
)
def plain_config(world, ending):
    import mmcv

    written = world.recipe().read_text().replace('imports=["attack_parts"]', "imports=[]")
    text = mmcv.Config.fromfile(str(world.file("recipe.py", written)))._cfg_dict.to_dict()
    text["custom_imports"] = {"imports": ["attack_parts"]}
    path = world.file(f"recipe.{ending}", json.dumps(text))  # JSON is YAML
    for what, started in config_readers(world, path, world.trained() / "iter_4.pth"):
        result = started.finish(60)
        if what == "visualize":  # the dummy data set has nothing to draw
            continue
        expect(result.code is not None and result.code >= 0, f"{what}: {result.code}")
        expect("Traceback" not in result.text, f"{what}: traceback: {end_of(result)}")


def _info_files(world, canary):
    """Info and result files that execute or lie."""
    infos = pickle.loads((world.infos() / "synthetic_infos_temporal_val.pkl").read_bytes())
    folder = world.new("hostile_infos")

    def write(name, content):
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))
        return path

    for name, call in payloads.calls(canary).items():
        yield write(f"top_{name}.pkl", call)
        if name in ("system", "numpy_object"):
            first = {**infos["infos"][0], "token": call}
            yield write(f"token_{name}.pkl", {**infos, "infos": [first]})
            yield write(f"metadata_{name}.pkl", {**infos, "metadata": call})
    for name, code in payloads.opcodes(canary).items():
        yield write(f"raw_{name}.pkl", code)
    yield write("yaml.yaml", _TAGS["apply"].format(canary=canary).encode())
    yield write("deep.json", b"[" * 100_000 + b"]" * 100_000)
    yield write("deep.pkl", b"\x80\x04" + b"]" * 50_000 + b"a" * 49_999 + b".")
    yield write("claimed.pkl", b"\x80\x04\x8d" + (1 << 60).to_bytes(8, "little") + b"a.")
    yield write("frame.pkl", b"\x80\x04\x95" + (1 << 60).to_bytes(8, "little") + b"}.")
    yield write("memo.pkl", b"\x80\x04}r\xff\xff\xff\x7f.")
    yield write("gzip.pkl", gzip.compress(bytes(1 << 28)))
    yield write("empty.pkl", b"")
    yield write("text.pkl", b"infos")


@row(
    "harm",
    "info and result files that execute or lie, through {case}: " + SAFE,
    cases={
        "eval": "eval",
        "results": "results",
        "visualize": "visualize",
        "browse": "browse",
        "doctor": "doctor",
    },
)
def executing_infos(world, tool):
    canary, wrong = canary_of(world), []
    config, weights = world.once("small_config", lambda: (world.small_recipe(), None))[0], None
    if tool == "eval":
        config, weights = world.small_trained()
    for path in _info_files(world, canary):
        infos = (
            "--cfg-options",
            *(f"data.{split}.ann_file={path}" for split in ("train", "val", "test")),
        )
        work = ("--device", "cpu", "--work-dir", world.new())
        words = {
            "eval": ("tools/eval.py", config, weights, *work, *infos),
            "results": ("tools/eval.py", config, "--results", path, *work),
            "visualize": ("tools/visualize.py", config, path, "--out-dir", world.new()),
            "browse": ("tools/browse_dataset.py", config, "--out", world.new(), *infos),
            "doctor": ("tools/doctor.py", "--quiet", "--config", config, *infos),
        }[tool]
        result = world.call(*words)
        try:
            expect_harmless(result, path.name, canary, MEMORY)
            expect(result.code != 0, f"{path.name}: accepted: {end_of(result)}")
        except Exception as error:
            wrong.append(str(error))
            canary.unlink() if canary.exists() else None
    expect(not wrong, f"{len(wrong)}: {'; '.join(wrong[:3])}")


@row(
    "harm",
    "a checkpoint whose meta names another file as the best one: that file is not deleted",
    quick=True,
)
def best_checkpoint_elsewhere(world):
    victim = world.file("victim.pth", b"precious")
    content = load(world.trained() / "iter_2.pth")
    for key in ("hook_msgs", "best"):
        content["meta"][key] = {
            "best_score": -1.0, "best_ckpt": str(victim), "last_ckpt": str(victim),
            "path": str(victim), "name": str(victim), "score": -1.0,
        }  # fmt: skip
    path = world.new() / "iter_2.pth"
    torch.save(content, str(path))
    options = {"evaluation": {"interval": 1, "save_best": "NDS", "pipeline": []}}
    result = world.train(world.recipe(), world.new(), "--resume-from", path, **options)
    expect(victim.exists(), "the file was deleted")
    expect("Traceback" not in result.text, f"traceback: {end_of(result)}")


@row(
    "harm",
    "publish_model onto its own source is refused",
    cases={"same": 0, "link": 1, "hard_link": 2, "other_spelling": 3},
    quick=True,
)
def publish_onto_itself(world, how):
    source = world.new() / "iter_4.pth"
    source.write_bytes((world.trained() / "iter_4.pth").read_bytes())
    target = source.parent / "target.pth"
    if how == 0:
        target = source
    elif how == 1:
        target.symlink_to(source.name)
    elif how == 2:
        os.link(source, target)
    else:
        (source.parent / "inner").mkdir()
        target = source.parent / "inner" / ".." / "iter_4.pth"
    before = source.read_bytes()
    expect_refusal(world.call("tools/publish_model.py", source, target))
    expect(source.read_bytes() == before, "the source has changed")

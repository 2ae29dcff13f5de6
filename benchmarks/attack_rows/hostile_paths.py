"""Names from data that become part of a path: nothing is written outside the folder that was given."""

import copy
import json
import pickle

import torch

from attack_rows.table import end_of, expect, row
from attack_rows.world import load

RIGHT = (
    "pictures and files stay inside the folder that was given, or the file is refused in one line"
)
_NAMES = {
    "parent": "../../escaped",
    "absolute": "{outside}/escaped",
    "slash": "inner/escaped",
    "dots": "..",
    "backslash_and_nul": "a\\..\\b\0c",
    "long": "t" * 400,
    "newline_and_escape": "a\nb\x1b[2J",
    "empty": "",
}


def _tree(world, *inside):
    """All paths of the world's folder that are not below one of these."""
    return {
        str(path)
        for path in world.folder.rglob("*")
        if not any(folder in path.parents or folder == path for folder in inside)
    }


def _infos(world, change):
    """A copy of the info file, changed."""
    content = pickle.loads((world.infos() / "synthetic_infos_temporal_val.pkl").read_bytes())
    content = copy.deepcopy(content)
    change(content["infos"])
    return world.file("infos.pkl", pickle.dumps(content))


def _rename(info, key, name):
    """Give a sample or a scene another name; returns what `change` of `_infos` needs."""
    info[key] = name


def _writers(world, config, infos, results, out):
    """(what, started tool) of every tool that writes files with names of the data."""
    options = [f"data.{split}.ann_file={infos}" for split in ("train", "val", "test")]
    options = ("--cfg-options", *options)
    _, weights = world.small_trained()
    work = ("--device", "cpu", "--work-dir", out / "work")
    yield (
        "eval",
        world.fork("tools/eval.py", config, weights, *work, "--show-dir", out / "shown", *options),
    )
    yield (
        "visualize",
        world.fork(
            "tools/visualize.py",
            config,
            "--ground-truth-only",
            "--out-dir",
            out / "drawn",
            *options,
        ),
    )
    yield (
        "visualize with results",
        world.fork("tools/visualize.py", config, results, "--out-dir", out / "results", *options),
    )
    yield (
        "browse_dataset",
        world.fork("tools/browse_dataset.py", config, "--out", out / "browsed", *options),
    )


def _expect_inside(world, infos, results):
    config, _ = world.small_trained()
    wrong = []
    out = world.new("given")
    logs = _tree(world, out)
    for what, started in _writers(world, config, infos, results, out):
        result = started.finish(90)
        new = {
            path for path in _tree(world, out) - logs
            if "/log_" not in path and "/work_" not in path and "/small_" not in path
        }  # fmt: skip
        logs |= new
        if new:
            wrong.append(f"{what} wrote {sorted(new)[:2]}")
        if result.code is None or result.code < 0 or "Traceback" in result.text:
            wrong.append(f"{what} ended with {result.code}: {end_of(result)}")
        said = [line for line in result.text.splitlines() if "\x1b[2J" in line]
        if said:
            wrong.append(f"{what} prints the escape sequence of a token")
    expect(not wrong, "; ".join(wrong))


@row("harm", "sample tokens with {case} in them: " + RIGHT, cases=_NAMES)
def sample_token(world, name):
    name = name.format(outside=world.new("outside"))
    infos = _infos(world, lambda all_infos: _token(all_infos, name))
    results = world.file("results.json", json.dumps({"meta": {}, "results": {name: []}}))
    _expect_inside(world, infos, results)


def _token(infos, name):
    old = infos[1]["token"]
    infos[1]["token"] = name
    for info in infos:
        for key in ("prev", "next"):
            if info.get(key) == old:
                info[key] = name


@row(
    "harm",
    "scene tokens and names with {case} in them: " + RIGHT,
    cases={key: _NAMES[key] for key in ("parent", "absolute")},
)
def scene_name(world, name):
    name = name.format(outside=world.new("outside"))

    def change(infos):
        for info in infos:
            info["scene_token"] = name
            if "scene_name" in info:
                info["scene_name"] = name

    _expect_inside(world, _infos(world, change), world.file("results.json", "{}"))


@row(
    "harm",
    "camera names with {case} in them: " + RIGHT,
    cases={key: _NAMES[key] for key in ("parent", "absolute")},
)
def camera_name(world, name):
    name = name.format(outside=world.new("outside"))

    def change(infos):
        for info in infos:
            cameras = info["cams"]
            first = next(iter(cameras))
            info["cams"] = {name if key == first else key: value for key, value in cameras.items()}

    _expect_inside(world, _infos(world, change), world.file("results.json", "{}"))


@row(
    "harm",
    "class names of the boxes with {case} in them: " + RIGHT,
    cases={key: _NAMES[key] for key in ("parent", "absolute")},
)
def class_name(world, name):
    name = name.format(outside=world.new("outside"))

    def change(infos):
        for info in infos:
            names = info["gt_names"]
            info["gt_names"] = (
                type(names)([name] * len(names)) if isinstance(names, list) else _like(names, name)
            )

    _expect_inside(world, _infos(world, change), world.file("results.json", "{}"))


def _like(names, name):
    import numpy as np

    return np.array([name] * len(names), dtype=object)


@row(
    "harm",
    "pictures of the data set outside the data root are named in one line, or read; nothing is written",
    cases={"parent": "../../../../etc/passwd", "absolute": "/etc/passwd"},
)
def image_path(world, name):
    def change(infos):
        for camera in infos[1]["cams"].values():
            camera["data_path"] = name

    _expect_inside(world, _infos(world, change), world.file("results.json", "{}"))


@row(
    "harm",
    "tables whose tokens and file names leave the root: create_data writes nothing elsewhere",
    cases={
        "token": ("sample", "token"),
        "scene": ("scene", "name"),
        "file": ("sample_data", "filename"),
    },
)
def tables_that_leave(world, table, key):
    import shutil

    root, out = world.new("root") / "data", world.new("given")
    shutil.copytree(world.data_root(), root, symlinks=True)
    path = root / "v1.0-mini" / f"{table}.json"
    rows = json.loads(path.read_text())
    old = rows[0][key]
    rows[0][key] = "../../../escaped.jpg"
    path.write_text(json.dumps(rows))
    for other in (root / "v1.0-mini").glob("*.json"):
        if key == "token":
            other.write_text(other.read_text().replace(f'"{old}"', '"../../../escaped.jpg"'))
    before = _tree(world, out)
    result = world.call(
        "tools/create_data.py", "nuscenes", "--root-path", root, "--out-dir", out, "--extra-tag", "x",
        "--version", "v1.0-mini", "--canbus", root,
    )  # fmt: skip
    new = {path for path in _tree(world, out) - before if "/log_" not in path}
    expect(not new, f"new: {sorted(new)[:3]}")
    expect("Traceback" not in result.text, f"traceback: {end_of(result)}")


@row("harm", "names in the meta of a checkpoint never become paths")
def names_in_a_meta(world):
    content = load(world.trained() / "iter_2.pth")
    for key in ("exp_name", "run", "counted_in"):
        content["meta"][key] = "../../escaped"
    path = world.new() / "iter_2.pth"
    torch.save(content, str(path))
    config, before, work = world.recipe(), None, world.new("given")
    before = _tree(world, work)
    world.train(config, work, "--resume-from", path)
    world.call("tools/eval.py", config, path, "--device", "cpu", "--work-dir", work)
    new = {one for one in _tree(world, work) - before if "/log_" not in one}
    expect(not new, f"new: {sorted(new)[:3]}")

"""Checkpoints that are broken, of something else, or hold values that mean nothing."""

import zipfile

import torch

from attack_rows import hostile_files
from attack_rows.table import end_of, expect, expect_refusal, expect_success, row
from attack_rows.world import load

_ALL = ("inspect", "publish", "eval", "resume", "load_from")


def _call(world, tool, path, config=None):
    config = config or world.recipe()
    more = ("--device", "cpu", "--work-dir", world.new())
    words = {
        "inspect": ("tools/inspect_checkpoint.py", path),
        "publish": ("tools/publish_model.py", path, world.new() / "published.pth"),
        "eval": ("tools/eval.py", config, path, *more),
        "resume": ("tools/train.py", config, "--resume-from", path, *more),
        "load_from": ("tools/train.py", config, *more, "--cfg-options", f"load_from={path}"),
    }[tool]
    return world.call(*words)


def _save(world, content):
    path = world.new() / "iter_2.pth"
    torch.save(content, str(path))
    return path


def _damage(path, how):
    """Change bytes of the largest entry of an archive."""
    with zipfile.ZipFile(path) as file:
        largest = max(file.infolist(), key=lambda entry: entry.file_size)
        start, size = largest.header_offset + 200, largest.file_size
    data = bytearray(path.read_bytes())
    middle = start + size // 2
    if how == "bit":
        data[middle] ^= 0x10
    elif how == "block":
        data[middle : middle + 512] = b"\xa5" * 512
    elif how == "pickle":
        with zipfile.ZipFile(path) as file:
            entry = next(one for one in file.infolist() if one.filename.endswith("data.pkl"))
        at = (
            data.index(b"max_iters", entry.header_offset)
            if b"max_iters" in data
            else entry.header_offset + 400
        )
        data[at] ^= 0x01
    path.write_bytes(bytes(data))


@row(
    "state",
    "a {case} flipped or lost inside a checkpoint: refused by every tool, --auto-resume takes the one before",
    cases={"bit": "bit", "block": "block", "pickle": "pickle"},
    quick=("bit",),
)
def damaged(world, how):
    work = world.new()
    options = {"checkpoint_config.interval": 1, "model.ballast": 20_000}
    expect_success(world.train(world.recipe(), work, "--max-iters", 3, **options))
    path = work / "iter_3.pth"
    _damage(path, how)
    config = world.recipe("model['ballast'] = 20_000\n")
    for tool in _ALL:
        expect_refusal(_call(world, tool, path, config), r"iter_3\.pth", what=tool)
    result = world.train(world.recipe(), work, "--auto-resume", "--max-iters", 4, **options)
    expect_success(result)
    expect(f"resumed {work}/iter_2.pth" in result.text, f"not from iter_2: {end_of(result)}")


@row(
    "state",
    "a checkpoint of {case}: resume refuses; load_from says so and needs a switch",
    cases={"other_classes": 0, "another_order": 1},
    quick=("another_order",),
)
def classes(world, reorder):
    content = load(world.trained() / "iter_2.pth")
    names = list(content["meta"]["CLASSES"])
    content["meta"]["CLASSES"] = (
        names[::-1] if reorder else [f"kind_{i}" for i in range(len(names))]
    )
    path, config = _save(world, content), world.recipe()
    expect_refusal(_call(world, "resume", path), "class", what="resume")
    expect_refusal(_call(world, "eval", path), "class", what="eval")
    expect_refusal(
        _call(world, "load_from", path), "class", "load_from_other_classes", what="load_from"
    )
    options = {"load_from": str(path), "load_from_other_classes": True}
    result = world.train(config, world.new(), "--max-iters", 1, **options)
    expect_success(result, "load_from with the switch")
    expect("class" in result.text.lower(), "no word about the classes")


def _without(content, key):
    return {name: value for name, value in content.items() if name != key}


def _state(content, change):
    """The optimizer's state, changed per parameter."""
    optimizer = content["optimizer"]
    states = {key: change(dict(value)) for key, value in optimizer["state"].items()}
    return {**content, "optimizer": {**optimizer, "state": states}}


def _meta(**values):
    return lambda content: {**content, "meta": {**content["meta"], **values}}


def _weights(change):
    def spoil(content):
        state = dict(content["state_dict"])
        change(state)
        return {**content, "state_dict": state}

    return spoil


def _sparse(state):
    state["head.weight"] = state["head.weight"].to_sparse()


def _complex(state):
    state["head.weight"] = state["head.weight"].to(torch.complex64)


def _numbers_as_keys(state):
    for number, name in enumerate(list(state)):
        state[number] = state.pop(name)


_SPOILS = {
    # name -> (what is spoiled, tools that have to refuse it)
    "no_state_dict": (lambda content: _without(content, "state_dict"), _ALL),
    "empty_state_dict": (lambda content: {**content, "state_dict": {}}, _ALL),
    "state_dict_as_list": (lambda c: {**c, "state_dict": list(c["state_dict"].values())}, _ALL),
    "state_dict_as_text": (lambda content: {**content, "state_dict": "weights"}, _ALL),
    "meta_as_text": (lambda content: {**content, "meta": "epoch 3"}, _ALL),
    "meta_as_list": (lambda content: {**content, "meta": [1, 2]}, _ALL),
    "classes_as_number": (_meta(CLASSES=10), ("eval", "resume", "load_from", "inspect")),
    "classes_of_numbers": (_meta(CLASSES=list(range(10))), ("eval", "resume", "load_from", "inspect")),
    "cameras_as_number": (_meta(CAMERAS=6), ("resume", "inspect")),
    "stamp_as_text": (_meta(trained_with="lidar"), ("eval", "resume", "inspect")),
    "hook_msgs_as_text": (_meta(hook_msgs="none"), ("resume",)),
    "optimizer_as_list": (lambda content: {**content, "optimizer": [1]}, ("resume",)),
    "optimizer_as_text": (lambda content: {**content, "optimizer": "Adam"}, ("resume",)),
    "optimizer_without_groups": (
        lambda c: {**c, "optimizer": {"state": c["optimizer"]["state"]}}, ("resume",)),
    "optimizer_state_as_list": (
        lambda c: {**c, "optimizer": {**c["optimizer"], "state": []}}, ("resume",)),
    "optimizer_shapes": (
        lambda c: _state(c, lambda s: {**s, "exp_avg": torch.zeros(3, 7)}), ("resume",)),
    "without_exp_avg": (
        lambda c: _state(c, lambda s: {k: v for k, v in s.items() if k != "exp_avg"}), ("resume",)),
    "of_another_kind": (
        lambda c: _state(c, lambda s: {"momentum_buffer": s["exp_avg"]}), ("resume",)),
    "exp_avg_as_text": (lambda c: _state(c, lambda s: {**s, "exp_avg": "0"}), ("resume",)),
    "no_optimizer": (lambda content: _without(content, "optimizer"), ("resume",)),
    "numbers_as_keys": (_weights(_numbers_as_keys), _ALL),
    "sparse": (_weights(_sparse), _ALL),
    "complex": (_weights(_complex), _ALL),
    "iter_as_text": (_meta(iter="many"), ("resume",)),
    "iter_negative": (_meta(iter=-5), ("resume",)),
    "iter_as_nan": (_meta(iter=float("nan")), ("resume",)),
    "iter_as_fraction": (_meta(iter=1.5), ("resume",)),
    "iter_as_bool": (_meta(iter=True), ("resume",)),
    "iter_huge": (_meta(iter=2**70), ("resume",)),
    "epoch_negative": (_meta(epoch=-1), ("resume",)),
    "epoch_as_text": (_meta(epoch="last"), ("resume",)),
    "epoch_as_none": (_meta(epoch=None), ("resume",)),
    "world_size_0": (_meta(world_size=0, total_batch=None), ("resume",)),
    "world_size_as_text": (_meta(world_size="two", total_batch=None), ("resume",)),
    "total_batch_0": (_meta(total_batch=0), ("resume",)),
    "total_batch_negative": (_meta(total_batch=-2), ("resume",)),
    "total_batch_as_text": (_meta(total_batch="2"), ("resume",)),
    "iter_in_epoch_negative": (_meta(iter_in_epoch=-1), ("resume",)),
    "iter_in_epoch_as_text": (_meta(iter_in_epoch="x"), ("resume",)),
    "iter_in_epoch_beyond": (_meta(iter_in_epoch=500), ("resume",)),
    "counted_in_as_number": (_meta(counted_in=3), ("resume",)),
    "hooks_as_text": (_meta(hooks="x"), ("resume",)),
    "seed_as_text": (_meta(seed="x"), ("resume",)),
    "ranks_as_text": (lambda content: {**content, "ranks": "two"}, ("resume",)),
    "ranks_of_numbers": (lambda content: {**content, "ranks": [1]}, ("resume",)),
    "ranks_without_random": (lambda content: {**content, "ranks": [{"buffers": {}}]}, ("resume",)),
    "random_states_as_text": (
        lambda content: {**content, "ranks": [{"random": {"torch": "x", "numpy": 1}, "buffers": {}}]},
        ("resume",)),
    "buffers_of_other_shapes": (
        lambda c: {**c, "ranks": [{**c.get("ranks", [{}])[0],
                                   "buffers": {"norm.running_mean": torch.zeros(9)}}]}, ("resume",)),
    "gradients_as_text": (lambda content: {**content, "gradients": "x"}, ("resume",)),
    "gradients_of_other_shapes": (
        lambda content: {**content, "gradients": {"head.weight": torch.zeros(9)}}, ("resume",)),
}  # fmt: skip


@row(
    "wrong",
    "a checkpoint with {case}: one line in each tool that reads it, no traceback in the others",
    cases={name: (name,) for name in _SPOILS},
    quick=("meta_as_text",),
)
def spoiled(world, name):
    spoil, refused_by = _SPOILS[name]
    content = load(world.trained() / "iter_2.pth")
    path, wrong = _save(world, spoil(content)), []
    for tool in _ALL:
        result = _call(world, tool, path)
        if tool in refused_by:
            try:
                expect_refusal(result, what=tool)
            except Exception as error:
                wrong.append(str(error))
        elif "Traceback" in result.text or result.code is None or result.code < 0:
            wrong.append(f"{tool}: {end_of(result)}")
    expect(not wrong, "; ".join(wrong))


@row(
    "wrong",
    "a checkpoint with {case}: --auto-resume passes over it or stops in one line",
    cases={
        name: (name,)
        for name in (
            "meta_as_text",
            "iter_negative",
            "empty_state_dict",
            "ranks_as_text",
            "optimizer_as_list",
            "iter_as_text",
        )
    },
)
def spoiled_newest(world, name):
    work = world.new()
    expect_success(
        world.train(world.recipe(), work, "--max-iters", 3, **{"checkpoint_config.interval": 1})
    )
    content = load(work / "iter_3.pth")
    torch.save(_SPOILS[name][0](content), str(work / "iter_3.pth"))
    result = world.train(world.recipe(), work, "--auto-resume", "--max-iters", 4)
    expect("Traceback" not in result.text, f"traceback: {end_of(result)}")
    expect("iter_3.pth" in result.text, f"no word of iter_3.pth: {end_of(result)}")
    if result.code == 0:
        expect(f"resumed {work}/iter_2.pth" in result.text, f"not from iter_2: {end_of(result)}")


@row(
    "wrong",
    "files that are no checkpoints: one line in every tool",
    cases={
        "text": b"hello\n",
        "html": b"<html>" * 100,
        "picture": b"\xff\xd8\xff\xe0" + b"\0" * 500,
        "zip": None,
        "zeros": bytes(5000),
    },
)
def no_checkpoint(world, data):
    path = world.new() / "file.pth"
    if data is None:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("readme.txt", "hello")
    else:
        path.write_bytes(data)
    for what, started in hostile_files.weight_readers(world, path):
        if what != "--auto-resume":
            expect_refusal(started.finish(60), r"file\.pth", what=what)
        else:
            started.finish(60)

"""Files that execute, crash or fill the memory, given to every tool that reads such files."""

import gzip
import json
import zipfile
from typing import Tuple

import torch

from attack_rows import payloads
from attack_rows.table import RECOMMENDS, end_of, expect, expect_refusal, expect_success, row
from attack_rows.world import load

SAFE = "none executes, none crashes, no traceback, refused before it takes memory"
MEMORY = 150 * 2**20  # what a tool may need besides, to refuse a file


def canary_of(world):
    """A file that does not exist, and shall not."""
    return world.new("canary") / "canary"


def weight_readers(world, path, config=None):
    """(what, started tool) of every tool that reads weights."""
    config = config or world.recipe()
    work = world.new()
    more = ("--device", "cpu", "--work-dir", work)
    resumed = world.new()
    (resumed / "iter_1.pth").symlink_to(path)
    yield "inspect_checkpoint", world.fork("tools/inspect_checkpoint.py", path)
    yield "inspect_checkpoint with config", world.fork("tools/inspect_checkpoint.py", path, config)
    yield "publish_model", world.fork("tools/publish_model.py", path, work / "published.pth")
    yield "eval", world.fork("tools/eval.py", config, path, *more)
    yield "--resume-from", world.fork("tools/train.py", config, "--resume-from", path, *more)
    yield (
        "load_from",
        world.fork("tools/train.py", config, "--cfg-options", f"load_from={path}", *more),
    )
    yield (
        "--auto-resume",
        world.fork(
            "tools/train.py", config, "--auto-resume", "--device", "cpu", "--work-dir", resumed
        ),
    )


def expect_harmless(result, what, canary, limit=None):
    expect(not canary.exists(), f"{what}: executed")
    expect(result.code is not None, f"{what}: not at an end after {result.seconds:.0f} s")
    expect(result.code >= 0, f"{what}: died of signal {-result.code}")
    expect("Traceback" not in result.text, f"{what}: traceback: {end_of(result)}")
    expect(not RECOMMENDS.search(result.text), f"{what}: recommends unsafe loading")
    if limit is not None:
        expect(result.grown < limit, f"{what}: took {result.grown >> 20} MiB")


def _all_paths(world):
    def make():
        folder, canary = world.new("executing"), canary_of(world)
        good = world.trained() / "iter_4.pth"
        return list(payloads.executing_checkpoints(folder, good, canary)), canary

    return world.once("executing", make)


@row(
    "harm",
    "executing checkpoints of every age, in every field, through {case}: " + SAFE,
    cases={"inspect": 0, "publish": 2, "eval": 3, "resume": 4, "load_from": 5, "auto_resume": 6},
)
def executing_checkpoint(world, number):
    paths, canary = _all_paths(world)
    if number > 0:  # slower tools read a third of them, each another one
        paths = paths[number % 3 :: 3]
    config, wrong, accepted = world.recipe(), [], []
    for path in paths:
        work = world.new()
        more = ("--device", "cpu", "--work-dir", work)
        link = work / "iter_1.pth"
        link.symlink_to(path)
        words = [
            ("tools/inspect_checkpoint.py", path),
            (),
            ("tools/publish_model.py", path, work / "published.pth"),
            ("tools/eval.py", config, path, *more),
            ("tools/train.py", config, "--resume-from", path, *more),
            ("tools/train.py", config, *more, "--cfg-options", f"load_from={path}"),
            ("tools/train.py", config, "--auto-resume", *more),
        ][number]
        result = world.call(*words)
        try:
            expect_harmless(result, path.name, canary, MEMORY)
        except Exception as error:
            wrong.append(str(error))
            canary.unlink() if canary.exists() else None
        if result.code == 0 and number != 6:
            accepted.append(path.name)
    expect(not wrong, f"{len(wrong)} of {len(paths)}: {'; '.join(wrong[:3])}")
    expect(not accepted, f"accepted: {', '.join(accepted[:5])}")


@row(
    "harm",
    "a pretrained part that executes goes the same safe way as load_from",
    cases={"pretrained": "pretrained", "init_cfg": "init_cfg"},
)
def executing_pretrained(world, key):
    paths, canary = _all_paths(world)
    wrong = []
    for path in paths[::15]:
        text = world.small_recipe().read_text()
        if key == "pretrained":
            text = text.replace("pretrained=None", f"pretrained=dict(img={str(path)!r})")
        else:
            init = f"init_cfg=dict(type='Pretrained', checkpoint={str(path)!r})"
            text = text.replace("img_backbone=dict(", f"img_backbone=dict({init}, ")
        file = world.file("small.py", text)
        result = world.train(file, world.new(), "--max-iters", 1, "--no-validate")
        try:
            expect_harmless(result, path.name, canary)
            expect_refusal(result, path.name.replace(".", r"\."))
        except Exception as error:
            wrong.append(str(error))
    expect(not wrong, f"{len(wrong)}: {'; '.join(wrong[:2])}")


@row(
    "harm",
    "a TorchScript archive as checkpoint: refused, executes nothing, on torch 1.10 too",
    quick=True,
)
def torchscript(world):
    """`__setstate__` and code at load time run within torch.jit.load."""
    canary = canary_of(world)
    path = world.new() / "script.pth"
    module = torch.jit.script(torch.nn.Linear(2, 2))
    torch.jit.save(module, str(path))
    printing = _with_code_at_load(world, path)
    for file in (path, printing):
        for what, started in weight_readers(world, file):
            result = started.finish(60)
            expect_harmless(result, f"{file.name}, {what}", canary)
            expect("loaded by TorchScript" not in result.text, f"{what}: executed")
            if what != "--auto-resume":
                expect_refusal(result, what=what)


class _Printing(torch.nn.Module):
    """Prints when torch.jit.load unpickles it: code of the file that runs."""

    def __init__(self):
        super().__init__()
        self.training_steps: int = 0

    def forward(self, x):
        return x

    @torch.jit.export
    def __getstate__(self):
        return (self.training_steps, self.training)

    @torch.jit.export
    def __setstate__(self, state: Tuple[int, bool]):
        print("loaded by TorchScript")
        self.training_steps = state[0]
        self.training = state[1]


def _with_code_at_load(world, path):
    """A module whose `__setstate__` prints when it is loaded; a subset of what it could do."""
    target = world.new() / "setstate.pth"
    torch.jit.save(torch.jit.script(_Printing()), str(target))
    return target


def _lying(folder):
    """Archives whose pickles lie about sizes."""
    small = b"\0" * 16

    def one(name, tensor, storages=None, **more):
        content = {"state_dict": {"img_backbone.weight": tensor}, "meta": {"epoch": 1, "iter": 1}}
        return payloads.archive(folder / f"{name}.pth", content, storages or {"0": small}, **more)

    storage = payloads.Storage
    yield one("size", payloads.Claimed(storage("0", 4), (1 << 24,)))
    yield one("size_and_storage", payloads.Claimed(storage("0", 1 << 24), (1 << 24,)))
    yield one("huge", payloads.Claimed(storage("0", 1 << 61), (1 << 61,)))
    yield one("negative_size", payloads.Claimed(storage("0", 4), (-4,), (1,)))
    yield one("negative_stride", payloads.Claimed(storage("0", 4), (4,), (-1,), 3))
    yield one("negative_offset", payloads.Claimed(storage("0", 4), (4,), (1,), -(1 << 20)))
    yield one("offset", payloads.Claimed(storage("0", 4), (4,), (1,), 1 << 24))
    yield one("stride", payloads.Claimed(storage("0", 4), (2, 2), (1 << 24, 1)))
    yield one("overflow", payloads.Claimed(storage("0", 4), (1 << 40, 1 << 40)))
    yield one("negative_storage", payloads.Claimed(storage("0", -4), (4,)))
    yield one("no_entry", payloads.Claimed(storage("7", 4), (4,)))
    yield one("path_as_key", payloads.Claimed(storage("../../../etc/passwd", 4), (4,)))


@row("harm", "archives that lie about the size of a tensor: " + SAFE)
def lying_sizes(world):
    canary, wrong = canary_of(world), []
    for path in _lying(world.new("lying")):
        for what, started in weight_readers(world, path):
            try:
                result = started.finish(60)
                expect_harmless(result, f"{path.name}, {what}", canary, MEMORY)
                if what != "--auto-resume":
                    expect_refusal(result, what=f"{path.name}, {what}")
            except Exception as error:
                wrong.append(str(error))
    expect(not wrong, f"{len(wrong)}: {'; '.join(wrong[:3])}")


def _bombs(folder):
    """Small files that unpack to hundreds of megabytes."""
    numel = 1 << 27
    weight = payloads.Claimed(payloads.Storage("0", numel), (numel,))
    content = {"state_dict": {"img_backbone.weight": weight}, "meta": {"epoch": 1, "iter": 1}}
    deflated = dict(method=zipfile.ZIP_DEFLATED)
    yield payloads.archive(folder / "deflated.pth", content, {"0": 4 * numel}, **deflated)
    twice = {"a": weight, "b": payloads.Claimed(payloads.Storage("1", 4), (4,))}
    again = {"state_dict": {"head.bias": twice["b"]}, "further": twice["a"], "meta": {}}
    storages = {"1": b"\0" * 16, "0": 4 * numel}
    yield payloads.archive(folder / "further_key.pth", again, storages, **deflated)
    view = payloads.Claimed(payloads.Storage("0", 1), (1 << 16, 1 << 12), (0, 0))
    spread = {"state_dict": {"img_backbone.weight": view}, "meta": {}}
    yield payloads.archive(folder / "expanded.pth", spread, {"0": b"\0" * 4})
    text = b"\x80\x02" + b"X" + (1 << 30).to_bytes(4, "little") + b"a" * (1 << 10)
    (folder / "claimed_text.pth").write_bytes(text)
    yield folder / "claimed_text.pth"
    yield payloads.archive(folder / "pickle_of_zeros.pth", bytes(1 << 29), **deflated)
    laughs = ["lol"] * 10
    for _ in range(9):
        laughs = [laughs] * 10
    path = folder / "laughs.pth"
    torch.save({"state_dict": {}, "meta": {"laughs": laughs}}, str(path))
    yield path
    (folder / "gzip.pth").write_bytes(gzip.compress(bytes(1 << 29)))
    yield folder / "gzip.pth"


@row(
    "harm",
    "a checkpoint of a few MB that unpacks to a gigabyte: refused before it takes memory, nothing is written",
)
def bombs(world):
    canary, wrong = canary_of(world), []
    for path in _bombs(world.new("bombs")):
        limit = MEMORY + 4 * path.stat().st_size
        for what, started in weight_readers(world, path):
            result = started.finish(60)
            try:
                expect_harmless(result, f"{path.name}, {what}", canary, limit)
                if what != "--auto-resume":
                    expect_refusal(result, what=f"{path.name}, {what}")
            except Exception as error:
                wrong.append(str(error))
    expect(not wrong, f"{len(wrong)}: {'; '.join(wrong[:4])}")


def _headers(folder):
    """safetensors files that lie."""

    def write(name, header, data=b"", length=None):
        return payloads.safetensors(folder / f"{name}.safetensors", header, data, length)

    good = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    yield write("no_bytes", {"a": good})
    yield write("length", {"a": good}, b"\0" * 16, 1 << 60)
    yield write("long_length", {"a": good}, b"\0" * 16, 90 << 20)
    yield write("shape", {"a": {**good, "shape": [1 << 40]}}, b"\0" * 16)
    yield write("negative", {"a": {**good, "shape": [-4]}}, b"\0" * 16)
    yield write("offsets", {"a": {**good, "data_offsets": [-16, 0]}}, b"\0" * 16)
    yield write("overlap", {"a": good, "b": {**good, "data_offsets": [4, 20]}}, b"\0" * 20)
    yield write("dtype", {"a": {**good, "dtype": "os.system"}}, b"\0" * 16)
    yield write("no_json", b"{{{{", b"\0" * 16)
    yield write("deep", b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}")
    yield write("list", b"[1, 2]")
    yield write("empty_header", {})
    yield write("meta_as_number", {"__metadata__": 7, "a": good}, b"\0" * 16)
    yield write("text_offsets", {"a": {**good, "data_offsets": "0,16"}}, b"\0" * 16)
    (folder / "cut.safetensors").write_bytes(b"\x10\0\0")
    yield folder / "cut.safetensors"


@row("harm", "safetensors files that lie: " + SAFE)
def safetensors_that_lie(world):
    canary, wrong = canary_of(world), []
    for path in _headers(world.new("safetensors")):
        for script, words in (
            ("tools/inspect_checkpoint.py", (path,)),
            ("tools/publish_model.py", (path, world.new() / "out.pth")),
        ):
            result = world.call(script, *words)
            try:
                expect_harmless(result, f"{path.name}, {script}", canary, MEMORY)
                expect_refusal(result, what=f"{path.name}, {script}")
            except Exception as error:
                wrong.append(str(error))
    expect(not wrong, f"{len(wrong)}: {'; '.join(wrong[:3])}")


@row("harm", "publish_model --safetensors and load_from of its file: the same weights")
def safetensors_in_and_out(world):
    source, folder = world.trained() / "iter_4.pth", world.new()
    target = folder / "weights.safetensors"
    expect_success(world.call("tools/publish_model.py", source, target, "--safetensors"))
    result = world.train(world.recipe(), world.new(), "--max-iters", 1, load_from=str(target))
    expect_success(result, "load_from")
    expect_success(world.call("tools/inspect_checkpoint.py", target), "inspect_checkpoint")
    size = int.from_bytes(target.read_bytes()[:8], "little")
    header = json.loads(target.read_bytes()[8 : 8 + size])
    names = set(load(source)["state_dict"])
    expect(names <= set(header), f"the file lacks {sorted(names - set(header))[:3]}")

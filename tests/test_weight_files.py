"""Weight files: what is read back, and why others are refused."""

import json

import pytest
import torch
from hostile_files import safetensors_file
from safetensors import safe_open

from projects.bevformer.engine.checkpoint import load_checkpoint, publish_weights
from projects.bevformer.files.weights import load_weight_file

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32),
    *(torch.int16, torch.int8, torch.uint8, torch.bool),
]
MATRIX = torch.arange(12.0).reshape(3, 4)


@pytest.mark.parametrize("old", [False, True])
def test_tensors_and_plain_values_come_back(tmp_path, old):
    content = {
        **{str(dtype): (MATRIX % 3).to(dtype) for dtype in DTYPES},
        "strided": MATRIX.t(),
        "slice": MATRIX[1:, ::2],
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 5),
        "parameter": torch.nn.Parameter(MATRIX),
        "plain": {"a": [1, 2.5, None, True, "text", (3, 4)], 7: {"b": {1, 2}}, "bytes": b"\xff"},
        "size": tuple(MATRIX.shape),
    }
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=not old)
    loaded = load_weight_file(tmp_path / "a.pth")
    assert list(loaded) == list(content)
    for name, value in content.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(loaded[name], value)
            assert loaded[name].dtype == value.dtype
            assert loaded[name].stride() == value.stride()
        else:
            assert loaded[name] == value


@pytest.mark.parametrize("old", [False, True])
def test_tied_weights_stay_tied(tmp_path, old):
    content = {"a": MATRIX, "b": MATRIX, "row": MATRIX[1]}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=not old)
    loaded = load_weight_file(tmp_path / "a.pth")
    loaded["a"][1] = -1
    assert (loaded["b"][1] == -1).all()
    assert (loaded["row"] == -1).all()


def test_torchscript_is_not_run(tmp_path):
    module = torch.jit.script(torch.nn.Linear(2, 2))
    module.save(str(tmp_path / "a.pth"))
    with pytest.raises(ValueError, match="TorchScript program, which is code"):
        load_checkpoint(tmp_path / "a.pth")


@pytest.fixture
def checkpoint(tmp_path):
    meta = {"CLASSES": ["car", "bus"], "epoch": 3, "seed": None, "hook_msgs": {"a": 1}}
    weights = {"a": MATRIX, "b": MATRIX, "c": MATRIX.t(), "d": torch.arange(3)}
    torch.save({"state_dict": weights, "meta": meta, "optimizer": {}}, tmp_path / "a.pth")
    return tmp_path / "a.pth"


@pytest.mark.parametrize(
    ("target", "options"),
    [("b.safetensors", {}), ("b.weights", {"safetensors": True}), ("b.pth", {})],
)
@pytest.mark.parametrize("half", [False, True])
def test_published_weights_of_both_formats_are_the_same(checkpoint, target, options, half):
    target = checkpoint.with_name("new") / target
    publish_weights(checkpoint, target, half, **options)
    loaded = load_checkpoint(target)
    assert loaded["meta"] == {"CLASSES": ["car", "bus"], "epoch": 3, "seed": None}
    for name, value in load_checkpoint(checkpoint)["state_dict"].items():
        expected = value.half() if half and value.ndim > 1 else value
        assert loaded["state_dict"][name].dtype == expected.dtype
        assert torch.equal(loaded["state_dict"][name], expected)
    assert (target.suffix == ".pth") == (target.read_bytes()[:2] == b"PK")


def test_our_safetensors_are_read_by_the_package(checkpoint, tmp_path):
    publish_weights(checkpoint, tmp_path / "b.safetensors")
    with safe_open(str(tmp_path / "b.safetensors"), "pt") as file:
        assert set(file.keys()) == {"a", "b", "c", "d"}
        assert file.metadata()["format"] == "pt"
        assert json.loads(file.metadata()["meta"])["CLASSES"] == ["car", "bus"]


def test_safetensors_of_others_are_weights_without_meta(tmp_path):
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    }
    (tmp_path / "a.safetensors").write_bytes(safetensors_file(header, bytes(8)))
    loaded = load_checkpoint(tmp_path / "a.safetensors")
    assert loaded["meta"] == {}
    assert torch.equal(loaded["state_dict"]["a"], torch.zeros(2))


@pytest.mark.parametrize("how", ["same", "dotted", "link", "hard link"])
def test_publishing_onto_the_source_is_refused(checkpoint, how):
    target = checkpoint.with_name("b.pth")
    if how == "link":
        target.symlink_to("a.pth")
    elif how == "hard link":
        target.hardlink_to(checkpoint) if hasattr(target, "hardlink_to") else checkpoint.link_to(
            target
        )
    else:
        target = checkpoint if how == "same" else checkpoint.parent / "." / "x" / ".." / "a.pth"
        (checkpoint.parent / "x").mkdir()
    before = checkpoint.read_bytes()
    with pytest.raises(
        ValueError, match=r"pth is the checkpoint .*a\.pth itself: write to another"
    ):
        publish_weights(checkpoint, target)
    assert checkpoint.read_bytes() == before


def test_publishing_of_and_into_folders(checkpoint, tmp_path):
    with pytest.raises(ValueError, match=r"is a folder: name a file in it, such as .*/a\.pth"):
        publish_weights(checkpoint, tmp_path)
    with pytest.raises(ValueError, match=r"is a folder: name one of its files, such as .*a\.pth"):
        publish_weights(tmp_path, tmp_path / "new" / "b.pth")
    assert not (tmp_path / "new").exists()

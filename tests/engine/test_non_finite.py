import copy
import logging

import pytest
import torch
from dummy_task import DummyDetector

from projects.bevformer.engine.checkpoint import (
    load_checkpoint,
    publish_weights,
    save_checkpoint,
)
from projects.bevformer.engine.non_finite import NonFiniteError, non_finite_names, tensors_in
from projects.bevformer.engine.resume import find_latest_checkpoint

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_non_finite_tensors_are_named(dtype, value):
    tensors = {
        "whole": torch.ones(2, dtype=torch.long),
        "empty": torch.ones(0, dtype=dtype),
        "a sum that overflows": torch.full((3, 60000), torch.finfo(dtype).max / 2, dtype=dtype),
        "both signs": torch.tensor([value, 1.0, -value], dtype=dtype),
        "one": torch.tensor(value, dtype=dtype),
    }
    assert non_finite_names(tensors) == ["both signs", "one"]


def test_tensors_are_found_in_anything():
    content = {"a": [torch.zeros(1), {3: torch.ones(1)}], "b": "text"}
    content["itself"] = content
    assert list(tensors_in(content)) == ["a.0", "a.1.3"]
    assert list(tensors_in(content["a"], "x")) == ["x.0", "x.1.3"]


def saved(path, where=None, value=NAN):
    """A checkpoint with all kinds of tensors, of which `where` has a number that is not finite."""
    detector = DummyDetector()
    optimizer = torch.optim.AdamW(detector.parameters())
    sum(parameter.sum() for parameter in detector.parameters()).backward()
    optimizer.step()
    raw = copy.deepcopy(detector.state_dict())
    spoilt = {
        "weight": detector.head.weight,
        "buffer": detector.norm.running_var,
        "raw weight": raw["head.bias"],
        "optimizer": optimizer.state[detector.head.weight]["exp_avg_sq"],
    }
    with torch.no_grad():
        if where is not None:
            spoilt[where].view(-1)[0] = value
    save_checkpoint(path, detector, optimizer, {"epoch": 1, "iter": 2}, raw)


WHERE = {
    "weight": "head.weight",
    "buffer": "norm.running_var",
    "raw weight": "raw_weights.head.bias",
    "optimizer": r"optimizer.state.\d+.exp_avg_sq",
}


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("where", WHERE)
def test_a_checkpoint_that_is_not_finite_is_neither_written_nor_read(
    tmp_path, monkeypatch, where, value
):
    path = tmp_path / "epoch_1.pth"
    saved(path)
    before = path.read_bytes()
    with pytest.raises(NonFiniteError, match=f"epoch_1.pth is not written: 1 of .*{WHERE[where]}$"):
        saved(path, where, value)
    assert path.read_bytes() == before
    monkeypatch.setattr("projects.bevformer.engine.checkpoint.check_finite", lambda *given: None)
    saved(path, where, value)  # as other programs do
    monkeypatch.undo()
    with pytest.raises(ValueError, match=f"epoch_1.pth: 1 of .*{WHERE[where]}$"):
        load_checkpoint(path)
    with pytest.raises(ValueError, match="1 of"):
        publish_weights(path, tmp_path / "published.pth")
    assert [file.name for file in tmp_path.iterdir()] == ["epoch_1.pth"]
    assert find_latest_checkpoint(tmp_path, logging.getLogger("test")) is None
    assert load_checkpoint(path, finite=False)["meta"]["epoch"] == 1


def test_weights_too_large_for_float32_are_not_read(tmp_path):
    torch.save({"a": torch.tensor([1e300], dtype=torch.float64)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="1 of 1 tensors have a NaN or infinite number: a$"):
        load_checkpoint(tmp_path / "a.pth")


def test_weights_too_large_for_float16_are_not_published_as_such(tmp_path):
    detector = DummyDetector()
    with torch.no_grad():
        detector.head.weight[0, 0] = 1e5
        detector.head.bias[0] = 1e5  # vectors stay float32
    save_checkpoint(tmp_path / "a.pth", detector)
    with pytest.raises(
        ValueError, match=r"b.pth is not written: 1 weights .*65504.*: head.weight;"
    ):
        publish_weights(tmp_path / "a.pth", tmp_path / "b.pth", half=True)
    assert not (tmp_path / "b.pth").exists()
    publish_weights(tmp_path / "a.pth", tmp_path / "b.pth")
    assert load_checkpoint(tmp_path / "b.pth")["state_dict"]["head.weight"][0, 0] == 1e5

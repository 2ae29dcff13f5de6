import gc
import logging
import os
import pickle
import resource

import numpy as np
import pytest
import torch
from dummy_task import DummyDetector

from projects.bevformer.engine import checkpoint as module
from projects.bevformer.engine.checkpoint import (
    load_checkpoint,
    load_weights,
    publish_weights,
    save_checkpoint,
    to_plain,
)
from projects.bevformer.engine.resume import find_latest_checkpoint
from projects.bevformer.files.writing import link_to

LOGGER = logging.getLogger("test")


class RunsCode:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_saved_weights_optimizer_and_meta_come_back(tmp_path):
    detector = DummyDetector()
    optimizer = torch.optim.AdamW(detector.parameters())
    sum(p.sum() for p in detector.parameters()).backward()
    optimizer.step()
    detector.CLASSES = ("car", "bus")

    save_checkpoint(tmp_path / "a.pth", detector, optimizer, {"epoch": 3})
    loaded = load_checkpoint(tmp_path / "a.pth")

    assert loaded["meta"]["epoch"] == 3
    assert loaded["meta"]["CLASSES"] == ["car", "bus"]
    assert loaded["optimizer"]["state"].keys() == optimizer.state_dict()["state"].keys()
    for name, value in detector.state_dict().items():
        assert torch.equal(loaded["state_dict"][name], value)
    assert loaded["state_dict"]._metadata == detector.state_dict()._metadata
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_non_persistent_buffers_are_not_saved(tmp_path):
    save_checkpoint(tmp_path / "a.pth", DummyDetector())
    assert "grid" not in load_checkpoint(tmp_path / "a.pth")["state_dict"]


@pytest.mark.parametrize("half", [False, True])
def test_published_weights_hold_only_the_model(tmp_path, half):
    detector = DummyDetector()
    detector.CLASSES = ("car", "bus")
    optimizer = torch.optim.AdamW(detector.parameters())
    save_checkpoint(tmp_path / "a.pth", detector, optimizer, {"epoch": 3, "env_info": "machine"})

    publish_weights(tmp_path / "a.pth", tmp_path / "b.pth", half=half)
    published = load_checkpoint(tmp_path / "b.pth")

    assert published.keys() == {"meta", "state_dict"}
    assert published["meta"]["CLASSES"] == ["car", "bus"]
    assert published["meta"]["epoch"] == 3
    assert "env_info" not in published["meta"]
    other = DummyDetector()
    load_weights(other, published, "b.pth", LOGGER)
    for name, value in detector.state_dict().items():
        stored = published["state_dict"][name]
        assert stored.dtype == (torch.float16 if half and value.ndim > 1 else value.dtype)
        tolerance = 1e-3 if half and value.ndim > 1 else 0
        torch.testing.assert_close(other.state_dict()[name], value, rtol=tolerance, atol=1e-7)


def test_failed_save_keeps_the_earlier_file(tmp_path, monkeypatch):
    path = tmp_path / "a.pth"
    save_checkpoint(path, DummyDetector(), meta={"epoch": 1})

    def disk_full(obj, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.torch, "save", disk_full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(path, DummyDetector(), meta={"epoch": 2})
    assert load_checkpoint(path)["meta"]["epoch"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


@pytest.mark.parametrize("limit_bytes", [1, 64, 1000, 3000])
def test_an_error_of_the_disk_survives_torch_save(tmp_path, limit_bytes):
    """The writer of torch 1.10 ends the process if it meets one."""
    path = tmp_path / "a.pth"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limits[1]))
    try:
        with pytest.raises(OSError, match=r"a\.pth cannot be written \(File too large\)"):
            save_checkpoint(path, DummyDetector())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_latest_follows_the_newest(tmp_path):
    for epoch in (1, 2):
        save_checkpoint(tmp_path / f"epoch_{epoch}.pth", DummyDetector(), meta={"epoch": epoch})
        link_to(tmp_path / f"epoch_{epoch}.pth", tmp_path / "latest.pth")
    assert os.readlink(tmp_path / "latest.pth") == "epoch_2.pth"
    assert load_checkpoint(tmp_path / "latest.pth")["meta"]["epoch"] == 2


def test_to_plain_converts_scalars_and_refuses_objects():
    meta = {"a": np.int64(3), "b": (1, 2.5), "c": {1: None}, "d": torch.tensor(2.0)}
    plain = to_plain(meta)
    assert plain == {"a": 3, "b": [1, 2.5], "c": {"1": None}, "d": 2.0}
    assert type(plain["a"]) is int
    with pytest.raises(TypeError, match=r"meta\.list\[1\] is a object"):
        to_plain({"list": [1, object()]})


def test_checkpoints_that_would_run_code_are_refused(tmp_path):
    trap = tmp_path / "trap"
    torch.save({"state_dict": {}, "meta": RunsCode(trap)}, tmp_path / "a.pth")
    with open(tmp_path / "b.pth", "wb") as file:
        pickle.dump(RunsCode(trap), file)
    for name in ("a.pth", "b.pth"):
        with pytest.raises(ValueError, match=f"{name}"):
            load_checkpoint(tmp_path / name)
    assert not trap.exists()


def test_broken_files_are_named(tmp_path):
    path = tmp_path / "a.pth"
    with pytest.raises(FileNotFoundError, match=r"a\.pth does not exist"):
        load_checkpoint(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="truncated or not a torch file"):
        load_checkpoint(path)
    save_checkpoint(path, DummyDetector())
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ValueError, match="truncated or not a torch file"):
        load_checkpoint(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="holds a list"):
        load_checkpoint(path)
    torch.save({"state_dict": {"a": 1}}, path)
    with pytest.raises(ValueError, match="no state_dict of tensors"):
        load_checkpoint(path)


def test_bare_state_dicts_and_module_prefixes_load(tmp_path):
    source, target = DummyDetector(), DummyDetector()
    torch.save({f"module.{k}": v for k, v in source.state_dict().items()}, tmp_path / "a.pth")
    load_weights(target, load_checkpoint(tmp_path / "a.pth"), "a.pth", LOGGER)
    assert torch.equal(source.head.weight, target.head.weight)


def weights_of(detector):
    return {"state_dict": detector.state_dict(), "meta": {}}


def test_complete_loading_refuses_shape_mismatches_and_missing_weights():
    with pytest.raises(
        ValueError, match=r"img_backbone\.weight is \(8, 3\) in the file and \(4, 3\)"
    ):
        load_weights(DummyDetector(4), weights_of(DummyDetector(8)), "a.pth", LOGGER)
    checkpoint = weights_of(DummyDetector())
    del checkpoint["state_dict"]["head.weight"]
    with pytest.raises(ValueError, match=r"lacks 1 of 9 weights .*head\.weight"):
        load_weights(DummyDetector(), checkpoint, "a.pth", LOGGER)


def test_missing_batchnorm_counters_do_not_count():
    checkpoint = weights_of(DummyDetector())
    del checkpoint["state_dict"]["norm.num_batches_tracked"]
    load_weights(DummyDetector(), checkpoint, "a.pth", LOGGER)


def test_load_from_loads_what_fits_and_reports_the_rest(caplog):
    source, target = DummyDetector(), DummyDetector()
    checkpoint = weights_of(source)
    checkpoint["state_dict"]["head.weight"] = torch.zeros(2, 2)
    checkpoint["state_dict"]["fcos.head.scale"] = torch.zeros(1)
    before = target.head.weight.clone()
    with caplog.at_level(logging.INFO):
        load_weights(target, checkpoint, "a.pth", LOGGER, complete=False)
    assert torch.equal(target.img_backbone.weight, source.img_backbone.weight)
    assert torch.equal(target.head.weight, before)
    assert "8 of 9 weights loaded" in caplog.text
    assert "absent from the model: 1 fcos.head" in caplog.text
    assert "head.weight is (2, 2) in the file" in caplog.text
    with pytest.raises(ValueError, match="no weight that fits"):
        load_weights(target, {"state_dict": _renamed(source)}, "a.pth", LOGGER, complete=False)


def _renamed(detector):
    state = detector.state_dict()
    for name in list(state):
        state[f"other.{name}"] = state.pop(name)
    return state


def test_find_latest_skips_broken_files_and_other_names(tmp_path, caplog):
    assert find_latest_checkpoint(tmp_path, LOGGER) is None
    for name in (
        "epoch_2.pth",
        "epoch_9.pth",
        "epoch_10.pth",
        "pretrain.pth",
        "best_NDS_epoch_11.pth",
    ):
        save_checkpoint(tmp_path / name, DummyDetector())
    (tmp_path / "epoch_10.pth").write_bytes(b"PK broken")
    with caplog.at_level(logging.WARNING):
        assert find_latest_checkpoint(tmp_path, LOGGER).name == "epoch_9.pth"
    assert "skips epoch_10.pth" in caplog.text

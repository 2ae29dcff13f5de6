"""Files whose parts are of other kinds than a checkpoint's: one line, wherever they are read."""

import copy
import logging
import re

import pytest
import torch
from dummy_task import DummyDetector

from projects.bevformer.engine.checkpoint import load_checkpoint, publish_weights, save_checkpoint
from projects.bevformer.engine.checkpoint_checks import check_training_state
from projects.bevformer.engine.checkpoint_summary import describe
from projects.bevformer.engine.optimizer import fit_saved_state, saved_state
from projects.bevformer.engine.pretrained import checked_pretrained
from projects.bevformer.engine.provenance import check_same_classes, check_start

LOGGER = logging.getLogger("test")


@pytest.fixture
def trained():
    """A detector and an optimizer that has made a step."""
    detector = DummyDetector()
    optimizer = torch.optim.AdamW(detector.parameters())
    sum(p.sum() for p in detector.parameters()).backward()
    optimizer.step()
    return detector, optimizer


@pytest.fixture
def checkpoint(trained, tmp_path):
    meta = {"epoch": 1, "iter": 5, "world_size": 1, "hook_msgs": {}, "run": "a"}
    save_checkpoint(tmp_path / "good.pth", *trained, meta)
    return load_checkpoint(tmp_path / "good.pth")


def changed(checkpoint, key, value):
    """A copy with another value at a dotted key; for the last of its kind None removes it."""
    checkpoint = copy.deepcopy(checkpoint)
    *path, last = key.split(".")
    part = checkpoint
    for name in path:
        part = part[name]
    part[last] = value
    return checkpoint


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("meta", "text", "meta is 'text' (str), it must be a dict"),
        ("meta", [1], "meta is [1] (list), it must be a dict"),
        ("meta.CLASSES", 5, "meta.CLASSES is 5 (int), it must be a list of names"),
        ("meta.CLASSES", "car", "meta.CLASSES is 'car' (str), it must be a list of names"),
        ("meta.CAMERAS", [1, 2], "meta.CAMERAS is [1, 2] (list), it must be a list of names"),
        ("meta.trained_with", "text", "meta.trained_with is 'text' (str), it must be a dict"),
        ("meta.hook_msgs", "text", "meta.hook_msgs is 'text' (str), it must be a dict"),
        ("meta.hook_msgs", {"best_score": "x"}, "meta.hook_msgs.best_score is 'x'"),
        ("meta.hook_msgs", {"best_ckpt": 3}, "meta.hook_msgs.best_ckpt is 3"),
        ("meta.iter", 2**70, "meta.iter is 1180591620717411303424 (int)"),
        ("meta.epoch", "1", "meta.epoch is '1' (str), it must be a whole number from 0 on"),
        ("meta.iter", -5, "meta.iter is -5 (int), it must be a whole number from 0 on"),
        ("meta.iter", 2.5, "meta.iter is 2.5"),
        ("meta.iter_in_epoch", None, "meta.iter_in_epoch is None"),
        ("meta.world_size", 0, "meta.world_size is 0 (int), it must be a whole number from 1 on"),
        ("meta.total_batch", "8", "meta.total_batch is '8'"),
        (
            "meta.counted_in",
            "weeks",
            "meta.counted_in is 'weeks' (str), it must be 'epoch' or 'iter'",
        ),
        ("meta.mmdet3d_version", "x", "meta.mmdet3d_version is 'x'"),
        ("meta.config", {}, "meta.config is {} (dict), it must be text"),
        ("state_dict", {}, "no state_dict of tensors"),
    ],
)
def test_other_kinds_are_one_line_in_every_reader(checkpoint, tmp_path, key, value, message):
    path = tmp_path / "bad.pth"
    torch.save(changed(checkpoint, key, value), str(path))
    for read in (load_checkpoint, lambda path: publish_weights(path, tmp_path / "published.pth")):
        with pytest.raises(ValueError, match=re.escape(message)) as caught:
            read(path)
        assert str(path) in str(caught.value)
    assert not (tmp_path / "published.pth").exists()


def test_a_file_without_weights_is_refused(checkpoint, tmp_path):
    del checkpoint["state_dict"]
    torch.save(checkpoint, str(tmp_path / "bad.pth"))
    with pytest.raises(ValueError, match="no state_dict of tensors"):
        load_checkpoint(tmp_path / "bad.pth")


def test_metas_of_other_programs_are_accepted(checkpoint, tmp_path):
    meta = {
        "CLASSES": ("car",), "epoch": 24, "iter": 84408, "mmdet3d_version": "0.17.1", "seed": None,
        "hook_msgs": {"last_ckpt": "a.pth"}, "PALETTE": [[1, 2, 3]], "time": "Mon", "env_info": "",
    }  # fmt: skip
    torch.save({**checkpoint, "meta": meta}, str(tmp_path / "a.pth"))
    assert describe(load_checkpoint(tmp_path / "a.pth"), "a.pth")
    torch.save({**checkpoint, "meta": None}, str(tmp_path / "a.pth"))
    assert load_checkpoint(tmp_path / "a.pth")["meta"] == {}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("meta.iter_in_epoch", 9, "meta.iter_in_epoch is 9 (int), it must be at most iter, 5"),
        ("meta.hooks", {"EMAHook": 3}, "meta.hooks.EMAHook is 3 (int), it must be a dict"),
        ("meta.log_buffer", {"loss": [[1.0], "x"]}, "meta.log_buffer.loss is [[1.0], 'x']"),
        ("optimizer", [1], "optimizer is [1] (list), it must be a dict"),
        ("optimizer", {}, "optimizer.state is None"),
        ("optimizer.state", {0: 5}, "optimizer.state is {0: 5}"),
        ("optimizer.param_groups", [], "optimizer.param_groups is []"),
        ("optimizer.param_groups", [{"lr": 1.0}], "the `params` of each"),
        ("optimizer.param_groups", [{"params": ["a"]}], "the `params` of each"),
        ("optimizer.param_groups", [{"params": [0], "param_names": []}], "the `params` of each"),
        ("raw_weights", "text", "raw_weights is 'text'"),
        ("raw_weights", {3: torch.zeros(1)}, "a name in raw_weights is 3 (int), it must be text"),
        ("raw_weights", {"a": 1}, "raw_weights.a is 1 (int), it must be a tensor"),
        ("gradients", {"a": None}, "gradients.a is None"),
        ("ranks", "text", "ranks is 'text' (str), it must be a list"),
        ("ranks", [1], "ranks is [1]"),
        ("ranks", [{"random": 1}], "ranks[0].random is 1 (int), it must be a dict"),
        ("ranks", [{}, {"buffers": {"a": 1}}], "ranks[1].buffers.a is 1 (int)"),
    ],
)
def test_other_kinds_of_training_state_are_refused(checkpoint, key, value, message):
    check_training_state(checkpoint, "a.pth")
    with pytest.raises(ValueError, match=r"checkpoint a\.pth: .*" + re.escape(message)):
        check_training_state(changed(checkpoint, key, value), "a.pth")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exp_avg": None}, "lacks exp_avg"),
        ({"exp_avg": torch.zeros(7)}, "exp_avg of shape (7,) belongs to another parameter"),
        ({"exp_avg_sq": "text"}, "exp_avg_sq of shape str belongs to another parameter"),
        ({"step": "text"}, "its step is 'text'"),
    ],
)
def test_a_state_that_the_optimizer_cannot_go_on_with(trained, changes, message):
    detector, optimizer = trained
    saved = copy.deepcopy(saved_state(optimizer, detector))
    fit_saved_state(saved, optimizer, detector.named_parameters())
    saved["state"][0].update(changes)
    with pytest.raises(ValueError, match=re.escape(message)):
        fit_saved_state(saved, optimizer, detector.named_parameters())


def test_a_switched_on_amsgrad_is_an_error(trained):
    detector, optimizer = trained
    other = torch.optim.AdamW(detector.parameters(), amsgrad=True)
    with pytest.raises(ValueError, match="lacks max_exp_avg_sq"):
        fit_saved_state(saved_state(optimizer, detector), other, detector.named_parameters())


class Cfg(dict):
    """What `check_start` reads of a config."""


@pytest.mark.parametrize(
    ("classes", "text"),
    [(["a", "bus"], "this run has ['car', 'bus']:"), (["bus", "car"], "the same in another order")],
)
def test_weights_of_other_classes(checkpoint, caplog, classes, text):
    detector = DummyDetector()
    detector.CLASSES = ["car", "bus"]
    own = changed(checkpoint, "meta.CLASSES", ("car", "bus"))
    other = changed(checkpoint, "meta.CLASSES", classes)
    for check in (check_same_classes, lambda *a: check_start(*a[:2], Cfg(), a[2], LOGGER)):
        for fits in (own, changed(checkpoint, "meta.CLASSES", None)):
            check(fits, "a.pth", detector)
        with pytest.raises(ValueError, match=re.escape(text)) as caught:
            check(other, "a.pth", detector)
        assert "load_from_other_classes=True" in str(caught.value)
    with caplog.at_level(logging.WARNING):
        check_start(other, "a.pth", Cfg(load_from_other_classes=True), detector, LOGGER)
    assert f"was trained for the classes {classes}" in caplog.text
    weights = other["state_dict"]
    backbone = {name: weights[name] for name in weights if name.startswith("img_backbone.")}
    check_start({**other, "state_dict": backbone}, "a.pth", Cfg(), detector, LOGGER)
    fewer = changed(checkpoint, "meta.CLASSES", ["car"])
    check_start(fewer, "a.pth", Cfg(), detector, LOGGER)
    with pytest.raises(ValueError, match="trained for the classes"):
        check_same_classes(fewer, "a.pth", detector)


def test_pretrained_weights_of_other_classes_are_refused(checkpoint, tmp_path):
    path = str(tmp_path / "other.pth")
    torch.save(changed(checkpoint, "meta.CLASSES", ["bus", "car"]), path)
    detector = DummyDetector()
    detector.init_cfg = {"type": "Pretrained", "checkpoint": path}
    with checked_pretrained(detector, LOGGER) as loaded:
        detector.init_weights()
    assert len(loaded) == 9
    detector.CLASSES = ["car", "bus"]
    detector._is_init = False
    message = "the same in another order: name the file in load_from"
    with pytest.raises(ValueError, match=message), checked_pretrained(detector, LOGGER):
        detector.init_weights()


@pytest.mark.parametrize(
    "changes",
    [
        {"ranks": [{"random": {}, "buffers": {}}]},
        {"ranks": [{"random": {"python": 1, "numpy": 2, "torch": 3}, "buffers": {}}]},
        {"ranks": [{"random": {}, "buffers": {"norm.running_mean": torch.zeros(1)}}]},
        {"ranks": [{"random": {}, "buffers": {"other": torch.zeros(1)}}]},
        {"ranks": [{}]},
        {"gradients": {"head.weight": torch.zeros(3)}},
    ],
)
def test_a_run_state_that_cannot_be_set_is_refused(run, changes):
    path = run({"total_epochs": 1, "runner.max_epochs": 1}, validate=False) / "epoch_1.pth"
    torch.save({**torch.load(str(path)), **changes}, str(path))
    with pytest.raises(ValueError, match=r"epoch_1\.pth: its run state does not fit"):
        run({"resume_from": str(path)}, work_dir="b", validate=False)


def test_runs_refuse_weights_of_other_classes(run):
    path = run(validate=False) / "epoch_1.pth"
    checkpoint = torch.load(str(path))
    checkpoint["meta"]["CLASSES"].reverse()
    torch.save(checkpoint, str(path))
    for key in ("load_from", "resume_from"):
        with pytest.raises(ValueError, match="the same in another order"):
            run({key: str(path)}, work_dir="b", validate=False)
    run({"load_from": str(path), "load_from_other_classes": True}, work_dir="b", validate=False)

import logging
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
from dummy_task import REPOSITORY
from mmcv import Config
from tiny_bevformer import build_detector

from projects.bevformer.engine import provenance
from projects.bevformer.engine.config import load_config
from projects.bevformer.engine.provenance import (
    STAMP,
    check_provenance,
    disagreements,
    trained_with,
    training_stamp,
)

DETECTOR = OrderedDict(
    (f"pts_bbox_head.{name}.weight", torch.zeros(10, 4))
    for name in ("reg_branches.0.4", "transformer.can_bus_mlp.0")
)
OFFICIAL = {
    "box_convention": "wlh_negyaw",
    "rotate_center": [100.0, 100.0],
    "can_bus_quaternion": "official",
    "can_bus_message": "official",
    "can_bus_heading": "official",
    "lidar_axes": "official",
}
RANGE = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]


def config(**dataset):
    return Config({"data": {"train": dataset, "test": dataset}})


def detector(bev_h=50, bev_w=50, rotate_center=None, pc_range=RANGE):
    """What the stamp reads of a network."""
    encoder = SimpleNamespace(pc_range=pc_range)
    transformer = SimpleNamespace(rotate_center=rotate_center, encoder=encoder)
    head = SimpleNamespace(bev_h=bev_h, bev_w=bev_w, transformer=transformer)
    return SimpleNamespace(pts_bbox_head=head)


def checkpoint(weights=DETECTOR, **meta):
    return {"state_dict": weights, "meta": meta}


def test_the_stamp_holds_effective_values():
    assert training_stamp(config(), detector(bev_h=100, bev_w=200)) == {
        "box_convention": "wlh_negyaw",
        "rotate_center": [100.0, 50.0],
        "can_bus_quaternion": "wxyz",
        "can_bus_message": "same",
        "can_bus_heading": "wrapped",
        "lidar_axes": "lidar2ego",
        "replaced_parts": [],
    }
    ahead = detector(bev_h=100, bev_w=100, pc_range=[-51.2, 0.0, -5.0, 51.2, 102.4, 3.0])
    assert training_stamp(config(), ahead)["rotate_center"] == [50.0, 0.0]
    official = {name: "official" for name in OFFICIAL if name.startswith(("can_bus", "lidar"))}
    stamp = training_stamp(config(**official), detector(rotate_center=[100, 100]))
    assert stamp == {**OFFICIAL, "replaced_parts": []}
    assert training_stamp(config(), SimpleNamespace()) == {}  # a detector without a BEV


def test_the_grid_is_that_of_the_network():
    """Also where the config does not have it, and without a centre where the head does not either."""
    assert training_stamp(config(), build_detector())["rotate_center"] == [2.5, 2.0]
    for head in (SimpleNamespace(), SimpleNamespace(transformer=SimpleNamespace(), bev_h=3)):
        stamp = training_stamp(config(), SimpleNamespace(pts_bbox_head=head))
        assert "rotate_center" not in stamp
        assert stamp["can_bus_quaternion"] == "wxyz"
        meta = {"mmdet3d_version": "0.17.1"}  # its centre is known, that of the network is not
        own = disagreements(
            checkpoint(**meta), "a.pth", config(), SimpleNamespace(pts_bbox_head=head)
        )
        assert not [line for line in own if "rotate_center" in line]


@pytest.mark.parametrize("name", ["tiny", "small", "base"])
def test_official_recipes_fit_official_files(name):
    cfg = load_config(f"{REPOSITORY}/configs/bevformer/bevformer_{name}.py")
    centre = cfg.model.pts_bbox_head.transformer.rotate_center
    own = detector(rotate_center=centre)
    assert training_stamp(cfg, own) == {**OFFICIAL, "replaced_parts": []}
    assert disagreements(checkpoint(mmdet3d_version="0.17.1"), "a.pth", cfg, own) == []


def test_each_differing_quirk_is_one_line(caplog):
    logger = logging.getLogger("provenance")
    with caplog.at_level(logging.WARNING):
        official = checkpoint(mmdet3d_version="0.17.1")
        check_provenance(official, "a.pth", config(), detector(), logger)
    assert [record.getMessage().split(" (docs")[0] for record in caplog.records] == [
        f"checkpoint a.pth was trained with {difference}"
        for difference in (
            "can_bus_heading = official, this config has wrapped",
            "can_bus_message = official, this config has same",
            "can_bus_quaternion = official, this config has wxyz",
            "lidar_axes = official, this config has lidar2ego",
            "rotate_center = [100.0, 100.0], this config has [25.0, 25.0]",
        )
    ]


def test_matching_weights_and_backbones_do_not_warn():
    own = checkpoint(**{STAMP: training_stamp(config(), detector())})
    assert disagreements(own, "a.pth", config(), detector()) == []
    backbone = checkpoint({"img_backbone.conv1.weight": torch.zeros(1)}, mmdet3d_version="1.0.0")
    assert disagreements(backbone, "a.pth", config(), detector()) == []
    assert trained_with({}) == ({}, "unknown")


def test_parts_of_the_user_that_are_not_there_at_evaluation_are_named(monkeypatch):
    monkeypatch.setattr(provenance, "REPLACED_TYPES", {"NMSFreeCoder", "BBox3DL1Cost"})
    trained = checkpoint(**{STAMP: training_stamp(config(), detector())})
    monkeypatch.undo()
    (line,) = disagreements(trained, "a.pth", config(), detector())
    assert "replaced_parts = ['BBox3DL1Cost', 'NMSFreeCoder'], this config has []" in line


def test_unstamped_weights_in_a_config_without_the_quirks_are_one_line():
    (line,) = disagreements(checkpoint(), "a.pth", config(), detector())
    assert "a.pth does not say what it was trained with: official weights need the quirks" in line
    official = load_config(f"{REPOSITORY}/configs/bevformer/bevformer_tiny.py")
    centre = detector(rotate_center=[100, 100])
    assert disagreements(checkpoint(), "a.pth", official, centre) == []
    assert disagreements(checkpoint(), "a.pth", config(), SimpleNamespace()) == []


def test_a_network_without_history_has_no_quirks():
    weights = {name: value for name, value in DETECTOR.items() if "can_bus" not in name}
    assert (
        disagreements(checkpoint(weights, mmdet3d_version="0.17.1"), "a.pth", config(), detector())
        == []
    )
    assert disagreements(checkpoint(weights), "a.pth", config(), detector()) == []
    with pytest.raises(ValueError, match="whose boxes are lwh_yaw"):
        disagreements(checkpoint(weights, mmdet3d_version="1.0.0"), "a.pth", config(), detector())


@pytest.mark.parametrize("version", ["1.0.0rc0", "1.0.0rc6", "1.1.0"])
def test_weights_with_the_other_box_convention_are_refused(version):
    with pytest.raises(ValueError, match="mmdet3d 1.*, whose boxes are lwh_yaw"):
        disagreements(checkpoint(mmdet3d_version=version), "a.pth", config(), detector())

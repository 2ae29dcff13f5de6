import logging
from collections import OrderedDict

import pytest
import torch
from dummy_task import REPOSITORY
from mmcv import Config

from projects.bevformer.engine.config import load_config
from projects.bevformer.engine.provenance import (
    STAMP,
    check_provenance,
    disagreements,
    trained_with,
    training_stamp,
)

DETECTOR = OrderedDict({"pts_bbox_head.reg_branches.0.4.weight": torch.zeros(10, 4)})
OFFICIAL = {
    "box_convention": "wlh_negyaw",
    "rotate_center": [100.0, 100.0],
    "can_bus_quaternion": "official",
    "can_bus_message": "official",
    "can_bus_heading": "official",
    "lidar_axes": "official",
}
RANGE = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]


def config(bev=50, rotate_center=None, pc_range=RANGE, **dataset):
    transformer = {"rotate_center": rotate_center, "encoder": {"pc_range": pc_range}}
    head = {"bev_h": bev, "bev_w": bev, "transformer": transformer}
    return Config({"model": {"pts_bbox_head": head}, "data": {"train": dataset, "test": dataset}})


def checkpoint(weights=DETECTOR, **meta):
    return {"state_dict": weights, "meta": meta}


def test_the_stamp_holds_effective_values():
    assert training_stamp(config(bev=200)) == {
        "box_convention": "wlh_negyaw",
        "rotate_center": [100.0, 100.0],
        "can_bus_quaternion": "wxyz",
        "can_bus_message": "same",
        "can_bus_heading": "wrapped",
        "lidar_axes": "lidar2ego",
    }
    ahead = config(bev=100, pc_range=[-51.2, 0.0, -5.0, 51.2, 102.4, 3.0])
    assert training_stamp(ahead)["rotate_center"] == [50.0, 0.0]
    official = {name: "official" for name in OFFICIAL if name.startswith(("can_bus", "lidar"))}
    assert training_stamp(config(rotate_center=[100, 100], **official)) == OFFICIAL
    assert training_stamp(Config({"model": {"type": "Other"}, "data": {}})) == {}


@pytest.mark.parametrize("name", ["tiny", "small", "base"])
def test_official_recipes_fit_official_files(name):
    cfg = load_config(f"{REPOSITORY}/configs/bevformer/bevformer_{name}.py")
    assert training_stamp(cfg) == OFFICIAL
    assert disagreements(checkpoint(mmdet3d_version="0.17.1"), "a.pth", cfg) == []


def test_each_differing_quirk_is_one_line(caplog):
    logger = logging.getLogger("provenance")
    with caplog.at_level(logging.WARNING):
        check_provenance(checkpoint(mmdet3d_version="0.17.1"), "a.pth", config(), logger)
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


def test_matching_or_unstamped_weights_do_not_warn():
    own = checkpoint(**{STAMP: training_stamp(config())})
    assert disagreements(own, "a.pth", config()) == []
    assert disagreements(checkpoint(), "a.pth", config()) == []
    backbone = checkpoint({"img_backbone.conv1.weight": torch.zeros(1)}, mmdet3d_version="1.0.0")
    assert disagreements(backbone, "a.pth", config()) == []
    assert trained_with({}) == ({}, "unknown")


@pytest.mark.parametrize("version", ["1.0.0rc0", "1.0.0rc6", "1.1.0"])
def test_weights_with_the_other_box_convention_are_refused(version):
    with pytest.raises(ValueError, match="mmdet3d 1.*, whose boxes are lwh_yaw"):
        disagreements(checkpoint(mmdet3d_version=version), "a.pth", config())

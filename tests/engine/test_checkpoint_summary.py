import json
from collections import OrderedDict

import pytest
import torch
from dummy_task import REPOSITORY
from test_tools import load_tool

from projects.bevformer import compat  # noqa: F401  (makes mmdet3d importable)
from projects.bevformer.engine.checkpoint_summary import compare, describe
from projects.bevformer.engine.config import load_config


def official_weights(model):
    """The official model's names and shapes, without its numbers."""
    shapes = json.loads((REPOSITORY / "tests" / "parity" / f"state_dict_{model}.json").read_text())
    return OrderedDict((name, torch.zeros(()).expand(shape)) for name, shape in shapes.items())


def official_checkpoint(model, **meta):
    return {"state_dict": official_weights(model), "meta": {"mmdet3d_version": "0.17.1", **meta}}


@pytest.fixture
def tiny_config():
    return load_config(REPOSITORY / "configs" / "bevformer" / "bevformer_tiny.py")


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("tiny", {"backbone": "ResNet-50", "BEV": "50 x 50, 256 channels", "encoder": "3 layers"}),
        ("small", {"backbone": "ResNet-101 with DCNv2 in layer3, layer4", "neck": "1 level(s)"}),
        ("base", {"BEV": "200 x 200, 256 channels", "neck": "4 level(s)", "decoder": "6 layers"}),
    ],
)
def test_official_models_are_recognised(tmp_path, model, expected):
    path = tmp_path / "a.pth"
    path.write_bytes(b"")
    rows = dict(describe(official_checkpoint(model, epoch=24, CLASSES=["car", "bus"]), path))
    assert rows["kind"] == "BEVFormer"
    assert rows["trained"] == "epoch 24, origin mmdet3d 0.17.1"
    assert "rotate_center [100.0, 100.0]" in rows["trained with"]
    assert rows["classes"] == "car, bus"
    assert rows["object queries"] == "900"
    assert expected.items() <= rows.items()


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["conv1.weight", "layer1.0.conv1.weight"], "a bare ResNet"),
        (["backbone.conv1.weight", "bbox_head.cls_convs.0.conv.weight"], "not BEVFormer"),
        (["fc.weight"], "unknown: 1 fc.weight"),
    ],
)
def test_other_files_are_named(tmp_path, names, kind):
    path = tmp_path / "a.pth"
    path.write_bytes(b"")
    weights = OrderedDict((name, torch.zeros(1)) for name in names)
    assert kind in dict(describe({"state_dict": weights, "meta": {}}, path))["kind"]


def test_official_checkpoint_against_its_own_and_another_recipe(tiny_config):
    assert compare(official_checkpoint("tiny"), "a.pth", tiny_config) == [
        "643 of 643 weights of the model are in the file"
    ]
    tiny_config.model.pts_bbox_head.transformer.rotate_center = None
    tiny_config.data.test.classes = ["car"]
    lines = compare(official_checkpoint("small", CLASSES=["car", "bus"]), "a.pth", tiny_config)
    assert any("bev_embedding.weight is (22500, 256)" in line for line in lines)
    assert "trained for the classes ['car', 'bus'], the config has ['car']" in lines
    assert any("rotate_center = [100.0, 100.0], this config has [25.0, 25.0]" in x for x in lines)
    lines = compare(official_checkpoint("tiny", mmdet3d_version="1.0.0rc6"), "a.pth", tiny_config)
    assert any("whose boxes are lwh_yaw" in line for line in lines)


def test_file_of_another_backbone_is_reported(tiny_config):
    weights = OrderedDict(
        (name, value)
        for name, value in official_weights("tiny").items()
        if not name.startswith("img_backbone.layer4")
    )
    lines = compare({"state_dict": weights, "meta": {}}, "a.pth", tiny_config)
    assert lines[-1].endswith("(50 img_backbone.layer4): it is not of this backbone")


def test_inspect_checkpoint_prints_both_and_refuses_other_files(tmp_path, monkeypatch, capsys):
    tool = load_tool("inspect_checkpoint")
    path = tmp_path / "a.pth"
    torch.save({"img_backbone.conv1.weight": torch.zeros(64, 3, 7, 7)}, path)
    config = REPOSITORY / "configs" / "bevformer" / "bevformer_tiny.py"
    monkeypatch.setattr("sys.argv", ["tool.py", str(path), str(config), "--keys"])
    tool.main()
    printed = capsys.readouterr().out
    assert "1 of 643 weights of the model are in the file" in printed
    assert "img_backbone.conv1.weight (64, 3, 7, 7) torch.float32" in printed
    path.write_bytes(b"nothing")
    with pytest.raises(SystemExit, match="cannot be read"):
        tool.main()

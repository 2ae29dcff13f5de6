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
        (["model.conv1.weight", "model.fc.weight"], "a bare ResNet"),
        (["stem.stem_1/conv.weight"], "a bare VoVNet"),
        (["backbone.conv1.weight", "bbox_head.cls_convs.0.conv.weight"], "not BEVFormer"),
        (["fc.weight"], "unknown: 1 fc.weight"),
    ],
)
def test_other_files_are_named(tmp_path, names, kind):
    path = tmp_path / "a.pth"
    path.write_bytes(b"")
    weights = OrderedDict((name, torch.zeros(1)) for name in names)
    assert kind in dict(describe({"state_dict": weights, "meta": {}}, path))["kind"]


def test_vovnets_are_recognised(tmp_path):
    names = [
        f"stage{i}.OSA{i}_{j}.ese.fc.bias" for i, n in zip("2345", (1, 3, 9, 3)) for j in range(n)
    ]
    weights = {f"backbone.bottom_up.{name}": torch.zeros(1) for name in names}
    rows = dict(describe({"state_dict": weights, "meta": {}}, "https://x/a.pth"))
    assert rows["backbone"] == "VoVNet V2-99"
    assert rows["file"] == "https://x/a.pth"


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
    assert lines[-1] == (
        "50 weights of img_backbone are absent from the file (50 img_backbone.layer4), for example "
        "img_backbone.layer4.0.conv1.weight: they keep their initial values"
    )


def fcos3d(backbone="backbone."):
    """The layout of mmdet3d's FCOS3D weights, with the backbone of tiny."""
    weights = OrderedDict(
        (name.replace("img_backbone.", backbone), value)
        for name, value in official_weights("tiny").items()
        if name.startswith("img_backbone.")
    )
    weights["neck.fpn_convs.0.conv.weight"] = torch.zeros(256, 256, 3, 3)
    weights["bbox_head.conv_cls.weight"] = torch.zeros(10, 256, 1, 1)
    return {"state_dict": weights, "meta": {"mmdet3d_version": "0.13.0"}}


def test_fcos3d_file_is_a_start_and_has_no_quirks(tiny_config, tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(b"")
    rows = dict(describe(fcos3d(), path))
    assert "its backbone can be a start (load_from)" in rows["kind"]
    assert rows["trained with"] == "not stamped"
    lines = compare(fcos3d(), path, tiny_config)
    assert lines[0] == "319 of 643 weights of the model are in the file"
    assert lines[1] == "backbone.* of the file is taken as img_backbone.*"
    assert lines[2] == "neck.* of the file is taken as img_neck.*"
    assert lines[-1] == "absent from the model: 1 bbox_head.conv_cls"


def test_comparison_says_what_load_from_refuses(tiny_config):
    lines = compare(fcos3d("backbone.other."), "a.pth", tiny_config)
    assert "checkpoint a.pth is of another backbone, no weight fits" in lines[-1]


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


def test_inspect_checkpoint_names_tensors_that_are_not_finite(tmp_path, monkeypatch, capsys):
    tool = load_tool("inspect_checkpoint")
    path = tmp_path / "a.pth"
    weights = {"conv.weight": torch.tensor([1.0, float("nan")]), "conv.bias": torch.zeros(2)}
    torch.save({"state_dict": weights, "optimizer": {"state": {0: torch.tensor(1e999)}}}, path)
    monkeypatch.setattr("sys.argv", ["tool.py", str(path)])
    with pytest.raises(SystemExit, match="a.pth: 2 of 3 .*: conv.weight, optimizer.state.0 "):
        tool.main()
    assert "a.pth" in capsys.readouterr().out

"""Pretrained weights: where they are named, how their names are spelled, what is refused."""

import logging
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from hostile_files import hostile_weights
from mmcv import Config
from mmcv.runner import BaseModule, CheckpointLoader
from mmcv.runner import load_checkpoint as mmcv_load_checkpoint
from mmdet.models.builder import BACKBONES
from tiny_bevformer import CHANNELS, head_config
from torch import nn

from projects.bevformer.engine.build import build_detector, init_weights
from projects.bevformer.engine.checkpoint import load_checkpoint, load_weights

LOGGER = logging.getLogger("test")
NEW = 0.5  # all weights of the files


@BACKBONES.register_module()
class TwoConvs(BaseModule):
    """Two levels; the first convolution may be frozen."""

    def __init__(self, frozen=False, init_cfg=None):
        super().__init__(init_cfg)
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4))
        self.last = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False)
        self.stem.requires_grad_(not frozen)

    def forward(self, x):
        x = self.stem(x)
        return x, self.last(x)


@BACKBONES.register_module()
class ConvertsNames(TwoConvs):
    """Reads its file itself, as mmdet's Swin does."""

    def init_weights(self):
        weights = CheckpointLoader.load_checkpoint(self.init_cfg["checkpoint"])["state_dict"]
        weights = {name.replace("first", "stem"): value for name, value in weights.items()}
        self.load_state_dict(weights, strict=False)


@pytest.fixture
def config():
    model = dict(
        type="BEVFormer",
        img_backbone=dict(type="TwoConvs"),
        img_neck=dict(type="FPN", in_channels=[4, 6], out_channels=CHANNELS, num_outs=2),
        pts_bbox_head=head_config(),
    )
    return Config({"model": model})


def pretrained(path, **options):
    return dict(type="Pretrained", checkpoint=str(path), **options)


def start(config, **model):
    """The detector after its pretrained weights were loaded."""
    config.merge_from_dict({"model": model})
    detector = build_detector(config, pretrained=True)
    init_weights(detector, config, LOGGER)
    return detector


def save(path, weights, container="state_dict"):
    torch.save({container: weights} if container else weights, path)
    return str(path)


def backbone_weights(prefix="", drop=()):
    names = {name: value for name, value in TwoConvs().state_dict().items() if name not in drop}
    averaged = prefix.startswith("ema_")
    return {
        prefix + (name.replace(".", "_") if averaged else name): torch.full_like(value.float(), NEW)
        for name, value in names.items()
    }


def all_loaded(detector):
    return all((weight == NEW).all() for weight in detector.img_backbone.parameters())


PREFIXES = {
    "": "",
    "img_backbone.": "img_backbone.",
    "backbone.": "backbone.",
    "module.backbone.": "backbone.",  # DistributedDataParallel's is dropped
    "model.backbone.": "model.backbone.",
    "model.": "model.",
    "backbone.bottom_up.": "backbone.bottom_up.",
    "ema_backbone_": "ema_backbone_",
    "ema_img_backbone_": "ema_img_backbone_",
}


@pytest.mark.parametrize("prefix", PREFIXES)
def test_backbone_files_load_with_every_known_prefix(config, tmp_path, prefix, caplog):
    path = save(tmp_path / "a.pth", backbone_weights(prefix))
    with caplog.at_level(logging.INFO):
        assert all_loaded(start(config, pretrained=dict(img=path)))
    assert "8 of 8 weights of img_backbone loaded" in caplog.text
    line = f"{PREFIXES[prefix]}* of the file is taken as img_backbone.*"
    assert (line in caplog.text) == (prefix not in ("", "img_backbone."))

    detector = build_detector(config)
    load_weights(detector, load_checkpoint(path), path, LOGGER, complete=False)
    assert all_loaded(detector)


@pytest.mark.parametrize("container", ["model", None])
def test_weights_may_lie_under_other_keys(config, tmp_path, container):
    path = save(tmp_path / "a.pth", backbone_weights("backbone.bottom_up."), container)
    assert all_loaded(start(config, pretrained=path))  # a path alone is that of the backbone


def test_a_file_of_dd3d_loads_into_vovnet(config, tmp_path, caplog):
    options = dict(type="VoVNet", spec_name="V-19-slim-dw-eSE", frozen_stages=1)
    config.model.img_neck.in_channels = [256, 384]
    config.model.img_backbone = dict(**options, out_features=["stage3", "stage4"])
    names = build_detector(config).img_backbone.state_dict()
    weights = {
        f"backbone.bottom_up.{name}": torch.full_like(value, NEW)
        for name, value in names.items()
        if value.is_floating_point()
    }
    weights["backbone.fpn_lateral3.weight"] = torch.zeros(1)
    path = save(tmp_path / "a.pth", weights, "model")
    with caplog.at_level(logging.INFO):
        assert all_loaded(start(config, pretrained=path))
    assert "absent from the model: 1 backbone.fpn_lateral3" in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    detector = build_detector(config)
    load_weights(detector, load_checkpoint(path), path, LOGGER, complete=False)
    assert all_loaded(detector)


def test_own_names_win_over_averaged_copies_of_the_same_file(config, tmp_path, caplog):
    averaged = {name: 2 * value for name, value in backbone_weights("ema_img_backbone_").items()}
    path = save(tmp_path / "a.pth", {**averaged, **backbone_weights("img_backbone.")})
    with caplog.at_level(logging.INFO):
        assert all_loaded(start(config, pretrained=dict(img=path)))
    assert "absent from the model: 8 ema_*" in caplog.text


def test_load_from_takes_backbone_and_neck_of_another_detector(config, tmp_path, caplog):
    neck = build_detector(config).img_neck.state_dict()
    weights = {f"neck.{name}": torch.full_like(value, NEW) for name, value in neck.items()}
    path = save(tmp_path / "a.pth", {**weights, **backbone_weights("backbone.")})
    detector = build_detector(config)
    with caplog.at_level(logging.INFO):
        load_weights(detector, load_checkpoint(path), path, LOGGER, complete=False)
    assert all_loaded(detector)
    assert all((weight == NEW).all() for weight in detector.img_neck.parameters())
    assert "neck.* of the file is taken as img_neck.*" in caplog.text


WAYS = {
    "pretrained": lambda path: dict(pretrained=dict(img=path)),
    "img_backbone": lambda path: dict(img_backbone=dict(init_cfg=pretrained(path))),
    "own way": lambda path: dict(
        img_backbone=dict(type="ConvertsNames", init_cfg=pretrained(path))
    ),
    "img_neck": lambda path: dict(img_neck=dict(init_cfg=[pretrained(path)])),
    "pts_bbox_head": lambda path: dict(pts_bbox_head=dict(init_cfg=pretrained(path))),
    "transformer": lambda path: dict(
        pts_bbox_head=dict(transformer=dict(init_cfg=pretrained(path)))
    ),
    "encoder": lambda path: dict(
        pts_bbox_head=dict(transformer=dict(encoder=dict(init_cfg=pretrained(path))))
    ),
    "model": lambda path: dict(init_cfg=pretrained(path)),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_file_of_which_nothing_fits_is_refused_wherever_it_is_given(config, tmp_path, way):
    path = save(tmp_path / "a.pth", {"cls.weight": torch.zeros(3), "cls.bias": torch.zeros(1)})
    before = CheckpointLoader.load_checkpoint
    message = r"a\.pth has no weight that fits .*has 2 \(cls\.weight, cls\.bias\), .* \d+ \(\w+"
    with pytest.raises(ValueError, match=message):
        start(config, **WAYS[way](path))
    assert CheckpointLoader.load_checkpoint is before


HOSTILE = {
    name: content
    for name, content in hostile_weights("ran").items()
    if name in ("runs in meta", "a bit flipped", "tensor that lies", "runs value, protocol 2")
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("way", WAYS)
def test_hostile_files_are_refused_wherever_they_are_given(
    config, tmp_path, monkeypatch, way, name
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pth").write_bytes(HOSTILE[name])
    with pytest.raises(ValueError, match=r"^checkpoint a\.pth (holds|cannot)") as caught:
        start(config, **WAYS[way]("a.pth"))
    assert "weights_only" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


@BACKBONES.register_module()
class ReadsWhenBuilt(TwoConvs):
    """Loads a file in its constructor, as teachers of distillation do."""

    def __init__(self, init_cfg=None):
        super().__init__()
        mmcv_load_checkpoint(self, init_cfg["checkpoint"])


def test_parts_that_read_a_file_when_they_are_built(config, tmp_path):
    path = save(tmp_path / "a.pth", backbone_weights())
    part = dict(img_backbone=dict(type="ReadsWhenBuilt", init_cfg=dict(checkpoint=path)))
    config.merge_from_dict({"model": part})
    assert all_loaded(build_detector(config))
    Path(path).write_bytes(HOSTILE["runs in meta"])
    with pytest.raises(ValueError, match=r"a\.pth holds a Python object"):
        build_detector(config)


@pytest.mark.parametrize("way", ["pts_bbox_head", "transformer", "encoder"])
def test_weights_of_inner_parts_are_not_initialised_over(config, tmp_path, way):
    parts = {"pts_bbox_head": "", "transformer": "transformer.", "encoder": "transformer.encoder."}
    names = build_detector(config).pts_bbox_head.state_dict()
    weights = {
        name[len(parts[way]) :]: torch.full_like(value, NEW)
        for name, value in names.items()
        if name.startswith(parts[way])
    }
    detector = start(config, **WAYS[way](save(tmp_path / "a.pth", weights)))
    loaded = detector.pts_bbox_head.state_dict()
    assert all((loaded[parts[way] + name] == NEW).all() for name in weights)


def test_a_network_whose_weights_follow_reads_no_pretrained_file(config):
    config.merge_from_dict({"model": WAYS["encoder"]("gone.pth")})
    build_detector(config)
    with pytest.raises(FileNotFoundError, match=r"gone\.pth does not exist"):
        start(config)


def test_a_backbone_of_which_nothing_fits_is_refused_by_load_from(config):
    head = build_detector(config).pts_bbox_head.state_dict()
    weights = {f"pts_bbox_head.{name}": value for name, value in head.items()}
    load_weights(build_detector(config), {"state_dict": weights, "meta": {}}, "a", LOGGER, False)
    weights["backbone.conv.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"another backbone.* 1 \(backbone\.conv.* 8 \(img_backb"):
        load_weights(
            build_detector(config), {"state_dict": weights, "meta": {}}, "a", LOGGER, False
        )


def test_missing_and_reshaped_weights_are_counted_with_an_example(config, tmp_path, caplog):
    weights = backbone_weights(drop=("stem.0.bias", "stem.1.bias"))
    weights["last.weight"] = torch.zeros(6, 4, 1, 1)
    start(config, pretrained=save(tmp_path / "a.pth", weights))
    assert "2 weights of img_backbone are absent from the file" in caplog.text
    assert "for example img_backbone.stem.0.bias" in caplog.text
    assert "1 weights of img_backbone have another shape" in caplog.text
    assert "img_backbone.last.weight is (6, 4, 1, 1) in the file and (6, 4, 3, 3)" in caplog.text


@pytest.mark.parametrize(("drop", "warned"), [((), False), (("stem.0.weight",), True)])
def test_frozen_weights_that_the_file_lacks_are_named(config, tmp_path, drop, warned, caplog):
    path = save(tmp_path / "a.pth", backbone_weights(drop=drop))
    start(config, img_backbone=dict(frozen=True, init_cfg=pretrained(path)))
    line = "freezes stages of random weights, 1 (img_backbone.stem.0.weight)"
    assert (line in caplog.text) == warned


def test_parts_that_read_their_file_themselves(config, tmp_path, caplog):
    weights = {
        name.replace("stem", "first"): value for name, value in backbone_weights("module.").items()
    }
    path = save(tmp_path / "a.pth", weights)
    with caplog.at_level(logging.INFO):
        detector = start(config, img_backbone=dict(type="ConvertsNames", init_cfg=pretrained(path)))
    assert all_loaded(detector)
    assert "2 of 8 weights of img_backbone are of the file" in caplog.text


def test_mmdets_swin_reads_its_file_or_it_is_refused(config, tmp_path, caplog):
    config.model.img_neck.in_channels = [24, 48]
    path = tmp_path / "a.pth"
    config.model.img_backbone = dict(
        type="SwinTransformer", embed_dims=12, depths=(1, 1, 1, 1), num_heads=(1, 2, 3, 6),
        out_indices=(1, 2),
    )  # fmt: skip
    config.model.pretrained = dict(img=str(path))
    names = build_detector(config).img_backbone.state_dict()
    save(path, {f"backbone.{name}": torch.randn(value.shape) for name, value in names.items()})
    with caplog.at_level(logging.INFO):
        start(config)
    assert "weights of img_backbone are of the file" in caplog.text
    save(path, {"cls.weight": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"no weight that fits the part .* has 1 \(cls\.weight\)"):
        start(config)


def test_prefix_of_init_cfg(config, tmp_path):
    path = save(tmp_path / "a.pth", backbone_weights("teacher.net."))
    assert all_loaded(
        start(config, img_backbone=dict(init_cfg=pretrained(path, prefix="teacher.net")))
    )
    with pytest.raises(
        ValueError, match=r"begins with student\., .*img_backbone.*teacher\.net\.stem"
    ):
        start(config, img_backbone=dict(init_cfg=pretrained(path, prefix="student")))


def test_public_names_are_read_safely_from_the_cache(config, tmp_path, monkeypatch, capsys):
    fetched = []

    def download(url, path, progress):
        fetched.append(url)
        torch.save(backbone_weights(), path)

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        assert all_loaded(start(config, pretrained=dict(img="torchvision://resnet50")))
    assert capsys.readouterr().out == ""
    (url,) = fetched
    (path,) = tmp_path.rglob("*.pth")
    assert path.name == Path(url).name
    torch.save({"state_dict": backbone_weights(), "meta": LOGGER.handlers.append}, path)
    with pytest.raises(ValueError, match="holds a Python object"):
        start(config, pretrained=dict(img="torchvision://resnet50"))
    with pytest.raises(ValueError, match="torchvision://resnet51: torchvision has no resnet51"):
        start(config, pretrained=dict(img="torchvision://resnet51"))
    with pytest.raises(ValueError, match="s3:// is not one of http"):
        load_checkpoint("s3://bucket/a.pth")


def test_weights_that_cannot_be_downloaded_are_named(tmp_path, monkeypatch):
    def download(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with pytest.raises(ValueError, match=r"https://x/a\.pth.*no network.*pretrained\.img=FILE"):
        load_checkpoint("https://x/a.pth")


def test_a_folder_is_not_a_checkpoint(tmp_path):
    (tmp_path / "latest.pth").touch()
    with pytest.raises(
        ValueError, match=r"is a folder: name one of its files, such as .*latest\.pth"
    ):
        load_checkpoint(tmp_path)

import logging
import os

import pytest
import torch
from mmcv import Config
from mmdet.models import build_backbone
from tiny_bevformer import build_detector

from projects.bevformer import compat
from projects.bevformer.engine import train as train_module
from projects.bevformer.engine.determinism import make_deterministic, unrepeatable_parts
from projects.bevformer.engine.seed import set_seed

DCN = dict(type="TorchvisionDCNv2", deform_groups=1, fallback_on_stride=False)


@pytest.fixture(autouse=True)
def _undone(monkeypatch):
    """What the process uses is as before afterwards."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "restored")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    monkeypatch.delenv("BEVFORMER_MSDA", raising=False)
    for name in ("deterministic", "benchmark"):
        monkeypatch.setattr(torch.backends.cudnn, name, getattr(torch.backends.cudnn, name))
    yield
    torch.use_deterministic_algorithms(False)


def test_deterministic_mode_warns_about_nondeterministic_operators():
    set_seed(0)
    assert not torch.are_deterministic_algorithms_enabled()
    set_seed(0, deterministic=True)
    assert torch.are_deterministic_algorithms_enabled() == compat.CAN_WARN_OF_NONDETERMINISM
    if compat.CAN_WARN_OF_NONDETERMINISM:
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_torch_1_10_is_unchanged(monkeypatch):
    monkeypatch.setattr(compat, "CAN_WARN_OF_NONDETERMINISM", False)
    make_deterministic()
    assert not torch.are_deterministic_algorithms_enabled()


def test_existing_cublas_workspace_config_is_kept(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    make_deterministic()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def config(backend=None, **step):
    pipeline = [{"type": "GlobalRotScaleTransImage", **step}]
    return Config(dict(data=dict(train=dict(pipeline=pipeline)), deform_attn_backend=backend))


def test_unrepeatable_parts_are_named(monkeypatch):
    detector = build_detector()
    assert unrepeatable_parts(config("lean"), detector) == []
    assert "'reference'" in unrepeatable_parts(config("reference"), detector)[0]
    assert "only_gt" in unrepeatable_parts(config("lean", only_gt=True), detector)[0]
    monkeypatch.setenv("BEVFORMER_MSDA", "triton")
    assert "'triton'" in unrepeatable_parts(config("lean"), detector)[0]


def test_only_trainable_layers_are_named():
    backbone = dict(
        type="ResNet", depth=50, base_channels=8, dcn=DCN, stage_with_dcn=(False, False, True, True)
    )  # fmt: skip
    detector = torch.nn.Module()
    detector.img_backbone = build_backbone(backbone)
    convolutions, pooling = unrepeatable_parts(config("lean"), detector)
    assert convolutions == "9 deformable convolutions"
    assert "max-pooling" in pooling
    detector.img_backbone = build_backbone({**backbone, "frozen_stages": 4})
    assert unrepeatable_parts(config("lean"), detector) == []


def messages_of(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "test"]


def test_one_line_of_the_log_names_them(monkeypatch, caplog):
    logger = logging.getLogger("test")
    train_module._warn_of_unrepeatable_parts(config("reference"), build_detector(), logger)
    monkeypatch.setattr(compat, "CAN_WARN_OF_NONDETERMINISM", True)
    train_module._warn_of_unrepeatable_parts(config("lean"), build_detector(), logger)
    (line,) = messages_of(caplog)
    assert "differ from run to run" in line
    assert "'reference'" in line
    monkeypatch.setattr(compat, "CAN_WARN_OF_NONDETERMINISM", False)
    train_module._warn_of_unrepeatable_parts(config("lean"), build_detector(), logger)
    assert "torch 1.10" in messages_of(caplog)[1]

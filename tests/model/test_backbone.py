import logging

import pytest
import torch
from mmdet.models.builder import build_backbone
from torch import nn

from projects.bevformer import compat
from projects.bevformer.model.mm.backbone import CheckpointedResNet
from projects.bevformer.model.mm.deform_conv import TorchvisionDCNv2
from projects.bevformer.model.mm.norms import LeanBatchNorm2d
from projects.bevformer.model.mm.replacements import replace_type
from projects.bevformer.published import translate

RESNET = dict(
    type="ResNet",
    depth=50,
    base_channels=8,
    out_indices=(1, 2, 3),
    frozen_stages=1,
    norm_cfg=dict(type="BN2d", requires_grad=False),
    norm_eval=True,
    style="caffe",
    dcn=dict(type="TorchvisionDCNv2", deform_groups=1, fallback_on_stride=False),
    stage_with_dcn=(False, False, True, True),
)


def translated(config):
    return translate(config, replace_type, logging.getLogger("mmdet3d"))


def build(seed=0, efficient=True, **options):
    torch.manual_seed(seed)
    config = dict(RESNET, **options)
    backbone = build_backbone(translated(config) if efficient else config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in backbone.state_dict().items():
            if "conv_offset" in name:
                tensor.normal_(std=0.05, generator=generator)
            elif "running_var" in name:
                tensor.uniform_(0.5, 2.0, generator=generator)
            elif "running_mean" in name:
                tensor.normal_(generator=generator)
    backbone.train()
    return backbone


def gradients(backbone, images):
    """Sum of squares of all levels, and what it sends to every weight."""
    backbone.zero_grad()
    loss = sum(level.square().mean() for level in backbone(images))
    loss.backward()
    return loss, {n: p.grad for n, p in backbone.named_parameters() if p.grad is not None}


def kept_activations(backbone, images):
    """How many numbers autograd keeps besides the weights, each storage once."""
    weights = {tensor.data_ptr() for tensor in backbone.state_dict().values()}
    kept = {}

    def pack(tensor):
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        levels = backbone(images)
    del levels  # they keep the tensors alive, so that no address is used twice
    return sum(kept.values())


@pytest.fixture(scope="module")
def pictures():
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("with_cp", [False, True])
def test_it_is_the_same_network(pictures, with_cp):
    plain, efficient = build(efficient=False), build(with_cp=with_cp)
    assert isinstance(efficient, CheckpointedResNet) == with_cp
    efficient.load_state_dict(plain.state_dict(), strict=True)
    loss, expected = gradients(plain, pictures)
    efficient_loss, grads = gradients(efficient, pictures)
    torch.testing.assert_close(efficient_loss, loss)
    assert grads.keys() == expected.keys()
    for name, grad in expected.items():
        assert grad.abs().sum() > 0, name
        torch.testing.assert_close(grads[name], grad, rtol=1e-3, atol=1e-6)
    for ours, theirs in zip(efficient(pictures), plain(pictures)):
        torch.testing.assert_close(ours, theirs)


def test_frozen_norms_and_checkpoints_keep_less(pictures):
    plain, lean, checkpointed = (
        kept_activations(backbone, pictures)
        for backbone in (build(efficient=False), build(), build(with_cp=True))
    )
    assert lean < 0.75 * plain
    assert checkpointed < 0.6 * lean


def test_without_gradient_nothing_is_recomputed(pictures, monkeypatch):
    monkeypatch.setattr(compat, "torch_checkpoint", None)
    backbone = build(with_cp=True)
    with torch.no_grad():
        backbone(pictures)


def test_trainable_norms_are_not_replaced(pictures):
    options = dict(norm_cfg=dict(type="BN", requires_grad=True), norm_eval=False, frozen_stages=-1)
    plain, efficient = build(efficient=False, **options), build(**options)
    efficient.load_state_dict(plain.state_dict(), strict=True)
    for ours, theirs in zip(efficient(pictures), plain(pictures)):
        torch.testing.assert_close(ours, theirs)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(efficient.state_dict()[name], value, msg=name)


def test_types_that_are_replaced(monkeypatch):
    monkeypatch.setattr(compat, "mmcv_has_cuda_operators", lambda: False)
    config = dict(RESNET, dcn=dict(type="DCNv2", deform_groups=1), with_cp=True)
    before = dict(config)
    efficient = translated(config)
    assert config == before
    assert efficient["dcn"] == dict(type="TorchvisionDCNv2", deform_groups=1)
    assert efficient["norm_cfg"] == dict(type="LeanBN2d", requires_grad=False)
    backbone = build_backbone(efficient)
    kinds = {type(module) for module in backbone.modules()}
    assert {LeanBatchNorm2d, TorchvisionDCNv2} <= kinds
    assert nn.BatchNorm2d not in kinds
    monkeypatch.setattr(compat, "mmcv_has_cuda_operators", lambda: True)
    assert translated(config)["dcn"]["type"] == "DCNv2"


def test_other_backbones_are_unchanged():
    config = dict(type="SwinTransformer", with_cp=True, norm_cfg=dict(type="LN"))
    assert translated(config) == config
    plain = dict(type="ResNet", depth=50)
    assert translated(plain) == plain

"""The backbones of small and base are the same on mmcv's DCNv2 operator and on torchvision's."""

import pytest
import torch
from mmdet.models.builder import build_backbone, build_neck
from parity_inputs import parity_weights
from reduced_inputs import images, reduced_config

pytestmark = pytest.mark.parity


def features_and_gradients(size, dcn):
    """Image features of two cameras and the gradients of all trainable weights."""
    cfg = reduced_config(size).model
    cfg.img_backbone.dcn.type = dcn
    model = torch.nn.Sequential(build_backbone(cfg.img_backbone), build_neck(cfg.img_neck))
    model.load_state_dict(parity_weights(model.state_dict()), strict=True)
    levels = model.train()(images(0, 0)[:2])
    sum(level.square().sum() for level in levels).backward()
    return levels, {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("size", ["small", "base"])
def test_mmcvs_and_torchvisions_operator_agree(size):
    levels, gradients = features_and_gradients(size, "TorchvisionDCNv2")
    expected_levels, expected_gradients = features_and_gradients(size, "DCNv2")
    assert len(levels) == dict(small=1, base=4)[size]
    for level, expected in zip(levels, expected_levels):
        assert (level - expected).norm() < 1e-4 * expected.norm()
    assert gradients.keys() == expected_gradients.keys()
    assert sum("conv_offset" in name for name in gradients) == 2 * (23 + 3)
    for name, expected in expected_gradients.items():
        assert expected.any(), name
        assert (gradients[name] - expected).norm() < 1e-2 * expected.norm(), name

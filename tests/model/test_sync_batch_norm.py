import torch
from mmcv.cnn import build_norm_layer
from torch import nn

from projects.bevformer.model.mm.sync_batch_norm import on_any_device


def test_on_a_cpu_it_is_a_batch_norm():
    name, norm = build_norm_layer(on_any_device(dict(type="SyncBN", eps=1e-3)), 4, postfix=1)
    plain = nn.BatchNorm2d(4, eps=1e-3)
    assert name == "bn1"
    assert isinstance(norm, nn.SyncBatchNorm)
    assert list(norm.state_dict()) == list(plain.state_dict())
    x = torch.randn(2, 4, 3, 5) * 2 + 1
    torch.testing.assert_close(norm(x), plain(x))
    torch.testing.assert_close(norm.running_var, plain.running_var)
    torch.testing.assert_close(norm.eval()(x), plain.eval()(x))


def test_other_norms_stay():
    cfg = dict(type="GN", num_groups=4)
    assert on_any_device(cfg) is cfg

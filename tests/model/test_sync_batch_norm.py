import torch
from mmcv.cnn import build_norm_layer
from torch import nn

from projects.bevformer.model.mm.replacements import replace_type


def test_on_a_cpu_it_is_a_batch_norm():
    name, norm = build_norm_layer(replace_type(dict(type="SyncBN", eps=1e-3)), 4, postfix=1)
    plain = nn.BatchNorm2d(4, eps=1e-3)
    assert name == "bn1"
    assert isinstance(norm, nn.SyncBatchNorm)
    assert list(norm.state_dict()) == list(plain.state_dict())
    x = torch.randn(2, 4, 3, 5) * 2 + 1
    torch.testing.assert_close(norm(x), plain(x))
    torch.testing.assert_close(norm.running_var, plain.running_var)
    torch.testing.assert_close(norm.eval()(x), plain.eval()(x))

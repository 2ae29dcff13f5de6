import pytest
import torch
from mmdet.models.losses import FocalLoss

from projects.bevformer.model.mm.focal_loss import TorchFocalLoss

OPTIONS = dict(use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=2.0)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [True, False])
def test_equals_mmdets(reduction, weighted):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20, 4, generator=generator)
    target = torch.randint(0, 5, (20,), generator=generator)  # 4 is background
    weight = torch.rand(20, generator=generator) if weighted else None
    ours, theirs = TorchFocalLoss(**OPTIONS), FocalLoss(**OPTIONS)
    expected = theirs(logits, target, weight, reduction_override=reduction)
    torch.testing.assert_close(ours(logits, target, weight, reduction_override=reduction), expected)


def test_average_factor_divides_the_sum():
    logits, target = torch.zeros(1, 2), torch.tensor([1])
    # Positive: 0.25 * 0.5^2 * log 2; negative: 0.75 * 0.5^2 * log 2; times the loss weight 2.
    expected = 2 * 0.25 * torch.tensor(2.0).log() / 4
    torch.testing.assert_close(TorchFocalLoss(**OPTIONS)(logits, target, avg_factor=4.0), expected)

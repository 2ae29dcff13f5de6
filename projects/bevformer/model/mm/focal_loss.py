"""Losses that mmdet computes with compiled CUDA code on a GPU, in PyTorch."""

import torch
from mmdet.models.builder import LOSSES
from mmdet.models.losses import FocalLoss
from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss


@LOSSES.register_module()
class TorchFocalLoss(FocalLoss):
    """mmdet's sigmoid FocalLoss through its own PyTorch formula on every device.

    mmdet's class calls mmcv's compiled operator for CUDA tensors, which an mmcv-full built without
    CUDA does not have. The numbers are the same.
    """

    def forward(self, pred, target, weight=None, avg_factor=None, reduction_override=None):
        """Weighted focal loss.

        Args:
            pred: (X, K) logits.
            target: (X,) class indices; K is background.
            weight: (X,) or None.
            avg_factor: what the sum is divided by; None is X.
            reduction_override: instead of the constructor's reduction.

        Returns:
            The loss, a scalar unless the reduction is "none".
        """
        one_hot = target[:, None] == torch.arange(pred.size(1), device=pred.device)
        return self.loss_weight * py_sigmoid_focal_loss(
            pred,
            one_hot,
            weight,
            gamma=self.gamma,
            alpha=self.alpha,
            reduction=reduction_override or self.reduction,
            avg_factor=avg_factor,
        )

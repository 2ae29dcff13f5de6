"""Normalisation layers: less memory while frozen, any device, any autocast state."""

import torch
import torch.nn.functional as F
from mmcv.cnn import NORM_LAYERS
from torch import nn


class WeightPrecisionLayerNorm(nn.LayerNorm):
    """LayerNorm in the precision of its weights, in any autocast state.

    CUDA's autocast does this anyway; the CPU's does not, and torch 1.10 refuses bfloat16 inputs with
    float32 weights there.
    """

    def forward(self, x):
        """(..., C) -> (..., C) in the dtype of the weights."""
        return super().forward(x.to(self.weight.dtype))


class _FrozenBatchNorm(torch.autograd.Function):
    """Normalisation by fixed statistics: (B, C, H, W) -> (B, C, H, W), linear in its input.

    PyTorch's own keeps the input for the gradients of the weights even where these get none.
    """

    @staticmethod
    def forward(ctx, x, running_mean, running_var, weight, bias, eps):
        ctx.save_for_backward(running_var, weight)
        ctx.eps = eps
        return F.batch_norm(x, running_mean, running_var, weight, bias, training=False, eps=eps)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        running_var, weight = ctx.saved_tensors
        # Scale the gradient like the input, with the same kernel: it takes half precision with
        # float32 weights and rounds once.
        grad_x = F.batch_norm(
            grad, torch.zeros_like(running_var), running_var, weight, training=False, eps=ctx.eps
        )
        return grad_x, None, None, None, None, None


@NORM_LAYERS.register_module(name="LeanBN2d")
class LeanBatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d, number for number, that saves no activation for backward while it is frozen.

    Frozen means in eval mode with weights that need no gradient, as in a backbone with
    `norm_cfg=dict(requires_grad=False)` and `norm_eval=True`. Parameters and buffers are those of
    nn.BatchNorm2d.
    """

    def forward(self, x):
        """(B, C, H, W) -> (B, C, H, W)."""
        learns = self.affine and (self.weight.requires_grad or self.bias.requires_grad)
        if self.training or learns or not self.track_running_stats or not x.requires_grad:
            return super().forward(x)  # without a gradient: also for exported graphs
        return _FrozenBatchNorm.apply(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.eps
        )


@NORM_LAYERS.register_module(name="SyncBNOnGPU")
class SyncBatchNormOnGPU(nn.SyncBatchNorm):
    """nn.SyncBatchNorm that is a plain batch norm for tensors on a CPU, where PyTorch has none.

    Parameters and buffers are those of nn.SyncBatchNorm. On CPUs each process normalises by its own
    statistics: with several processes the running statistics then differ among them.
    """

    def forward(self, x):
        """(B, C, ...) -> (B, C, ...)."""
        if x.is_cuda:
            return super().forward(x)
        return nn.modules.batchnorm._BatchNorm.forward(self, x)

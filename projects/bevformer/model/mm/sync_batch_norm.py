"""Batch normalisation over all processes, where there is a GPU to do it."""

from mmcv.cnn import NORM_LAYERS
from torch import nn


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


def on_any_device(norm_cfg):
    """The config of a norm layer with SyncBN replaced by SyncBNOnGPU; others as they are."""
    return dict(norm_cfg, type="SyncBNOnGPU") if norm_cfg["type"] == "SyncBN" else norm_cfg

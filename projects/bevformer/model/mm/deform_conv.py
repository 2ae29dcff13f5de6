"""Modulated deformable convolution (DCNv2) on torchvision's operator.

mmcv's own DCNv2 needs its compiled CUDA code on a GPU; torchvision's wheels bring theirs.
"""

import torch
from mmcv.cnn import CONV_LAYERS
from torch import nn
from torch.nn.modules.utils import _pair
from torchvision.ops import deform_conv2d

from projects.bevformer.geometry.precision import full_precision


@CONV_LAYERS.register_module()
class TorchvisionDCNv2(nn.Module):
    """DCNv2 that predicts its own offsets and masks; parameter names are those of mmcv's `DCNv2`.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel_size: int or pair.
        stride: int or pair.
        padding: int or pair.
        dilation: int or pair.
        groups: of the convolution.
        deform_groups: channel groups with offsets of their own.
        bias: adds a bias; mmdet's ResNet asks for none.

    Source: Deformable ConvNets v2 (arXiv 1811.11168).
    """

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        stride=1,
        padding=0,
        dilation=1,
        groups=1,
        deform_groups=1,
        bias=True,
    ):
        super().__init__()
        self.kernel_size = _pair(kernel_size)
        self.stride = _pair(stride)
        self.padding = _pair(padding)
        self.dilation = _pair(dilation)
        kernel_points = self.kernel_size[0] * self.kernel_size[1]
        self.weight = nn.Parameter(
            torch.empty(out_channels, in_channels // groups, *self.kernel_size)
        )
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.conv_offset = nn.Conv2d(
            in_channels,
            deform_groups * 3 * kernel_points,
            kernel_size=self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
        )
        self.init_weights()

    def init_weights(self):
        """A plain convolution at the start: no offset, every point weighed one half."""
        fan_in = self.weight[0].numel()
        nn.init.uniform_(self.weight, -(fan_in**-0.5), fan_in**-0.5)
        nn.init.zeros_(self.conv_offset.weight)
        nn.init.zeros_(self.conv_offset.bias)

    def forward(self, x):
        """(B, C_in, H, W) -> (B, C_out, H', W')."""
        offset_and_mask = self.conv_offset(x)
        # Two thirds are (dy, dx) pairs point by point, the last third the modulation.
        points = offset_and_mask.shape[1] // 3
        offset, mask = offset_and_mask.split((2 * points, points), dim=1)
        # float32 under autocast: the operator has no half-precision kernel on every device.
        with full_precision(x.device):
            out = deform_conv2d(
                x.float(),
                offset.float(),
                self.weight.float(),
                None if self.bias is None else self.bias.float(),
                stride=self.stride,
                padding=self.padding,
                dilation=self.dilation,
                mask=mask.float().sigmoid(),
            )
        return out.to(offset_and_mask.dtype)

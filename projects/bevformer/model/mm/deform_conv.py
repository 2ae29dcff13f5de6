"""Modulated deformable convolution (DCNv2) on torchvision's operator.

mmcv's own DCNv2 needs its compiled CUDA code on a GPU; torchvision's wheels bring theirs.
"""

from mmcv.cnn import CONV_LAYERS
from torch import nn
from torchvision.ops import DeformConv2d, deform_conv2d

from projects.bevformer.geometry.precision import full_precision


@CONV_LAYERS.register_module()
class TorchvisionDCNv2(DeformConv2d):
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
        window = (kernel_size, stride, padding, dilation)
        super().__init__(in_channels, out_channels, *window, groups=groups, bias=bias)
        kernel_points = self.weight[0, 0].numel()
        self.conv_offset = nn.Conv2d(in_channels, deform_groups * 3 * kernel_points, *window)
        self.init_weights()

    def reset_parameters(self):
        """Nothing yet; called by the parent before there is a `conv_offset`."""

    def init_weights(self):
        """A plain convolution at the start: no offset, every point weighed one half."""
        fan_in = self.weight[0].numel()
        nn.init.uniform_(self.weight, -(fan_in**-0.5), fan_in**-0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
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

"""VoVNet V2, the backbone of the paper's best results (V2-99 with weights of DD3D)."""

from collections import OrderedDict
from typing import NamedTuple, Tuple

import torch
import torch.nn.functional as F
from mmcv.runner import BaseModule
from mmdet.models.builder import BACKBONES
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from projects.bevformer import compat


class _Spec(NamedTuple):
    """Sizes of a VoVNet: channels of the stem, of the layers and of the outputs of stages 2 to 5."""

    stem: Tuple[int, ...]
    layer_channels: Tuple[int, ...]
    out_channels: Tuple[int, ...]
    num_layers: int
    num_blocks: Tuple[int, ...]
    depthwise: bool = False


_SLIM = ((64, 80, 96, 112), (112, 256, 384, 512))
_WIDE = ((128, 160, 192, 224), (256, 512, 768, 1024))
_SPECS = {
    "V-19-slim-dw-eSE": _Spec((64, 64, 64), *_SLIM, 3, (1, 1, 1, 1), depthwise=True),
    "V-19-dw-eSE": _Spec((64, 64, 64), *_WIDE, 3, (1, 1, 1, 1), depthwise=True),
    "V-19-slim-eSE": _Spec((64, 64, 128), *_SLIM, 3, (1, 1, 1, 1)),
    "V-19-eSE": _Spec((64, 64, 128), *_WIDE, 3, (1, 1, 1, 1)),
    "V-39-eSE": _Spec((64, 64, 128), *_WIDE, 5, (1, 1, 2, 2)),
    "V-57-eSE": _Spec((64, 64, 128), *_WIDE, 5, (1, 1, 4, 3)),
    "V-99-eSE": _Spec((64, 64, 128), *_WIDE, 5, (1, 3, 9, 3)),
}
_STAGES = ("stage2", "stage3", "stage4", "stage5")


def _conv(name, in_channels, out_channels, kernel_size=3, stride=1):
    """Convolution, norm and ReLU under the names of the public weight files."""
    padding = kernel_size // 2
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False)
    return [
        (f"{name}/conv", conv),
        (f"{name}/norm", nn.BatchNorm2d(out_channels)),
        (f"{name}/relu", nn.ReLU(inplace=True)),
    ]


def _depthwise_conv(name, channels, stride=1):
    """The same, as a 3x3 convolution of each channel and a 1x1 convolution over them."""
    each = nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)
    return [
        (f"{name}/dw_conv3x3", each),
        (f"{name}/pw_conv1x1", nn.Conv2d(channels, channels, 1, bias=False)),
        (f"{name}/pw_norm", nn.BatchNorm2d(channels)),
        (f"{name}/pw_relu", nn.ReLU(inplace=True)),
    ]


class _ChannelAttention(nn.Module):
    """Effective squeeze-excitation. Source: CenterMask (arXiv 1911.06667), section 3.3."""

    def __init__(self, channels):
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return x * F.hardsigmoid(self.fc(x.mean((2, 3), keepdim=True)))


class _OneShotAggregation(nn.Module):
    """A chain of layers whose outputs are concatenated once, at its end.

    Args:
        name: of the block in the public weight files.
        in_channels: of its input.
        layer_channels: of each of its layers.
        out_channels: of its output.
        spec: has the number and the kind of the layers.

    Source: VoVNet (arXiv 1904.09730), section 3.2; CenterMask, section 3.3 (the sum with the input).
    """

    def __init__(self, name, in_channels, layer_channels, out_channels, spec):
        super().__init__()
        layers, channels, self.conv_reduction = [], in_channels, None
        if spec.depthwise:
            if channels != layer_channels:
                reduction = _conv(f"{name}_reduction_0", channels, layer_channels, 1)
                self.conv_reduction = nn.Sequential(OrderedDict(reduction))
            channels = layer_channels
        for i in range(spec.num_layers):
            convs = (
                _depthwise_conv(f"{name}_{i}", channels)
                if spec.depthwise
                else _conv(f"{name}_{i}", channels, layer_channels)
            )
            layers.append(nn.Sequential(OrderedDict(convs)))
            channels = layer_channels
        self.layers = nn.ModuleList(layers)
        total = in_channels + spec.num_layers * layer_channels
        self.concat = nn.Sequential(OrderedDict(_conv(f"{name}_concat", total, out_channels, 1)))
        self.ese = _ChannelAttention(out_channels)
        self.adds_input = not name.endswith("_1")  # all blocks of a stage but its first

    def forward(self, x):
        """(B, C, H, W) -> (B, C', H, W)."""
        outputs = [x]
        y = x if self.conv_reduction is None else self.conv_reduction(x)
        for layer in self.layers:
            y = layer(y)
            outputs.append(y)
        y = self.ese(self.concat(torch.cat(outputs, dim=1)))
        return x + y if self.adds_input else y


@BACKBONES.register_module()
class VoVNet(BaseModule):
    """VoVNet V2.

    Args:
        spec_name: "V-99-eSE", or V-57, V-39, V-19, V-19-slim, V-19-dw, V-19-slim-dw.
        input_ch: channels of the images.
        out_features: names of the outputs: "stem" and "stage2" (stride 4), "stage3" (8), "stage4" (16),
            "stage5" (32).
        frozen_stages: 0 freezes the stem, 1 stage2 too, and so on; -1 nothing.
        norm_eval: batch norms keep their running statistics.
        with_cp: recompute the blocks in the backward pass.
        pretrained: the same as an `init_cfg` of type Pretrained.

    Raises:
        ValueError: an unknown `spec_name` or name of an output.

    Source: VoVNet (arXiv 1904.09730), CenterMask (arXiv 1911.06667). Parameters are named as in the
    public weight files, DD3D's among them.
    """

    def __init__(
        self,
        spec_name,
        input_ch=3,
        out_features=_STAGES,
        frozen_stages=-1,
        norm_eval=True,
        with_cp=False,
        pretrained=None,
        init_cfg=None,
    ):
        if pretrained:
            init_cfg = dict(type="Pretrained", checkpoint=pretrained)
        super().__init__(init_cfg or dict(type="Kaiming", layer="Conv2d"))
        if spec_name not in _SPECS or not {*out_features} <= {"stem", *_STAGES}:
            raise ValueError(
                f"spec_name={spec_name!r}, out_features={out_features} of VoVNet: they must be of "
                f"{', '.join(_SPECS)}; stem, {', '.join(_STAGES)}"
            )
        spec = _SPECS[spec_name]
        self.out_features, self.norm_eval, self.with_cp = tuple(out_features), norm_eval, with_cp
        first, second, channels = spec.stem
        stem = _conv("stem_1", input_ch, first, stride=2)
        if spec.depthwise:
            stem += _depthwise_conv("stem_2", second) + _depthwise_conv("stem_3", channels, 2)
        else:
            stem += _conv("stem_2", first, second) + _conv("stem_3", second, channels, stride=2)
        self.stem = nn.Sequential(OrderedDict(stem))
        for i, stage in enumerate(_STAGES):
            parts = OrderedDict()
            if i > 0:
                parts["Pooling"] = nn.MaxPool2d(3, stride=2, ceil_mode=True)
            for block in range(1, spec.num_blocks[i] + 1):
                name = f"OSA{stage[-1]}_{block}"
                sizes = (channels, spec.layer_channels[i], spec.out_channels[i])
                parts[name] = _OneShotAggregation(name, *sizes, spec)
                channels = spec.out_channels[i]
            self.add_module(stage, nn.Sequential(parts))
        self._frozen = [getattr(self, part) for part in ("stem", *_STAGES)[: frozen_stages + 1]]
        for part in self._frozen:
            part.requires_grad_(False)

    def forward(self, x):
        """(B, 3, H, W) -> one (B, C, h, w) per name in `out_features`, from fine to coarse."""
        x = self.stem(x)
        outputs = {"stem": x}
        for stage in _STAGES:
            for part in getattr(self, stage):
                learns = any(weight.requires_grad for weight in part.parameters())
                x = compat.checkpoint(part, x) if self.with_cp and learns else part(x)
            outputs[stage] = x
        return [outputs[name] for name in outputs if name in self.out_features]

    def train(self, mode=True):
        """Training mode, in which frozen parts and (with `norm_eval`) batch norms stay in eval mode."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        for module in self.modules():
            if self.norm_eval and isinstance(module, _BatchNorm):
                module.eval()
        return self

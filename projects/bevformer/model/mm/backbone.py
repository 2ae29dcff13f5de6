"""A ResNet that recomputes its blocks in the backward pass."""

from mmdet.models.backbones import ResNet
from mmdet.models.builder import BACKBONES
from mmdet.models.utils import ResLayer
from torch import nn

from projects.bevformer import compat


class _CheckpointedStage(ResLayer):
    """A stage that keeps only the inputs of a few runs of blocks for the backward pass.

    Of n blocks about sqrt(n) make a run: so few inputs are kept, and so few blocks are alive at once
    while a run is computed again.
    """

    def forward(self, x):
        """(B, C, H, W) -> (B, C', H', W')."""
        if not any(parameter.requires_grad for parameter in self.parameters()):
            return super().forward(x)  # a frozen stage keeps nothing anyway
        blocks = list(self)
        length = round(len(blocks) ** 0.5)
        for start in range(0, len(blocks), length):
            x = compat.checkpoint(nn.Sequential(*blocks[start : start + length]), x)
        return x


@BACKBONES.register_module()
class CheckpointedResNet(ResNet):
    """mmdet's ResNet with checkpoints that keep less than `with_cp`, which is reentrant; see `compat.checkpoint`."""

    def make_res_layer(self, **kwargs):
        """A stage; called by ResNet's constructor."""
        return _CheckpointedStage(**kwargs)

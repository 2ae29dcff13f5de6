"""Image backbones of published configs, as this project runs them: in less memory, on any device."""

from mmdet.models.backbones import ResNet
from mmdet.models.builder import BACKBONES
from mmdet.models.utils import ResLayer
from torch import nn

from projects.bevformer import compat

_PLAIN_BATCH_NORMS = ("BN", "BN2d")


def frugal_backbone(img_backbone):
    """The config of the same network with parts that need less: same parameters, same numbers.

    - mmcv's DCNv2 becomes torchvision's where mmcv's cannot run on a GPU;
    - batch norms keep no activations while they are frozen;
    - `with_cp` of a ResNet keeps less, in a way that DistributedDataParallel bears.

    Args:
        img_backbone: config of an mmdet backbone; not edited.
    """
    cfg = dict(img_backbone)
    dcn = cfg.get("dcn")
    if dcn and dcn["type"] == "DCNv2" and not compat.mmcv_has_cuda_operators():
        cfg["dcn"] = dict(dcn, type="TorchvisionDCNv2")
    norm = cfg.get("norm_cfg")
    if norm and norm["type"] in _PLAIN_BATCH_NORMS:
        cfg["norm_cfg"] = dict(norm, type="LeanBN2d")
    if cfg["type"] == "ResNet" and cfg.get("with_cp"):
        cfg.update(type="CheckpointedResNet", with_cp=False)
    return cfg


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
    """mmdet's ResNet that recomputes its blocks in the backward pass instead of keeping them.

    mmdet's own `with_cp` is reentrant checkpointing; see `compat.checkpoint`.
    """

    def make_res_layer(self, **kwargs):
        """A stage; called by ResNet's constructor."""
        return _CheckpointedStage(**kwargs)

"""The transformer of BEVFormer v2: frames are encoded one by one and fused afterwards.

Shape legend: B batch, N cameras, L levels, C channels, Q BEV queries (= Hb * Wb), F frames.
"""

import torch
from einops import rearrange
from mmcv.cnn import build_conv_layer, build_norm_layer
from mmcv.runner import BaseModule
from mmdet.models.backbones.resnet import BasicBlock
from mmdet.models.utils.builder import TRANSFORMER
from torch import nn

from projects.bevformer.geometry.poses import check_frame_offsets
from projects.bevformer.model.mm.norms import WeightPrecisionLayerNorm
from projects.bevformer.model.perception_transformer import PerceptionTransformer
from projects.bevformer.published import published
from projects.bevformer.transfer import upload


class ResNetFusion(BaseModule):
    """Residual convolutions over the stacked BEV maps of the frames, then a linear layer with a norm.

    Args:
        in_channels: F * C.
        out_channels: C.
        inter_channels: width of the convolutions.
        num_layer: residual blocks.
        norm_cfg: of the convolutions.

    Source: BEVFormer v2 (arXiv 2211.10439), section 3.4 (temporal encoder).
    """

    def __init__(
        self, in_channels, out_channels, inter_channels, num_layer, norm_cfg=None, init_cfg=None
    ):
        super().__init__(init_cfg)
        norm_cfg = norm_cfg or dict(type="SyncBNOnGPU")
        blocks = []
        for i in range(num_layer):
            channels = in_channels if i == 0 else inter_channels
            shortcut = None
            if channels != inter_channels:
                shortcut = nn.Sequential(
                    build_conv_layer(None, channels, inter_channels, 3, padding=1, bias=False),
                    build_norm_layer(norm_cfg, inter_channels)[1],
                )
            blocks.append(
                BasicBlock(channels, inter_channels, norm_cfg=norm_cfg, downsample=shortcut)
            )
        self.layers = nn.Sequential(*blocks)
        self.layer_norm = nn.Sequential(
            nn.Linear(inter_channels, out_channels), WeightPrecisionLayerNorm(out_channels)
        )

    def forward(self, bevs, bev_hw):
        """Fuse.

        Args:
            bevs: F tensors (B, Q, C), in the order of the frames.
            bev_hw: rows and columns of the BEV grid.

        Returns:
            (B, Q, C).
        """
        stacked = rearrange(torch.cat(bevs, dim=-1), "b (h w) c -> b c h w", h=bev_hw[0])
        return self.layer_norm(rearrange(self.layers(stacked), "b c h w -> b (h w) c"))


@TRANSFORMER.register_module()
@published(ignores=("rotate_center", "two_stage_num_proposals"))
class PerceptionTransformerV2(PerceptionTransformer):
    """PerceptionTransformer without recurrence and CAN bus: every frame is encoded on its own.

    The cameras of the other frames are projected from the current frame's grid (the dataset moves
    their `lidar2img`), so their BEV features need no warping by the ego motion.

    Args:
        encoder, decoder, embed_dims, num_feature_levels, num_cams, use_cams_embeds: as in
            PerceptionTransformer.
        frames: offsets of the frames that are fused, in time order; 0 is the current one.
        num_fusion: residual blocks of the fusion.
        inter_channels: their width; None is F * C.

    Raises:
        ValueError: `frames` has no 0, repeats an offset or is not in time order.

    Source: BEVFormer v2 (arXiv 2211.10439), section 3.4.
    """

    def __init__(
        self,
        encoder,
        decoder,
        embed_dims=256,
        num_feature_levels=4,
        num_cams=6,
        use_cams_embeds=True,
        frames=(0,),
        num_fusion=3,
        inter_channels=None,
        init_cfg=None,
    ):
        super().__init__(
            encoder,
            decoder,
            embed_dims=embed_dims,
            num_feature_levels=num_feature_levels,
            num_cams=num_cams,
            rotate_prev_bev=False,
            use_shift=False,
            use_can_bus=False,
            use_cams_embeds=use_cams_embeds,
            init_cfg=init_cfg,
        )
        self.can_bus_mlp = nn.Sequential()  # as in the original, without parameters
        self.frames = tuple(frames)
        check_frame_offsets(self.frames)
        if len(self.frames) > 1:
            channels = len(self.frames) * embed_dims
            self.fusion = ResNetFusion(channels, embed_dims, inter_channels or channels, num_fusion)

    def fuse(self, bevs, exists, bev_hw):
        """Fuse the BEVs of the frames.

        Args:
            bevs: F (B, Q, C) BEV features in the order of `frames`; None where no sample has the frame.
            exists: for each frame True, False or (B,) bool, which samples have it; the current one exists.
            bev_hw: rows and columns of the BEV grid.

        Returns:
            (B, Q, C) BEV features of the current frame.
        """
        current = self.frames.index(0)
        if len(self.frames) == 1:
            return bevs[current]
        # A frame that a sample lacks is replaced by its neighbour on the side of the current one.
        filled = list(bevs)
        before, after = range(current - 1, -1, -1), range(current + 1, len(filled))
        for frame, nearer in [(t, t + 1) for t in before] + [(t, t - 1) for t in after]:
            neighbour = filled[nearer].detach()
            if exists[frame] is False:
                filled[frame] = neighbour
            elif exists[frame] is not True:
                has_frame = upload(exists[frame], neighbour.device)[:, None, None]
                filled[frame] = torch.where(has_frame, filled[frame].to(neighbour.dtype), neighbour)
        return self.fusion(filled, bev_hw)

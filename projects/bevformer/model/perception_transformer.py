"""From image features to BEV features, and from BEV features to object states.

Shape legend: B batch, N cameras, L levels, C channels, Q BEV queries (= Hb * Wb), O object queries,
X decoder layers.
"""

import torch
from einops import rearrange, repeat
from mmcv.cnn.bricks.transformer import build_transformer_layer_sequence
from mmcv.runner import BaseModule
from mmdet.models.utils.builder import TRANSFORMER
from torch import nn

from projects.bevformer.geometry.bev_grid import cell_centres
from projects.bevformer.geometry.can_bus import CAN_SIZE
from projects.bevformer.geometry.ego_motion import rotate_bev
from projects.bevformer.model.bev_encoder.context import FrameContext
from projects.bevformer.model.detection.context import ObjectContext
from projects.bevformer.model.mm.norms import WeightPrecisionLayerNorm
from projects.bevformer.published import published
from projects.bevformer.transfer import upload


@TRANSFORMER.register_module()
@published(ignores=("two_stage_num_proposals",))
class PerceptionTransformer(BaseModule):
    """Holds the encoder, the decoder and the embeddings that tie them to cameras and ego motion.

    Args:
        encoder: config of the BEV encoder.
        decoder: config of the detection decoder.
        embed_dims: C.
        num_feature_levels: rows of `level_embeds`; at least L (4 in every official model).
        num_cams: N.
        rotate_prev_bev: rotate the previous BEV by the ego rotation.
        use_shift: shift its reference points by the ego translation.
        use_can_bus: add an embedding of the 18 CAN-bus numbers to the BEV queries.
        can_bus_norm: LayerNorm at the end of that embedding.
        use_cams_embeds: add a learned embedding per camera to its features.
        rotate_center: (column, row) about which the previous BEV is rotated, in cells. None, about the
            vehicle and in metres, is right; the official recipes use (100, 100) for any grid.

    Raises:
        ValueError: `rotate_center` is not a pair.

    Source: BEVFormer (arXiv 2203.17270), sections 3.2 and 3.4.
    """

    def __init__(
        self,
        encoder,
        decoder,
        embed_dims=256,
        num_feature_levels=4,
        num_cams=6,
        rotate_prev_bev=True,
        use_shift=True,
        use_can_bus=True,
        can_bus_norm=True,
        use_cams_embeds=True,
        rotate_center=None,
        init_cfg=None,
    ):
        super().__init__(init_cfg)
        if rotate_center is not None and len(rotate_center) != 2:
            raise ValueError(f"rotate_center must be (column, row) or None, got {rotate_center}")
        self.encoder = build_transformer_layer_sequence(encoder)
        self.decoder = build_transformer_layer_sequence(decoder)
        self.embed_dims = embed_dims
        self.rotate_prev_bev = rotate_prev_bev
        self.use_shift = use_shift
        self.use_can_bus = use_can_bus
        self.use_cams_embeds = use_cams_embeds
        self.rotate_center = rotate_center
        self.level_embeds = nn.Parameter(torch.empty(num_feature_levels, embed_dims))
        self.cams_embeds = nn.Parameter(torch.empty(num_cams, embed_dims))
        self.reference_points = nn.Linear(embed_dims, 3)
        self.can_bus_mlp = nn.Sequential(
            nn.Linear(CAN_SIZE, embed_dims // 2),
            nn.ReLU(),
            nn.Linear(embed_dims // 2, embed_dims),
            nn.ReLU(),
        )
        if can_bus_norm:
            self.can_bus_mlp.add_module("norm", WeightPrecisionLayerNorm(embed_dims))
        # What is switched off keeps its weights, whose names and shapes are the original's, but is not
        # trained: DDP waits for a gradient of every weight that is.
        self.can_bus_mlp.requires_grad_(bool(use_can_bus))
        self.cams_embeds.requires_grad_(bool(use_cams_embeds))
        self.init_weights()

    def init_weights(self):
        """Xavier for every matrix; then modules with an initialisation of their own apply it."""
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        _apply_own_initialisations(self)
        nn.init.normal_(self.level_embeds)
        nn.init.normal_(self.cams_embeds)
        for module in (self.reference_points, *self.can_bus_mlp):
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def frame_context(self, feats, bev_queries, bev_pos, frame, prev_bev=None):
        """Prepare what the encoder layers share about one frame.

        Args:
            feats: L tensors (B, N, C, h, w).
            bev_queries: (Hb, Wb, C) learned.
            bev_pos: (B, Q, C) positional encoding.
            frame: Frame.
            prev_bev: (B, Q, C) BEV features of the previous frame, or None.

        Returns:
            FrameContext, the input of `encoder`.

        Raises:
            ValueError: the features do not fit the frame or the transformer.
        """
        self._check_features(feats, frame)
        batch, bev_hw, device = len(feats[0]), tuple(bev_queries.shape[:2]), bev_queries.device
        has_prev = prev_bev is not None and frame.has_prev

        # 1. add the CAN-bus embedding to the BEV queries
        queries = repeat(bev_queries, "h w c -> b (h w) c", b=batch)
        if self.use_can_bus:
            can_bus = upload(frame.can_bus.to(queries.dtype), device)
            queries = queries + self.can_bus_mlp(can_bus)[:, None, :]

        # 2. align the previous BEV: rotate its features, shift its reference points
        prev_and_current = None
        if has_prev is not False:
            if self.rotate_prev_bev:
                turn_deg, pc_range = frame.motion.turn_deg, self.encoder.pc_range
                prev_bev = rotate_bev(prev_bev, turn_deg, bev_hw, pc_range, self.rotate_center)
            prev_and_current = torch.stack((prev_bev.to(queries.dtype), queries), dim=1)
        shift = frame.motion.bev_shift(self.encoder.pc_range)
        if has_prev is False or not self.use_shift:
            shift = torch.zeros_like(shift)
        elif has_prev is not True:  # a sample without a previous frame is not shifted
            shift = shift * has_prev[:, None]
        shift = upload(shift, device)
        centres = cell_centres(*bev_hw, device)  # (Q, 2)
        shifted = centres + shift[:, None, :]  # (B, Q, 2)

        # 3. flatten the levels, add camera and level embeddings
        image_features, image_shapes = self._flatten_levels(feats)

        # 4. find the queries that each camera sees
        if frame.visible is None:
            (frame,) = self.encoder.find_visible([frame], bev_hw)
        return FrameContext(
            bev_hw=bev_hw,
            bev_pos=bev_pos,
            bev_queries=queries,
            prev_and_current=prev_and_current,
            has_prev=upload(has_prev, device) if isinstance(has_prev, torch.Tensor) else None,
            reference_bev=torch.stack((shifted, centres.expand_as(shifted)), dim=1),
            visible=frame.visible,
            image_features=image_features,
            image_shapes=image_shapes,
        )

    def _flatten_levels(self, feats):
        """L tensors (B, N, C, h, w) -> (B, N, S_img, C) with camera and level embeddings, L (h, w)."""
        shapes = [tuple(feat.shape[-2:]) for feat in feats]
        flat = []
        for level, feat in enumerate(feats):
            tokens = rearrange(feat, "b n c h w -> b n (h w) c")
            if self.use_cams_embeds:
                tokens = tokens + self.cams_embeds[:, None, :].to(tokens.dtype)
            flat.append(tokens + self.level_embeds[level].to(tokens.dtype))
        return torch.cat(flat, dim=2), shapes

    def _check_features(self, feats, frame):
        """Raise ValueError where the features do not fit the frame or the embeddings."""
        batch, cameras, channels = feats[0].shape[:3]
        described, known = tuple(frame.lidar2img.shape[:2]), len(self.cams_embeds)
        if (batch, cameras) != described or (self.use_cams_embeds and cameras != known):
            raise ValueError(
                f"there are images of {cameras} cameras and {batch} samples, lidar2img of {described[1]} and "
                f"{described[0]}, and num_cams of the transformer is {known}: they must be equal"
            )
        levels, width = len(self.level_embeds), self.embed_dims
        if len(feats) > levels or channels != width:
            raise ValueError(
                f"the neck gives {len(feats)} levels of {channels} channels, num_feature_levels of the "
                f"transformer is {levels}, embed_dims {width}: set num_outs and out_channels of the neck"
            )

    def decode(self, bev, bev_hw, object_queries, reg_branches, num_groups=1):
        """Decode objects from a BEV.

        Args:
            bev: (B, Q, C) BEV features.
            bev_hw: rows and columns of the BEV grid.
            object_queries: (O, 2C) learned: positional part, then content part.
            reg_branches: X modules, or None for no refinement.
            num_groups: queries attend only to queries of their own group.

        Returns:
            states: (X, B, O, C) object states after each layer.
            references: (X, B, O, 3) the points each layer started from, fractions of the range.
        """
        query_pos, query = repeat(object_queries, "o c -> b o c", b=len(bev)).chunk(2, dim=-1)
        reference_points = self.reference_points(query_pos).float().sigmoid()
        context = ObjectContext(query_pos, bev, bev_hw, num_groups)
        return self.decoder(query, reference_points, context, reg_branches)


def _apply_own_initialisations(module):
    """Call `init_weights` of the outermost descendants that define one or have an `init_cfg`.

    Whoever initialises itself is responsible for its own children.
    """
    for child in module.children():
        own = getattr(type(child), "init_weights", BaseModule.init_weights)
        if own is not BaseModule.init_weights or getattr(child, "init_cfg", None):
            for module_inside in child.modules():  # mmcv's flag; the weights were overwritten since
                module_inside._is_init = False
            child.init_weights()
        else:
            _apply_own_initialisations(child)

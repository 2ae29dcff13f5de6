"""From image features to BEV features, and from BEV features to object states.

Shape legend: B batch, N cameras, L levels, C channels, Q BEV queries (= Hb * Wb), O object queries,
X decoder layers.
"""

import numpy as np
import torch
from einops import rearrange, repeat
from mmcv.cnn.bricks.transformer import build_transformer_layer_sequence
from mmcv.runner import BaseModule
from mmdet.models.utils.builder import TRANSFORMER
from torch import nn

from projects.bevformer.geometry.can_bus import CAN_POSITION, CAN_SIZE, CAN_YAW_DEG, CAN_YAW_RAD
from projects.bevformer.geometry.ego_motion import bev_shift, rotate_bev
from projects.bevformer.model.bev_encoder.spatial_cross_attention import MSDeformableAttention3D
from projects.bevformer.model.bev_encoder.temporal_self_attention import TemporalSelfAttention
from projects.bevformer.model.detection.layer import CustomMSDeformableAttention
from projects.bevformer.model.mm.layer_norm import WeightPrecisionLayerNorm
from projects.bevformer.transfer import upload

_SELF_INITIALISING = (
    TemporalSelfAttention,
    MSDeformableAttention3D,
    CustomMSDeformableAttention,
)


@TRANSFORMER.register_module()
class PerceptionTransformer(BaseModule):
    """Holds the encoder, the decoder and the embeddings that tie them to cameras and ego motion.

    Args:
        encoder: config of the BEV encoder.
        decoder: config of the detection decoder.
        embed_dims: C.
        num_feature_levels: rows of `level_embeds`; at least L (4 in every official model).
        num_cams: N.
        rotate_prev_bev: turn the previous BEV by the ego rotation.
        use_shift: shift its reference points by the ego translation.
        use_can_bus: add an embedding of the 18 CAN-bus numbers to the BEV queries.
        can_bus_norm: LayerNorm at the end of that embedding.
        use_cams_embeds: add a learned embedding per camera to its features.
        rotate_center: (column, row) that the previous BEV turns about. None, the middle of the
            grid, is right; the official recipes say (100, 100) whatever the grid.
        two_stage_num_proposals: accepted because published configs may give it; unused there too.

    Raises:
        ValueError: `rotate_center` is no pair.

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
        two_stage_num_proposals=300,
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
        self.init_weights()

    def init_weights(self):
        """Xavier for every matrix, then what the deformable attentions and embeddings want."""
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, _SELF_INITIALISING):
                module.init_weights()
        nn.init.normal_(self.level_embeds)
        nn.init.normal_(self.cams_embeds)
        for module in (self.reference_points, *self.can_bus_mlp):
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def camera_hits(self, metas_of_frames, bev_hw, device):
        """Which BEV queries see which camera, for some frames at once.

        Args:
            metas_of_frames: for each frame its B metas with `lidar2img` and `img_shape`.
            bev_hw: rows and columns of the BEV grid.
            device: of the result.

        Returns:
            CameraHits of each frame, found with one host-device sync.
        """
        return self.encoder.camera_hits(
            bev_hw,
            [upload(_stack_lidar2img(metas), device) for metas in metas_of_frames],
            [_padded_image_hw(metas) for metas in metas_of_frames],
        )

    def get_bev_features(
        self, feats, bev_queries, bev_pos, bev_hw, img_metas, prev_bev, has_prev, hits=None
    ):
        """Encode one frame.

        Args:
            feats: L tensors (B, N, C, h, w).
            bev_queries: (Q, C) learned.
            bev_pos: (B, Q, C) positional encoding.
            bev_hw: rows and columns of the BEV grid.
            img_metas: B metas with `can_bus` (deltas), `lidar2img` and `img_shape`.
            prev_bev: (B, Q, C) or None.
            has_prev: B bools, which samples of `prev_bev` are a previous frame.
            hits: CameraHits of the frame; None finds them here.

        Returns:
            (B, Q, C) BEV features.

        Raises:
            ValueError: the metas do not fit the images, or the features not the transformer.
        """
        batch, cameras = feats[0].shape[:2]
        _check_metas(img_metas, batch, cameras)
        if hits is None:
            (hits,) = self.camera_hits([img_metas], bev_hw, feats[0].device)
        can_bus = np.stack([meta["can_bus"] for meta in img_metas]).astype(np.float64)
        queries = repeat(bev_queries, "q c -> b q c", b=batch)
        if self.use_can_bus:
            numbers = upload(torch.from_numpy(can_bus).to(queries.dtype), queries.device)
            motion = self.can_bus_mlp(numbers)
            queries = queries + motion[:, None, :]

        shift = bev_shift(
            torch.from_numpy(can_bus[:, CAN_POSITION][:, :2]),
            torch.from_numpy(can_bus[:, CAN_YAW_RAD]),
            self.encoder.pc_range,
        )
        if not any(has_prev):
            prev_bev = None
        elif self.rotate_prev_bev:
            prev_bev = rotate_bev(prev_bev, can_bus[:, CAN_YAW_DEG], bev_hw, self.rotate_center)

        image_features, image_shapes = self._flatten_levels(feats)
        context = self.encoder.frame_context(
            bev_queries=queries,
            bev_pos=bev_pos,
            bev_hw=bev_hw,
            image_features=image_features,
            image_shapes=image_shapes,
            hits=hits,
            history=prev_bev,
            has_history=has_prev,
            shift=shift if self.use_shift else torch.zeros_like(shift),
        )
        return self.encoder(context)

    def _flatten_levels(self, feats):
        """L tensors (B, N, C, h, w) -> (B, N, S_img, C) with camera and level embeddings, L (h, w)."""
        self._check_features(feats)
        shapes = [tuple(feat.shape[-2:]) for feat in feats]
        flat = []
        for level, feat in enumerate(feats):
            tokens = rearrange(feat, "b n c h w -> b n (h w) c")
            if self.use_cams_embeds:
                tokens = tokens + self.cams_embeds[:, None, :].to(tokens.dtype)
            flat.append(tokens + self.level_embeds[level].to(tokens.dtype))
        return torch.cat(flat, dim=2), shapes

    def _check_features(self, feats):
        """Raise ValueError unless there are embeddings for all levels, cameras and channels."""
        if len(feats) > len(self.level_embeds):
            raise ValueError(
                f"the neck gives {len(feats)} levels, num_feature_levels of the transformer is "
                f"{len(self.level_embeds)}: it must be at least as many"
            )
        cameras, channels = feats[0].shape[1:3]
        if self.use_cams_embeds and cameras != len(self.cams_embeds):
            raise ValueError(
                f"there are images of {cameras} cameras, num_cams of the transformer is "
                f"{len(self.cams_embeds)}: they must be equal"
            )
        if channels != self.embed_dims:
            raise ValueError(
                f"the neck gives {channels} channels, embed_dims of the transformer is "
                f"{self.embed_dims}: out_channels of the neck must be equal to it"
            )

    def decode(self, bev, bev_hw, object_queries, reg_branches, num_groups=1):
        """Decode objects from a BEV.

        Args:
            bev: (B, Q, C) BEV features.
            bev_hw: rows and columns of the BEV grid.
            object_queries: (O, 2C) learned: positional part, then content part.
            reg_branches: X modules, or None for no refinement.
            num_groups: the queries attend to one another only within each of so many groups.

        Returns:
            states: (X, B, O, C) object states after each layer.
            references: (X, B, O, 3) the points each layer started from, fractions of the range.
        """
        batch = bev.shape[0]
        query_pos, query = repeat(object_queries, "o c -> b o c", b=batch).chunk(2, dim=-1)
        reference_points = self.reference_points(query_pos).float().sigmoid()
        return self.decoder(
            query, query_pos, bev, bev_hw, reference_points, reg_branches, num_groups
        )


def _check_metas(img_metas, batch, cameras):
    """Raise ValueError unless there is a meta a sample, with a matrix a camera."""
    if len(img_metas) != batch:
        raise ValueError(f"{len(img_metas)} metas for a batch of {batch} samples")
    for meta in img_metas:
        if len(meta["lidar2img"]) != cameras:
            raise ValueError(
                f"sample {meta.get('sample_idx')} has images of {cameras} cameras, but "
                f"{len(meta['lidar2img'])} lidar2img matrices"
            )


def _stack_lidar2img(img_metas):
    """B metas -> (B, N, 4, 4) float32."""
    return torch.from_numpy(
        np.stack([np.stack(meta["lidar2img"]) for meta in img_metas]).astype(np.float32)
    )


def _padded_image_hw(img_metas):
    """The one padded image size, (height, width) pixels, of all cameras and samples."""
    sizes = {tuple(shape[:2]) for meta in img_metas for shape in meta["img_shape"]}
    if len(sizes) != 1:
        raise ValueError(
            f"all images of a batch must be padded to one size, got {sorted(sizes)}: "
            "set PadMultiViewImage(size=...) in the pipeline"
        )
    return sizes.pop()

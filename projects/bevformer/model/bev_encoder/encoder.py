"""The BEV encoder: BEV queries gather what the previous BEV and the cameras know.

Shape legend: B batch, N cameras, Q BEV queries (= Hb * Wb), C channels, L levels.
"""

from dataclasses import replace

import torch
from mmcv.cnn.bricks.registry import TRANSFORMER_LAYER_SEQUENCE
from mmcv.cnn.bricks.transformer import build_transformer_layer
from mmcv.runner import BaseModule, ModuleList

from projects.bevformer import compat
from projects.bevformer.geometry.bev_grid import cell_centres, check_range, pillar_points
from projects.bevformer.model.bev_encoder.context import CameraHits, FrameContext
from projects.bevformer.transfer import upload


@TRANSFORMER_LAYER_SEQUENCE.register_module()
class BEVFormerEncoder(BaseModule):
    """A stack of BEVFormerLayers that share one FrameContext.

    Args:
        transformerlayers: config of one layer.
        num_layers: how many.
        pc_range: (x_min, y_min, z_min, x_max, y_max, z_max), metres, lidar frame.
        num_points_in_pillar: D, heights over each cell that are projected into the cameras.
        return_intermediate: accepted because published configs give it; only False is possible.
        with_cp: keep only the queries that enter each layer, and compute the layer once more in the
            backward pass: less memory, more time, the same gradients.

    Raises:
        ValueError: `pc_range` is no range, or `return_intermediate`.

    Source: BEVFormer (arXiv 2203.17270), section 3.2.
    """

    def __init__(
        self,
        transformerlayers,
        num_layers,
        pc_range,
        num_points_in_pillar=4,
        return_intermediate=False,
        with_cp=False,
        init_cfg=None,
    ):
        super().__init__(init_cfg)
        if return_intermediate:
            raise ValueError("BEVFormerEncoder returns the last layer's BEV only")
        check_range("pc_range", pc_range)
        self.pc_range = list(pc_range)
        self.num_points_in_pillar = num_points_in_pillar
        self.with_cp = with_cp
        self.layers = ModuleList(
            [build_transformer_layer(transformerlayers) for _ in range(num_layers)]
        )

    def forward(self, context):
        """Encode one frame.

        Args:
            context: FrameContext of the frame, from `frame_context`.

        Returns:
            (B, Q, C) BEV features.
        """
        bev = context.initial_query
        for layer in self.layers:
            bev = _recomputed(layer, bev, context) if self.with_cp else layer(bev, context)
        return bev

    def camera_hits(self, bev_hw, lidar2img, image_hw):
        """Which queries see which camera, for some frames at once.

        Args:
            bev_hw: rows and columns of the BEV grid.
            lidar2img: a tensor (B, N, 4, 4) for each frame, lidar points to pixels of the padded image.
            image_hw: height and width of the padded image, pixels; one pair for each frame.

        Returns:
            CameraHits of each frame.
        """
        device = lidar2img[0].device
        pillars = pillar_points(*bev_hw, self.num_points_in_pillar, self.pc_range, device)
        return CameraHits.project(pillars, lidar2img, image_hw)

    def frame_context(
        self,
        bev_queries,
        bev_pos,
        bev_hw,
        image_features,
        image_shapes,
        hits,
        history,
        has_history,
        shift,
    ):
        """Gather what the layers share.

        Args:
            bev_queries: (B, Q, C).
            bev_pos: (B, Q, C) positional encoding.
            bev_hw: rows and columns of the BEV grid.
            image_features: (B, N, S_img, C) all levels, flattened.
            image_shapes: L pairs (h, w).
            hits: CameraHits of the frame, from `camera_hits`.
            history: (B, Q, C) previous BEV turned into this frame, or None.
            has_history: B bools, which samples have one.
            shift: (B, 2) float32 ego translation as fractions of the grid, on the CPU.

        Returns:
            FrameContext.
        """
        device = bev_queries.device
        mixed = history is not None and not all(has_history)
        has_history = torch.tensor(has_history)
        temporal_pair = None
        if history is not None:
            temporal_pair = torch.stack((history.to(bev_queries.dtype), bev_queries), dim=1)
        # The current frame's points are not shifted; nor are those of a sample without history.
        shift = upload(shift * has_history[:, None], device)
        centres = cell_centres(*bev_hw, device)  # (Q, 2)
        moved = centres + shift[:, None, :]  # (B, Q, 2)
        return FrameContext(
            bev_hw=bev_hw,
            bev_pos=bev_pos,
            initial_query=bev_queries,
            temporal_pair=temporal_pair,
            has_history=upload(has_history, device) if mixed else None,
            reference_bev=torch.stack((moved, centres.expand_as(moved)), dim=1),
            hits=hits,
            image_features=image_features,
            image_shapes=image_shapes,
        )


def _recomputed(layer, bev, context):
    """`layer(bev, context)` under a checkpoint; whatever carries a gradient is an argument of it."""

    def run(bev, bev_pos, temporal_pair, image_features):
        frame = replace(
            context, bev_pos=bev_pos, temporal_pair=temporal_pair, image_features=image_features
        )
        return layer(bev, frame)

    return compat.checkpoint(
        run, bev, context.bev_pos, context.temporal_pair, context.image_features
    )

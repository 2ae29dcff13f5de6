"""The BEV encoder: BEV queries gather what the previous BEV and the cameras know.

Shape legend: B batch, N cameras, Q BEV queries (= Hb * Wb), C channels, L levels.
"""

import torch
from mmcv.cnn.bricks.registry import TRANSFORMER_LAYER_SEQUENCE
from mmcv.cnn.bricks.transformer import build_transformer_layer
from mmcv.runner import BaseModule, ModuleList

from projects.bevformer.geometry.bev_grid import cell_centres, pillar_points
from projects.bevformer.layers import CameraHits, FrameContext


@TRANSFORMER_LAYER_SEQUENCE.register_module()
class BEVFormerEncoder(BaseModule):
    """A stack of BEVFormerLayers that share one FrameContext.

    Args:
        transformerlayers: config of one layer.
        num_layers: how many.
        pc_range: (x_min, y_min, z_min, x_max, y_max, z_max), metres, lidar frame.
        num_points_in_pillar: D, heights over each cell that are projected into the cameras.
        return_intermediate: accepted because published configs give it; only False is possible.

    Source: BEVFormer (arXiv 2203.17270), section 3.2.
    """

    def __init__(
        self,
        transformerlayers,
        num_layers,
        pc_range,
        num_points_in_pillar=4,
        return_intermediate=False,
        init_cfg=None,
    ):
        super().__init__(init_cfg)
        if return_intermediate:
            raise ValueError("BEVFormerEncoder returns the last layer's BEV only")
        self.pc_range = list(pc_range)
        self.num_points_in_pillar = num_points_in_pillar
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
            bev = layer(bev, context)
        return bev

    def frame_context(
        self,
        bev_queries,
        bev_pos,
        bev_hw,
        image_features,
        image_shapes,
        lidar2img,
        image_hw,
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
            lidar2img: (B, N, 4, 4) lidar points to pixels of the padded image.
            image_hw: height and width of the padded image, pixels.
            history: (B, Q, C) previous BEV turned into this frame, or None.
            has_history: (B,) bool, which samples have one.
            shift: (B, 2) ego translation as fractions of the grid.

        Returns:
            FrameContext.
        """
        device = bev_queries.device
        pillars = pillar_points(*bev_hw, self.num_points_in_pillar, self.pc_range, device)
        centres = cell_centres(*bev_hw, device)  # (Q, 2)
        # The current frame's points are not shifted; nor are those of a sample without history.
        moved = centres + (shift * has_history[:, None])[:, None, :]  # (B, Q, 2)
        reference_bev = torch.stack((moved, centres.expand_as(moved)), dim=1)
        return FrameContext(
            bev_hw=bev_hw,
            bev_pos=bev_pos,
            history=history,
            initial_query=bev_queries,
            has_history=has_history,
            reference_bev=reference_bev,
            hits=CameraHits.project(pillars, lidar2img, image_hw),
            image_features=image_features,
            image_shapes=image_shapes,
        )

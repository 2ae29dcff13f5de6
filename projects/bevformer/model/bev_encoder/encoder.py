"""The BEV encoder: BEV queries attend to the previous BEV and to the camera features.

Shape legend: B batch, N cameras, Q BEV queries (= Hb * Wb), C channels, L levels.
"""

from dataclasses import replace

from mmcv.cnn.bricks.registry import TRANSFORMER_LAYER_SEQUENCE
from mmcv.runner import BaseModule

from projects.bevformer import compat
from projects.bevformer.geometry.bev_grid import check_range, pillar_points
from projects.bevformer.model.bev_encoder.packed_queries import PackedQueries
from projects.bevformer.model.post_norm_layer import build_layers
from projects.bevformer.published import published


@TRANSFORMER_LAYER_SEQUENCE.register_module()
@published(ignores=("dataset_type",), only={"return_intermediate": False})
class BEVFormerEncoder(BaseModule):
    """A stack of BEVFormerLayers that share one FrameContext.

    Args:
        transformerlayers: config of every layer, or a list with the config of each.
        num_layers: how many.
        pc_range: (x_min, y_min, z_min, x_max, y_max, z_max), metres, lidar frame.
        num_points_in_pillar: D, heights over each cell that are projected into the cameras.
        with_cp: keep only the queries that enter each layer, and recompute the layer in the backward
            pass: less memory, more time, the same gradients.

    Raises:
        ValueError: `pc_range` is not a range.

    Source: BEVFormer (arXiv 2203.17270), section 3.2.
    """

    def __init__(
        self,
        transformerlayers,
        num_layers,
        pc_range,
        num_points_in_pillar=4,
        with_cp=False,
        init_cfg=None,
    ):
        super().__init__(init_cfg)
        check_range("pc_range", pc_range)
        self.pc_range = list(pc_range)
        self.num_points_in_pillar = num_points_in_pillar
        self.with_cp = with_cp
        self.layers = build_layers(transformerlayers, num_layers)

    def forward(self, context):
        """Encode one frame.

        Args:
            context: FrameContext of the frame, from `PerceptionTransformer.frame_context`.

        Returns:
            (B, Q, C) BEV features.
        """
        bev = context.bev_queries
        for layer in self.layers:
            bev = _recomputed(layer, bev, context) if self.with_cp else layer(bev, context)
        return bev

    def find_visible(self, frames, bev_hw):
        """Compute the visible queries of several frames with one host-device sync.

        Args:
            frames: list of Frame.
            bev_hw: rows and columns of the BEV grid.

        Returns:
            The frames with `visible` set.
        """
        device = frames[0].lidar2img.device
        pillars = pillar_points(*bev_hw, self.num_points_in_pillar, self.pc_range, device)
        found = PackedQueries.project(
            pillars, [frame.lidar2img for frame in frames], [frame.image_hw for frame in frames]
        )
        return [replace(frame, visible=visible) for frame, visible in zip(frames, found)]


def _recomputed(layer, bev, context):
    """`layer(bev, context)`, recomputed in backward; tensors with a gradient are arguments of it."""

    def run(bev, bev_pos, prev_and_current, image_features):
        frame = replace(
            context,
            bev_pos=bev_pos,
            prev_and_current=prev_and_current,
            image_features=image_features,
        )
        return layer(bev, frame)

    return compat.checkpoint(
        run, bev, context.bev_pos, context.prev_and_current, context.image_features
    )

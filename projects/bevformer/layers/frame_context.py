"""What every encoder layer needs to know about one frame, computed once per frame.

Shape legend: B batch, N cameras, Q BEV queries, D pillar heights, S slots (hits of the fullest
camera), C channels.
"""

from dataclasses import dataclass
from typing import List, Optional, Tuple

import torch

from projects.bevformer.geometry.camera import project_to_cameras


@dataclass(frozen=True)
class CameraHits:
    """Which BEV queries see which camera, and where their pillar points fall in it.

    Attributes:
        query_index: (B, N, S) long, the query in each slot; 0 where the slot is empty.
        filled: (B, N, S) bool, False for padding.
        reference_uv: (B, N, S, D, 2) pillar points of the slot's query, fractions of the image.
        views_per_query: (B, Q) how many cameras see a query, at least 1.
    """

    query_index: torch.Tensor
    filled: torch.Tensor
    reference_uv: torch.Tensor
    views_per_query: torch.Tensor

    @classmethod
    def project(cls, pillars_lidar, lidar2img, image_hw):
        """Find the hits.

        A query counts as seen by a camera when at least one of its pillar points is visible; then
        all its points are sampled, those outside the image reading zeros.

        Args:
            pillars_lidar: (Q, D, 3) metres, lidar frame.
            lidar2img: (B, N, 4, 4) lidar points to pixels of the padded image.
            image_hw: height and width of the padded image, pixels.

        Returns:
            CameraHits.
        """
        points_uv, visible = project_to_cameras(pillars_lidar, lidar2img, image_hw)
        seen = visible.any(dim=-1)  # (B, N, Q)
        num_slots = max(1, int(seen.sum(dim=-1).max()))
        # Stable sort: the seen queries first, in their own order.
        filled, order = torch.sort(seen.to(torch.uint8), dim=-1, descending=True, stable=True)
        filled, order = filled[..., :num_slots].bool(), order[..., :num_slots]
        query_index = order.masked_fill(~filled, 0)
        index = query_index[..., None, None].expand(-1, -1, -1, *points_uv.shape[-2:])
        return cls(
            query_index=query_index,
            filled=filled,
            reference_uv=torch.gather(points_uv, 2, index),
            views_per_query=seen.sum(dim=1).clamp(min=1),
        )


@dataclass(frozen=True)
class FrameContext:
    """Everything of one frame that is the same for all encoder layers.

    Attributes:
        bev_hw: rows and columns of the BEV grid.
        bev_pos: (B, Q, C) positional encoding of the BEV queries.
        history: (B, Q, C) previous BEV features, already turned into this frame; None if no sample
            of the batch has one.
        initial_query: (B, Q, C) BEV queries before the first layer; with a history they stay the
            keys of the current frame in every layer.
        has_history: (B,) bool, which samples have a previous frame.
        reference_bev: (B, 2, Q, 2) cell centres as fractions of the grid, [:, 0] in the previous
            frame (shifted by the ego motion), [:, 1] in this one.
        hits: the queries' hits in the cameras.
        image_features: (B, N, S_img, C) features of all levels, flattened.
        image_shapes: L pairs (h, w) of the levels.
    """

    bev_hw: Tuple[int, int]
    bev_pos: torch.Tensor
    history: Optional[torch.Tensor]
    initial_query: torch.Tensor
    has_history: torch.Tensor
    reference_bev: torch.Tensor
    hits: CameraHits
    image_features: torch.Tensor
    image_shapes: List[Tuple[int, int]]

    def temporal_values(self, query):
        """Keys of temporal self-attention: the previous BEV and the current one.

        Args:
            query: (B, Q, C) the layer's own BEV queries; they stand in for both frames in a sample
                without history.

        Returns:
            (B, 2, Q, C), [:, 0] the previous frame.

        Source: the original computes the pair once, before its layer loop, from the initial queries.
        """
        alone = torch.stack((query, query), dim=1)
        if self.history is None:
            return alone
        pair = torch.stack((self.history, self.initial_query), dim=1).to(alone.dtype)
        return torch.where(self.has_history[:, None, None, None], pair, alone)

"""What all encoder layers share about one frame, computed once per frame.

Shape legend: B batch, N cameras, Q BEV queries, C channels, L levels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from projects.bevformer.model.bev_encoder.packed_queries import PackedQueries


@dataclass(frozen=True)
class FrameContext:
    """The second argument of every attention of the encoder: `attention(query, context)`.

    An attention module from another package takes query (B, Q, C), reads what it needs here and returns
    (B, Q, C) with its input added.

    Attributes:
        bev_hw: rows and columns of the BEV grid.
        bev_pos: (B, Q, C) positional encoding of the BEV queries.
        bev_queries: (B, Q, C) BEV queries before the first layer.
        prev_and_current: (B, 2, Q, C) keys of temporal self-attention where there is a previous BEV: its
            features, already rotated into this frame, and `bev_queries`, which stay the keys of the
            current frame in every layer. None if no sample of the batch has a previous BEV.
        has_prev: (B,) bool, the samples that have a previous BEV; None if all or none have.
        reference_bev: (B, 2, Q, 2) cell centres as fractions of the grid, [:, 0] in the previous frame
            (shifted by the ego motion), [:, 1] in this one.
        visible: the queries that each camera sees.
        image_features: (B, N, S_img, C) features of all levels, flattened.
        image_shapes: L pairs (h, w) of the levels.
    """

    bev_hw: tuple[int, int]
    bev_pos: Tensor
    bev_queries: Tensor
    prev_and_current: Tensor | None
    has_prev: Tensor | None
    reference_bev: Tensor
    visible: PackedQueries
    image_features: Tensor
    image_shapes: list[tuple[int, int]]

    def temporal_values(self, query: Tensor) -> Tensor:
        """Keys of temporal self-attention: the previous BEV and the current one.

        Args:
            query: (B, Q, C) the layer's own BEV queries; they replace both frames in a sample without a
                previous BEV.

        Returns:
            (B, 2, Q, C), [:, 0] the previous frame.

        Source: the original computes the pair once, before its layer loop, from the BEV queries.
        """
        if self.prev_and_current is None:
            return torch.stack((query, query), dim=1)
        if self.has_prev is None:
            return self.prev_and_current
        query_twice = torch.stack((query, query), dim=1)
        return torch.where(self.has_prev[:, None, None, None], self.prev_and_current, query_twice)

"""What every encoder layer needs to know about one frame, computed once per frame.

Shape legend: B batch, N cameras, Q BEV queries, D pillar heights, R rows (hits of all cameras of all
samples), C channels, E any features.
"""

from dataclasses import dataclass
from typing import List, Optional, Tuple

import torch
import torch.nn.functional as F

from projects.bevformer.geometry.camera import project_to_cameras


@dataclass(frozen=True)
class CameraHits:
    """Which BEV queries see which camera, and where their pillar points fall in it.

    A hit is a row: one query in one camera of its sample. Rows are sorted by sample, camera and query.
    No shape depends on the content of a tensor once `rows_per_map` is known.

    Attributes:
        rows_per_map: B * N ints, the rows of each camera of each sample; their sum is R.
        reference_uv: (R, D, 2) pillar points of the row's query, fractions of the image.
        query_of_row: (R,) long, number of the query in its batch, b * Q + q.
        rows_by_query: (R,) long, the rows sorted by their query.
        start_of_query: (B * Q,) long, where the rows of each query start in `rows_by_query`.
        views_per_query: (B, Q) how many cameras see a query, at least 1.
    """

    rows_per_map: Tuple[int, ...]
    reference_uv: torch.Tensor
    query_of_row: torch.Tensor
    rows_by_query: torch.Tensor
    start_of_query: torch.Tensor
    views_per_query: torch.Tensor

    @classmethod
    def project(cls, pillars_lidar, lidar2img, image_hw):
        """Compute the hits of several frames with one host-device sync.

        A query counts as seen by a camera when at least one of its pillar points is visible; then
        all its points are sampled, those outside the image reading zeros.

        Args:
            pillars_lidar: (Q, D, 3) metres, lidar frame.
            lidar2img: a tensor (B, N, 4, 4) for each frame, lidar points to pixels of the padded image.
            image_hw: height and width of the padded image, pixels; one pair for each frame.

        Returns:
            CameraHits of each frame.
        """
        projected = [
            project_to_cameras(pillars_lidar, matrices, hw)
            for matrices, hw in zip(lidar2img, image_hw)
        ]
        frames = [(points_uv, visible.any(dim=-1)) for points_uv, visible in projected]
        counts = torch.stack([seen.sum(dim=-1).flatten() for _, seen in frames]).tolist()
        return [cls.pack(*frame, rows_per_map) for frame, rows_per_map in zip(frames, counts)]

    @classmethod
    def pack(cls, points_uv, seen, rows_per_map):
        """List the hits.

        Args:
            points_uv: (B, N, Q, D, 2) all pillar points in all cameras, fractions of the image.
            seen: (B, N, Q) bool.
            rows_per_map: B * N ints, the sums of `seen` over the queries.

        Returns:
            CameraHits.
        """
        cameras, queries = seen.shape[1:]
        rows_per_map = tuple(rows_per_map)
        # A stable sort moves what is seen to the front, in order; `nonzero` would force a sync.
        order = torch.sort(seen.flatten().to(torch.uint8), descending=True, stable=True)[1]
        hits = order[: sum(rows_per_map)]
        sample = torch.div(hits, cameras * queries, rounding_mode="floor")
        query_of_row = sample * queries + hits % queries
        views = seen.sum(dim=1)  # (B, Q)
        return cls(
            rows_per_map=rows_per_map,
            reference_uv=points_uv.flatten(0, 2).index_select(0, hits),
            query_of_row=query_of_row,
            rows_by_query=torch.sort(query_of_row, stable=True)[1],
            start_of_query=views.flatten().cumsum(0) - views.flatten(),
            views_per_query=views.clamp(min=1),
        )

    def to_rows(self, per_query):
        """(B, Q, E) -> (R, E): what belongs to the query of each row."""
        to_rows = _ToRows.apply if per_query.requires_grad else _gather_queries
        return to_rows(per_query.flatten(0, 1), self)

    def to_queries(self, per_row):
        """(R, E) -> (B, Q, E): the sum over the rows of each query."""
        to_queries = _ToQueries.apply if per_row.requires_grad else _sum_rows
        total = to_queries(per_row, self)
        return total.reshape(*self.views_per_query.shape, total.shape[-1])


class _ToRows(torch.autograd.Function):
    """(B * Q, E) -> (R, E)."""

    @staticmethod
    def forward(ctx, per_query, hits):
        ctx.hits = hits
        return _gather_queries(per_query, hits)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return _sum_rows(grad, ctx.hits), None


class _ToQueries(torch.autograd.Function):
    """(R, E) -> (B * Q, E). The adjoint of _ToRows."""

    @staticmethod
    def forward(ctx, per_row, hits):
        ctx.hits = hits
        return _sum_rows(per_row, hits)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return _gather_queries(grad, ctx.hits), None


def _gather_queries(per_query, hits):
    """(B * Q, E) queries -> (R, E) rows."""
    return per_query.index_select(0, hits.query_of_row)


def _sum_rows(per_row, hits):
    """(R, E) rows -> (B * Q, E) sums; the same numbers either way."""
    if per_row.device.type == "cpu":
        total = per_row.new_zeros(len(hits.start_of_query), per_row.shape[1])
        return total.index_add_(0, hits.query_of_row, per_row)
    return _sum_bags(per_row, hits)


def _sum_bags(per_row, hits):
    """The sums in one kernel, without atomic additions, whose order would change from run to run."""
    if len(per_row) == 0:  # no table to look up in
        return per_row.new_zeros(len(hits.start_of_query), per_row.shape[1])
    return F.embedding_bag(hits.rows_by_query, per_row, hits.start_of_query, mode="sum")


@dataclass(frozen=True)
class FrameContext:
    """Everything of one frame that is the same for all encoder layers.

    Attributes:
        bev_hw: rows and columns of the BEV grid.
        bev_pos: (B, Q, C) positional encoding of the BEV queries.
        initial_query: (B, Q, C) BEV queries before the first layer.
        temporal_pair: (B, 2, Q, C) keys of temporal self-attention where there is a history: the
            previous BEV features, already turned into this frame, and the initial queries, which stay
            the keys of the current frame in every layer. None if no sample of the batch has a history.
        has_history: (B,) bool, which samples have one; None if all have or none has.
        reference_bev: (B, 2, Q, 2) cell centres as fractions of the grid, [:, 0] in the previous
            frame (shifted by the ego motion), [:, 1] in this one.
        hits: the queries' hits in the cameras.
        image_features: (B, N, S_img, C) features of all levels, flattened.
        image_shapes: L pairs (h, w) of the levels.
    """

    bev_hw: Tuple[int, int]
    bev_pos: torch.Tensor
    initial_query: torch.Tensor
    temporal_pair: Optional[torch.Tensor]
    has_history: Optional[torch.Tensor]
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
        if self.temporal_pair is not None and self.has_history is None:
            return self.temporal_pair
        alone = torch.stack((query, query), dim=1)
        if self.temporal_pair is None:
            return alone
        return torch.where(self.has_history[:, None, None, None], self.temporal_pair, alone)

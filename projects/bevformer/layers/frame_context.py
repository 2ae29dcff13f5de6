"""What every encoder layer needs to know about one frame, computed once per frame.

Shape legend: B batch, N cameras, Q BEV queries, D pillar heights, R rows (hits of all cameras of all
samples), V views (cameras of the query that most of them see), C channels, F any features.
"""

from dataclasses import dataclass
from typing import List, Optional, Tuple

import torch
from einops import rearrange

from projects.bevformer.geometry.camera import project_to_cameras


@dataclass(frozen=True)
class CameraHits:
    """Which BEV queries see which camera, and where their pillar points fall in it.

    A hit is a row: one query in one camera of its sample. Rows are sorted by sample, camera and query.
    No shape depends on the content of a tensor once `rows_per_map` and V are known.

    Attributes:
        rows_per_map: B * N ints, the rows of each camera of each sample; their sum is R.
        reference_uv: (R, D, 2) pillar points of the row's query, fractions of the image.
        query_of_row: (R,) long, number of the query in its batch, b * Q + q.
        rows_of_query: (B * Q, V) long, the rows of each query; R where it has fewer.
        views_per_query: (B, Q) how many cameras see a query, at least 1.
    """

    rows_per_map: Tuple[int, ...]
    reference_uv: torch.Tensor
    query_of_row: torch.Tensor
    rows_of_query: torch.Tensor
    views_per_query: torch.Tensor

    @classmethod
    def project(cls, pillars_lidar, lidar2img, image_hw):
        """Find the hits of some frames; the device is waited for once, not once a frame.

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
        counts = torch.stack([cls._counts(seen) for _, seen in frames]).tolist()
        return [
            cls.pack(points_uv, seen, rows_per_map, max(num_views, 1))
            for (points_uv, seen), (*rows_per_map, num_views) in zip(frames, counts)
        ]

    @staticmethod
    def _counts(seen):
        """(B, N, Q) bool -> (B * N + 1,): hits of each camera of each sample, then V."""
        hits = seen.sum(dim=-1).flatten()
        return torch.cat((hits, seen.sum(dim=1).max()[None]))

    @classmethod
    def pack(cls, points_uv, seen, rows_per_map, num_views):
        """List the hits.

        Args:
            points_uv: (B, N, Q, D, 2) all pillar points in all cameras, fractions of the image.
            seen: (B, N, Q) bool.
            rows_per_map: B * N ints, the sums of `seen` over the queries.
            num_views: V, at least the largest sum of `seen` over the cameras, and at least 1.

        Returns:
            CameraHits.
        """
        cameras, queries = seen.shape[1:]
        num_rows = sum(rows_per_map)
        # Stable sort: what is seen first, in its own order. `nonzero` would wait for the device.
        order = torch.sort(seen.flatten().to(torch.uint8), descending=True, stable=True)[1]
        hits = order[:num_rows]
        row_of_hit = torch.full_like(order, num_rows).scatter(
            0, hits, torch.arange(num_rows, device=hits.device)
        )
        rows_of_query = rearrange(row_of_hit, "(b n q) -> (b q) n", n=cameras, q=queries)
        sample = torch.div(hits, cameras * queries, rounding_mode="floor")
        return cls(
            rows_per_map=tuple(rows_per_map),
            reference_uv=points_uv.flatten(0, 2).index_select(0, hits),
            query_of_row=sample * queries + hits % queries,
            rows_of_query=rows_of_query.sort(dim=-1)[0][:, :num_views].contiguous(),
            views_per_query=seen.sum(dim=1).clamp(min=1),
        )

    def to_rows(self, per_query):
        """(B, Q, F) -> (R, F): what belongs to the query of each row."""
        tables = self.query_of_row, self.rows_of_query
        to_rows = _ToRows.apply if per_query.requires_grad else _gather_queries
        return to_rows(per_query.flatten(0, 1), *tables)

    def to_queries(self, per_row):
        """(R, F) -> (B, Q, F): the sum over the rows of each query."""
        to_queries = _ToQueries.apply if per_row.requires_grad else _sum_rows
        total = to_queries(per_row, self.query_of_row, self.rows_of_query)
        return total.reshape(*self.views_per_query.shape, total.shape[-1])


class _ToRows(torch.autograd.Function):
    """(B * Q, F) -> (R, F)."""

    @staticmethod
    def forward(ctx, per_query, query_of_row, rows_of_query):
        ctx.save_for_backward(query_of_row, rows_of_query)
        return _gather_queries(per_query, query_of_row, rows_of_query)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return _sum_rows(grad, *ctx.saved_tensors), None, None


class _ToQueries(torch.autograd.Function):
    """(R, F) -> (B * Q, F). The adjoint of _ToRows."""

    @staticmethod
    def forward(ctx, per_row, query_of_row, rows_of_query):
        ctx.save_for_backward(query_of_row)
        return _sum_rows(per_row, query_of_row, rows_of_query)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (query_of_row,) = ctx.saved_tensors
        return grad.index_select(0, query_of_row), None, None


def _gather_queries(per_query, query_of_row, rows_of_query):
    """(B * Q, F) queries -> (R, F) rows."""
    return per_query.index_select(0, query_of_row)


def _sum_rows(per_row, query_of_row, rows_of_query):
    """(R, F) rows -> (B * Q, F) sums; the same numbers either way."""
    if per_row.device.type == "cpu":
        return per_row.new_zeros(len(rows_of_query), per_row.shape[1]).index_add_(
            0, query_of_row, per_row
        )
    return _gather_rows(per_row, rows_of_query)


def _gather_rows(per_row, rows_of_query):
    """The sums without atomic additions, whose order would change from run to run."""
    num_rows = len(per_row)
    total = per_row.new_zeros(len(rows_of_query), per_row.shape[1])
    if num_rows == 0:
        return total
    for rows in rows_of_query.unbind(dim=1):
        gathered = per_row.index_select(0, rows.clamp(max=num_rows - 1))
        total += gathered.masked_fill_((rows == num_rows)[:, None], 0.0)
    return total


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

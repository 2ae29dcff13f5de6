"""The BEV queries that each camera sees, packed without padding.

Shape legend: B batch, N cameras, Q BEV queries, D pillar heights, R rows (visible queries of all cameras
of all samples), E any features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from projects.bevformer.geometry.camera import project_to_cameras


@dataclass(frozen=True)
class PackedQueries:
    """Which BEV queries see which camera, and where their pillar points fall in it.

    A row is one query in one camera of its sample. Rows are sorted by sample, camera and query. No shape
    depends on the content of a tensor once `lengths` is known.

    Attributes:
        lengths: B * N ints, the rows of each camera of each sample; their sum is R.
        reference_uv: (R, D, 2) pillar points of the row's query, fractions of the image.
        query_index: (R,) long, the row's query in the flattened batch, b * Q + q.
        rows_by_query: (R,) long, the rows sorted by their query.
        query_offsets: (B * Q,) long, where the rows of each query start in `rows_by_query`.
        num_views: (B, Q) number of cameras that see a query, at least 1.
    """

    lengths: tuple[int, ...]
    reference_uv: Tensor
    query_index: Tensor
    rows_by_query: Tensor
    query_offsets: Tensor
    num_views: Tensor

    @classmethod
    def project(
        cls,
        pillars_lidar: Tensor,
        lidar2img: Sequence[Tensor],
        image_hw: Sequence[tuple[int, int]],
    ) -> list[PackedQueries]:
        """Compute the visible queries of several frames with one host-device sync.

        A query is visible in a camera when at least one of its pillar points is; then all its points are
        sampled, those outside the image reading zeros.

        Args:
            pillars_lidar: (Q, D, 3) metres, lidar frame.
            lidar2img: per frame (B, N, 4, 4), lidar points to pixels of the padded image.
            image_hw: per frame the height and width of the padded image, pixels.

        Returns:
            PackedQueries of each frame.
        """
        projected = [
            project_to_cameras(pillars_lidar, matrices, hw)
            for matrices, hw in zip(lidar2img, image_hw)
        ]
        frames = [(points_uv, visible.any(dim=-1)) for points_uv, visible in projected]
        counts = torch.stack([visible.sum(dim=-1).flatten() for _, visible in frames]).tolist()
        return [cls.from_visibility(*frame, lengths) for frame, lengths in zip(frames, counts)]

    @classmethod
    def from_visibility(
        cls, points_uv: Tensor, visible: Tensor, lengths: Sequence[int]
    ) -> PackedQueries:
        """Pack the visible queries of one frame.

        Args:
            points_uv: (B, N, Q, D, 2) all pillar points in all cameras, fractions of the image.
            visible: (B, N, Q) bool.
            lengths: B * N ints, the sums of `visible` over the queries.
        """
        cameras, queries = visible.shape[1:]
        # A stable sort moves visible entries to the front in order; `nonzero` would force a sync.
        order = torch.sort(visible.flatten().to(torch.uint8), descending=True, stable=True)[1]
        rows = order[: sum(lengths)]
        sample = torch.div(rows, cameras * queries, rounding_mode="floor")
        query_index = sample * queries + rows % queries
        views = visible.sum(dim=1)  # (B, Q)
        return cls(
            lengths=tuple(lengths),
            reference_uv=points_uv.flatten(0, 2).index_select(0, rows),
            query_index=query_index,
            rows_by_query=torch.sort(query_index, stable=True)[1],
            query_offsets=views.flatten().cumsum(0) - views.flatten(),
            num_views=views.clamp(min=1),
        )

    def pack(self, per_query: Tensor) -> Tensor:
        """(B, Q, E) -> (R, E): each row gets the features of its query."""
        return _packed(per_query.flatten(0, 1), self, _gather_queries, _sum_rows)

    def mean_over_views(self, per_row: Tensor) -> Tensor:
        """(R, E) -> (B, Q, E): the mean over the cameras that see a query; zeros where none does."""
        total = _packed(per_row, self, _sum_rows, _gather_queries)
        return total.reshape(*self.num_views.shape, -1) / self.num_views[..., None]


_Linear = Callable[[Tensor, PackedQueries], Tensor]


def _packed(features: Tensor, packed: PackedQueries, linear: _Linear, adjoint: _Linear) -> Tensor:
    """`linear(features, packed)`, whose gradient is `adjoint`."""
    if not features.requires_grad:  # also what an exported graph should hold
        return linear(features, packed)
    return _WithAdjoint.apply(features, packed, linear, adjoint)  # type: ignore[no-any-return, no-untyped-call]


class _WithAdjoint(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, features: Tensor, packed: PackedQueries, linear: _Linear, adjoint: _Linear
    ) -> Tensor:
        ctx.packed, ctx.adjoint = packed, adjoint
        return linear(features, packed)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.adjoint(grad, ctx.packed), None, None, None


def _gather_queries(per_query: Tensor, packed: PackedQueries) -> Tensor:
    """(B * Q, E) queries -> (R, E) rows."""
    return per_query.index_select(0, packed.query_index)


def _sum_rows(per_row: Tensor, packed: PackedQueries) -> Tensor:
    """(R, E) rows -> (B * Q, E) sums; both branches give the same numbers."""
    if per_row.device.type == "cpu":
        total = per_row.new_zeros(len(packed.query_offsets), per_row.shape[1])
        return total.index_add_(0, packed.query_index, per_row)
    return _sum_bags(per_row, packed)


def _sum_bags(per_row: Tensor, packed: PackedQueries) -> Tensor:
    """The sums in one kernel, without atomic additions, whose order would change from run to run."""
    if len(per_row) == 0:  # embedding_bag needs a table
        return per_row.new_zeros(len(packed.query_offsets), per_row.shape[1])
    return F.embedding_bag(packed.rows_by_query, per_row, packed.query_offsets, mode="sum")

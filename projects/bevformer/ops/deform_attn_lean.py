"""Multi-scale deformable attention in plain PyTorch that saves only its inputs for backward.

A (row, head) pair is a bag of L * P * 4 entries: the four cells around each of its samples,
weighted by bilinear weight times attention weight. `F.embedding_bag` sums such bags without
materialising the samples. Backward recomputes indices and weights; the gradient of the value is an
embedding bag too, with the entries sorted by cell, so it needs no atomic additions and is bit-exact
from run to run. Rows are processed in chunks, which bounds the peak memory.

Speed and memory were measured on CPUs (docs/performance.md). It runs on any device; on a GPU it has
not been measured.

Shape legend: V maps, S keys, M heads, C channels per head, R rows, N rows per chunk, L levels,
P points, K = M * L * P samples per row.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from projects.bevformer.ops.backends import LevelShapes, RowsPerMap
from projects.bevformer.transfer import constant

# Bytes that a chunk may allocate, by device. On a CPU the forward pass is fastest while a chunk
# fits in the cache; in backward every chunk adds to the whole gradient map, so chunks are fewer and
# larger. A GPU needs more rows at a time to be busy.
FORWARD_CHUNK_BYTES = {"cpu": 16 * 2**20, "cuda": 256 * 2**20}
BACKWARD_CHUNK_BYTES = {"cpu": 64 * 2**20, "cuda": 256 * 2**20}
# Bytes that a sample allocates in float32: the tensors of `_Corners` and their temporaries, and in
# backward the sorted entries.
FORWARD_BYTES_PER_SAMPLE = 96
BACKWARD_BYTES_PER_SAMPLE = 320

_NOWHERE = 1e9  # distance to a second cell that does not exist


def unsupported_reason(value: Tensor, locations: Tensor) -> str | None:
    """None, or why these tensors are not supported."""
    if locations.dtype not in (torch.float32, torch.float64):
        return f"sampling locations in {locations.dtype} are off by cells: pass them in float32"
    return None


def attend(
    value: Tensor, shapes: LevelShapes, locations: Tensor, weights: Tensor, rows_per_map: RowsPerMap
) -> Tensor:
    """`packed_multi_scale_deformable_attn` with checked arguments."""
    arguments = (value, locations, weights, shapes, rows_per_map)
    return _LeanAttention.apply(*arguments)  # type: ignore[no-untyped-call, no-any-return]


class _LeanAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        value: Tensor,
        locations: Tensor,
        weights: Tensor,
        shapes: LevelShapes,
        rows_per_map: RowsPerMap,
    ) -> Tensor:
        ctx.save_for_backward(value, locations, weights)
        ctx.shapes, ctx.rows_per_map = shapes, rows_per_map
        heads, channels = value.shape[2:]
        grid = _Grid.of(shapes, locations)
        output = locations.new_empty(locations.shape[0], heads * channels)
        budget = FORWARD_CHUNK_BYTES.get(value.device.type, FORWARD_CHUNK_BYTES["cpu"])
        max_samples = budget // FORWARD_BYTES_PER_SAMPLE
        for index, chunks in _chunks_per_map(rows_per_map, grid, max_samples):
            table = value[index].to(locations.dtype).reshape(-1, channels)  # (S*M, C)
            for rows in chunks:
                corners = _Corners.of(locations[rows], weights[rows], grid)
                output[rows] = corners.sum(table, heads).view(-1, heads * channels)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        value, locations, weights = ctx.saved_tensors
        wants_value, wants_locations, wants_weights = ctx.needs_input_grad[:3]
        heads, channels = value.shape[2:]
        grid = _Grid.of(ctx.shapes, locations)
        grad_value = value.new_zeros(value.shape) if wants_value else None
        grad_locations = torch.empty_like(locations)
        grad_weights = torch.empty_like(weights)
        budget = BACKWARD_CHUNK_BYTES.get(value.device.type, BACKWARD_CHUNK_BYTES["cpu"])
        max_samples = budget // BACKWARD_BYTES_PER_SAMPLE
        for index, chunks in _chunks_per_map(ctx.rows_per_map, grid, max_samples):
            table = value[index].to(locations.dtype).reshape(-1, channels)  # (S*M, C)
            if grad_value is not None:
                # A view of the gradient in float32, a float32 accumulator in half precision.
                grad_table = grad_value[index].view(-1, channels).to(locations.dtype)
            for rows in chunks:
                corners = _Corners.of(locations[rows], weights[rows], grid)
                grad_bags = grad_output[rows].reshape(-1, channels)  # (N*M, C)
                if wants_locations or wants_weights:
                    corners.differentiate(
                        table, grad_bags, grad_locations[rows], grad_weights[rows]
                    )
                if grad_value is not None:
                    grad_table.add_(corners.scatter(grad_bags, table.shape[0]))
            if grad_value is not None and value.dtype != locations.dtype:
                grad_value[index] = grad_table.view(value.shape[1:])
        return (
            grad_value,
            grad_locations if wants_locations else None,
            grad_weights if wants_weights else None,
            None,
            None,
        )


def _chunks_per_map(
    rows_per_map: RowsPerMap, grid: _Grid, max_samples: int
) -> Iterator[tuple[int, list[slice]]]:
    """Yield the index of each map that has rows, and its chunks of rows as slices."""
    step = max(1, max_samples // max(1, len(grid.origin)))
    start = 0
    for index, rows in enumerate(rows_per_map):
        stop = start + rows
        if rows > 0:
            yield index, [slice(i, min(i + step, stop)) for i in range(start, stop, step)]
        start = stop


@dataclass(frozen=True)
class _Grid:
    """Constants of the levels, repeated for each sample of a row.

    Attributes:
        size: (K, 2) width and height.
        minus_half: (K, 2) filled with -0.5.
        last: (K, 2) int32, the largest column and row of a first cell.
        second: (K, 2) distance from the first cell to the second: 1, or _NOWHERE in a level that is
            one cell wide or high.
        stride: (K, 2) int32, table rows from one column to the next and from one row to the next.
        step: (K, 2) int32, table rows from the first cell to the second.
        origin: (K,) int32, table row of the sample's head in the first cell of its level.
    """

    size: Tensor
    minus_half: Tensor
    last: Tensor
    second: Tensor
    stride: Tensor
    step: Tensor
    origin: Tensor

    @classmethod
    def of(cls, shapes: LevelShapes, locations: Tensor) -> _Grid:
        """For tensors like `locations` (R, M, L, P, 2); cached on their device."""
        heads, _, points = locations.shape[1:4]
        shapes, dtype = tuple((h, w) for h, w in shapes), locations.dtype
        return constant(
            ("deformable attention grid", shapes, heads, points, dtype),
            lambda: cls._build(shapes, heads, points, dtype),
            locations,
        )

    @classmethod
    def _build(cls, shapes: LevelShapes, heads: int, points: int, dtype: torch.dtype) -> _Grid:
        def per_sample(pairs: Sequence[Sequence[float]], dtype: torch.dtype) -> Tensor:
            per_level = torch.tensor(pairs, dtype=dtype).reshape(1, len(shapes), 1, 2)
            return per_level.expand(heads, -1, points, 2).reshape(-1, 2)

        starts, end = [], 0
        for h, w in shapes:
            starts.append(end * heads)
            end += h * w
        first_heads = torch.arange(heads, dtype=torch.int32).view(heads, 1, 1)
        origin = first_heads + torch.tensor(starts, dtype=torch.int32).view(1, -1, 1)
        size = per_sample([(w, h) for h, w in shapes], dtype)
        return cls(
            size=size,
            minus_half=torch.full_like(size, -0.5),
            last=per_sample([(max(w - 2, 0), max(h - 2, 0)) for h, w in shapes], torch.int32),
            second=per_sample(
                [[1 if cells > 1 else _NOWHERE for cells in (w, h)] for h, w in shapes], dtype
            ),
            stride=per_sample([(heads, w * heads) for _, w in shapes], torch.int32),
            step=per_sample(
                [(heads if w > 1 else 0, w * heads if h > 1 else 0) for h, w in shapes],
                torch.int32,
            ),
            origin=origin.expand(heads, len(shapes), points).reshape(-1),
        )

    def to(self, device: torch.device | str) -> _Grid:
        """The same tables on another device."""
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)})


@dataclass(frozen=True)
class _Corners:
    """The four cells around each sample of a chunk.

    The first cell along an axis is the one at or below the sample, clamped to the level; the second
    is the next one. The weight of a cell is max(0, 1 - distance): the bilinear weight inside the
    level, without masks outside it.

    Attributes:
        grid: constants of the levels.
        attention: (N, K) attention weights.
        distance: (N, K, 2) from the first cell to the sample, in cells.
        first, second: (N, K, 2) weights of the two columns and rows.
        index: (N, K, 4) int32 rows of the table (S*M, C), in the order of `weight`.
        weight: (N, K, 4) of (first row, first column), (first, second), (second, first), (second,
            second), times `attention`.
    """

    grid: _Grid
    attention: Tensor
    distance: Tensor
    first: Tensor
    second: Tensor
    index: Tensor
    weight: Tensor

    @classmethod
    def of(cls, locations: Tensor, weights: Tensor, grid: _Grid) -> _Corners:
        """For locations (N, M, L, P, 2) and weights (N, M, L, P)."""
        rows, samples = locations.shape[0], grid.origin.shape[0]
        pixels = torch.addcmul(grid.minus_half, locations.reshape(rows, samples, 2), grid.size)
        # Clamp as integers: even for a NaN the index stays within the level.
        cell = pixels.to(torch.int32).clamp_(min=0)
        torch.minimum(cell, grid.last, out=cell)
        distance = pixels.sub_(cell)
        first = (1 - distance.abs()).clamp_(min=0)
        second = (1 - (distance - grid.second).abs_()).clamp_(min=0)

        attention = weights.reshape(rows, samples).to(locations.dtype)
        column, row = cell.mul_(grid.stride).unbind(-1)
        step_column, step_row = grid.step.unbind(-1)
        index = cell.new_empty(rows, samples, 4)
        torch.add(column + row, grid.origin, out=index[..., 0])
        torch.add(index[..., 0], step_column, out=index[..., 1])
        torch.add(index[..., 0], step_row, out=index[..., 2])
        torch.add(index[..., 2], step_column, out=index[..., 3])
        first_column, first_row = first.unbind(-1)
        second_column, second_row = second.unbind(-1)
        weight = distance.new_empty(rows, samples, 4)
        for corner, weight_row in ((0, attention * first_row), (2, attention * second_row)):
            torch.mul(weight_row, first_column, out=weight[..., corner])
            torch.mul(weight_row, second_column, out=weight[..., corner + 1])
        return cls(grid, attention, distance, first, second, index, weight)

    def sum(self, table: Tensor, heads: int) -> Tensor:
        """(N*M, C) attended values from a table (S*M, C)."""
        bags = self.index.shape[0] * heads
        return F.embedding_bag(
            self.index.view(bags, -1),
            table,
            mode="sum",
            per_sample_weights=self.weight.view(bags, -1),
        )

    def differentiate(
        self, table: Tensor, grad_bags: Tensor, grad_locations: Tensor, grad_weights: Tensor
    ) -> None:
        """Write the gradients of locations (N, M, L, P, 2) and weights (N, M, L, P).

        Args:
            table: (S*M, C).
            grad_bags: (N*M, C).
            grad_locations, grad_weights: outputs.
        """
        entries, bags = self.index.numel(), grad_bags.shape[0]
        number = torch.arange(bags, dtype=torch.int32, device=table.device)
        # What autograd calls for `per_sample_weights`. Through autograd, torch 1.10 would also
        # compute the gradient of the table, or fail if that needs none.
        dots: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            grad_bags,
            table,
            self.index.view(-1),
            number * (entries // bags),
            number[:, None].expand(-1, entries // bags).reshape(-1),
            0,  # mode "sum"
        ).view_as(self.weight)
        first_column, first_row = self.first.unbind(-1)
        second_column, second_row = self.second.unbind(-1)
        d00, d01, d10, d11 = dots.unbind(-1)  # products of cell (row, column) and gradient
        on_first_row = first_column * d00 + second_column * d01
        on_second_row = first_column * d10 + second_column * d11
        on_first_column = first_row * d00 + second_row * d10
        on_second_column = first_row * d01 + second_row * d11
        grad_weights.copy_(
            (first_row * on_first_row + second_row * on_second_row).view_as(grad_weights)
        )
        first_slope = _slope(self.distance)
        second_slope = _slope(self.distance - self.grid.second)
        grad = torch.stack(
            (
                first_slope[..., 0] * on_first_column + second_slope[..., 0] * on_second_column,
                first_slope[..., 1] * on_first_row + second_slope[..., 1] * on_second_row,
            ),
            dim=-1,
        )
        grad.mul_(self.attention[..., None]).mul_(self.grid.size)
        grad_locations.copy_(grad.view_as(grad_locations))

    def scatter(self, grad_bags: Tensor, num_rows: int) -> Tensor:
        """Gradient of a table (S*M, C) with `num_rows` rows from that of the bags (N*M, C)."""
        bag_size = self.index.numel() // grad_bags.shape[0]
        sorted_index, order = self.index.view(-1).sort()
        rows = torch.arange(num_rows, dtype=torch.int32, device=sorted_index.device)
        return F.embedding_bag(
            torch.div(order, bag_size, rounding_mode="floor"),
            grad_bags,
            torch.searchsorted(sorted_index, rows),
            mode="sum",
            per_sample_weights=self.weight.view(-1).index_select(0, order),
        )


def _slope(distance: Tensor) -> Tensor:
    """Derivative of max(0, 1 - |distance|); the right-hand one at the kinks."""
    cell = distance.floor()
    return (cell == -1).to(distance.dtype).sub_((cell == 0).to(distance.dtype))

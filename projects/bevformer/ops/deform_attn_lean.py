"""Multi-scale deformable attention in plain PyTorch that keeps nothing but its inputs for backward.

A (row, head) pair is a bag of L * P * 4 entries: the four cells around each of its samples, with the
bilinear weight times the attention weight. `F.embedding_bag` sums such bags without ever writing
the samples out. Backward computes indices and weights anew; the gradient of the value is an
embedding bag too, with the entries sorted by cell, so it needs no atomic additions and repeats
exactly. Rows are handled in chunks, which bounds what is alive at any time.

Speed and memory were measured on CPUs (docs/performance.md). It runs on any device; on a GPU it has
not been measured.

Shape legend: V maps, S keys, M heads, C channels per head, R rows, N rows of a chunk, L levels,
P points, K = M * L * P samples of a row.
"""

from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from projects.bevformer.transfer import constant

# What a chunk may allocate, by device. On a CPU the forward pass is fastest while a chunk is in the
# cache; in backward every chunk adds to a whole gradient map, so they are fewer and larger. A GPU needs
# more rows at a time to be busy.
FORWARD_CHUNK_BYTES = {"cpu": 16 * 2**20, "cuda": 256 * 2**20}
BACKWARD_CHUNK_BYTES = {"cpu": 64 * 2**20, "cuda": 256 * 2**20}
# What a sample allocates in float32: the tensors of `_Corners` and their temporaries, and in backward
# the sorted entries.
FORWARD_BYTES_PER_SAMPLE = 96
BACKWARD_BYTES_PER_SAMPLE = 320

_NOWHERE = 1e9  # distance of a second cell that is not there


def why_not(value, locations):
    """None, or why these tensors cannot be computed."""
    if locations.dtype not in (torch.float32, torch.float64):
        return f"sampling locations in {locations.dtype} are off by cells: give them in float32"
    return None


def attend(value, shapes, locations, weights, rows_per_map):
    """`packed_multi_scale_deformable_attn` with checked arguments."""
    return _LeanAttention.apply(value, locations, weights, shapes, rows_per_map)


class _LeanAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value, locations, weights, shapes, rows_per_map):
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
    def backward(ctx, grad_output):
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
            if wants_value:
                # In float32 this is the gradient itself, in half precision a float32 copy to add up.
                grad_table = grad_value[index].view(-1, channels).to(locations.dtype)
            for rows in chunks:
                corners = _Corners.of(locations[rows], weights[rows], grid)
                grad_bags = grad_output[rows].reshape(-1, channels)  # (N*M, C)
                if wants_locations or wants_weights:
                    corners.differentiate(
                        table, grad_bags, grad_locations[rows], grad_weights[rows]
                    )
                if wants_value:
                    grad_table.add_(corners.scatter(grad_bags, table.shape[0]))
            if wants_value and value.dtype != locations.dtype:
                grad_value[index] = grad_table.view(value.shape[1:])
        return (
            grad_value,
            grad_locations if wants_locations else None,
            grad_weights if wants_weights else None,
            None,
            None,
        )


def _chunks_per_map(rows_per_map, grid, max_samples):
    """Yield for each map that has rows its index and the slices of rows to handle at a time."""
    step = max(1, max_samples // max(1, len(grid.origin)))
    start = 0
    for index, rows in enumerate(rows_per_map):
        stop = start + rows
        if rows > 0:
            yield index, [slice(i, min(i + step, stop)) for i in range(start, stop, step)]
        start = stop


@dataclass(frozen=True)
class _Grid:
    """Numbers of the levels, repeated for each sample of a row.

    Attributes:
        size: (K, 2) width and height.
        minus_half: (K, 2) filled with -0.5.
        last: (K, 2) int32, the last column and row that a first cell may have.
        second: (K, 2) where the second cell lies, seen from the first: 1; nowhere in a level that
            is one cell wide or high.
        stride: (K, 2) int32, steps of the table from column to column and from row to row.
        step: (K, 2) int32, the same to the second cell.
        origin: (K,) int32, the sample's head in the first cell of its level.
    """

    size: torch.Tensor
    minus_half: torch.Tensor
    last: torch.Tensor
    second: torch.Tensor
    stride: torch.Tensor
    step: torch.Tensor
    origin: torch.Tensor

    @classmethod
    def of(cls, shapes, locations):
        """For tensors like `locations` (R, M, L, P, 2); kept on their device."""
        heads, _, points = locations.shape[1:4]
        shapes, dtype = tuple(map(tuple, shapes)), locations.dtype
        return constant(
            ("deformable attention grid", shapes, heads, points, dtype),
            lambda: cls._build(shapes, heads, points, dtype),
            locations,
        )

    @classmethod
    def _build(cls, shapes, heads, points, dtype):
        def per_sample(pairs, dtype):
            pairs = torch.tensor(pairs, dtype=dtype).reshape(1, len(shapes), 1, 2)
            return pairs.expand(heads, -1, points, 2).reshape(-1, 2)

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

    def to(self, device):
        """The same tables on another device."""
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)})


@dataclass(frozen=True)
class _Corners:
    """The four cells around each sample of a chunk.

    The first cell of an axis is the one at or below the sample, moved into the level; the second
    follows it. A cell weighs max(0, 1 - distance), which is the bilinear weight inside the level
    and needs no masks outside it.

    Attributes:
        grid: _Grid.
        attention: (N, K) attention weights.
        distance: (N, K, 2) from the first cell to the sample, in cells.
        first, second: (N, K, 2) weights of the two columns and rows.
        index: (N, K, 4) int32 row of the table (S*M, C), in the order of `weight`.
        weight: (N, K, 4) of (first row, first column), (first, second), (second, first), (second,
            second), times `attention`.
    """

    grid: _Grid
    attention: torch.Tensor
    distance: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor
    index: torch.Tensor
    weight: torch.Tensor

    @classmethod
    def of(cls, locations, weights, grid):
        """For locations (N, M, L, P, 2) and weights (N, M, L, P)."""
        rows, samples = locations.shape[0], grid.origin.shape[0]
        pixels = torch.addcmul(grid.minus_half, locations.reshape(rows, samples, 2), grid.size)
        # Clamping as integers: whatever a NaN becomes, it is an index of the level.
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

    def sum(self, table, heads):
        """(N*M, C) attended values from a table (S*M, C)."""
        bags = self.index.shape[0] * heads
        return F.embedding_bag(
            self.index.view(bags, -1),
            table,
            mode="sum",
            per_sample_weights=self.weight.view(bags, -1),
        )

    def differentiate(self, table, grad_bags, grad_locations, grad_weights):
        """Write the gradients of locations (N, M, L, P, 2) and weights (N, M, L, P).

        Args:
            table: (S*M, C).
            grad_bags: (N*M, C).
            grad_locations, grad_weights: written.
        """
        entries, bags = self.index.numel(), grad_bags.shape[0]
        number = torch.arange(bags, dtype=torch.int32, device=table.device)
        # What autograd calls for `per_sample_weights`; asked through autograd, torch 1.10 also computes
        # the gradient of the table, or refuses if that needs none.
        dots = torch.ops.aten._embedding_bag_per_sample_weights_backward(
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

    def scatter(self, grad_bags, num_rows):
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


def _slope(distance):
    """Derivative of max(0, 1 - |distance|); at the kinks that towards larger distance."""
    cell = distance.floor()
    return (cell == -1).to(distance.dtype).sub_((cell == 0).to(distance.dtype))

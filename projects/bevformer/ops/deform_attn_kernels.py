"""Triton kernels of deform_attn_triton.

A program handles BLOCK consecutive (row, head) pairs. It reads the value in rows of CHANNELS
contiguous numbers. Consecutive pairs are the adjacent heads of one row, then those of the next row
of the same map, so that the maps go through the L2 cache one after the other.

Shape legend: V maps, S keys, M = HEADS, C = CHANNELS, R rows, L = len(LEVELS), P = POINTS. LEVELS
holds (h, w, first key) per level.
"""

import triton
import triton.language as tl


@triton.jit
def _place(locations, weights, sample, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, valid):
    """Locate samples on a level.

    Returns:
        Column and row of the first of four cells (-1 where it is left of or above the level), the
        fractions of the way to the second ones, the attention weight, and whether any of the four
        cells can be on the level. A NaN is never on the level, but stays in the fractions.
    """
    x = tl.load(locations + 2 * sample, mask=valid, other=0.0) * WIDTH - 0.5
    y = tl.load(locations + 2 * sample + 1, mask=valid, other=0.0) * HEIGHT - 0.5
    attention = tl.load(weights + sample, mask=valid, other=0.0).to(tl.float32)
    near = valid & (x > -1) & (x < WIDTH) & (y > -1) & (y < HEIGHT)
    floor_x = tl.floor(x)
    floor_y = tl.floor(y)
    column = tl.where(near, floor_x, 0.0).to(tl.int32)
    row = tl.where(near, floor_y, 0.0).to(tl.int32)
    return column, row, x - floor_x, y - floor_y, attention, near


@triton.jit
def _corner(
    column,
    row,
    fx,
    fy,
    near,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    DY: tl.constexpr,
    DX: tl.constexpr,
):
    """Key of one of the four cells, whether it is on the level, and its weights along x and y."""
    on_level = near & (column + DX >= 0) & (column + DX < WIDTH)
    on_level = on_level & (row + DY >= 0) & (row + DY < HEIGHT)
    key = (row + DY) * WIDTH + column + DX
    weight_x = fx if DX == 1 else 1 - fx
    weight_y = fy if DY == 1 else 1 - fy
    return key, on_level, weight_x, weight_y


@triton.jit
def forward_kernel(
    value,  # (V, S, M, C)
    locations,  # (R, M, L, P, 2)
    weights,  # (R, M, L, P)
    map_of_row,  # (R,)
    output,  # (R, M * C)
    num_pairs,  # R * M
    num_keys,  # S
    LEVELS: tl.constexpr,
    HEADS: tl.constexpr,
    POINTS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pair = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = pair < num_pairs
    channel = tl.arange(0, CHANNELS)[None, :]
    map_index = tl.load(map_of_row + pair // HEADS, mask=valid, other=0).to(tl.int64)
    # The pair's head in the first cell of its map.
    head_of_map = value + (map_index * num_keys * HEADS + pair % HEADS) * CHANNELS
    sample = pair.to(tl.int64) * (len(LEVELS) * POINTS)
    total = tl.zeros((BLOCK, CHANNELS), dtype=tl.float32)
    for level in tl.static_range(len(LEVELS)):
        for _ in range(POINTS):
            column, row, fx, fy, attention, near = _place(
                locations, weights, sample, LEVELS[level][0], LEVELS[level][1], valid
            )
            for corner in tl.static_range(4):
                key, on_level, weight_x, weight_y = _corner(
                    column,
                    row,
                    fx,
                    fy,
                    near,
                    LEVELS[level][0],
                    LEVELS[level][1],
                    corner // 2,
                    corner % 2,
                )
                cell = head_of_map + (LEVELS[level][2] + key) * (HEADS * CHANNELS)
                content = tl.load(cell[:, None] + channel, mask=on_level[:, None], other=0.0)
                weight = attention * weight_x * weight_y
                total += weight[:, None] * content.to(tl.float32)
            sample += 1
    pointer = output + pair.to(tl.int64)[:, None] * CHANNELS + channel
    tl.store(pointer, total, mask=valid[:, None])


@triton.jit
def backward_kernel(
    value,  # (V, S, M, C)
    locations,  # (R, M, L, P, 2)
    weights,  # (R, M, L, P)
    map_of_row,  # (R,)
    grad_output,  # (R, M * C)
    grad_value,  # (V, S, M, C) float32, zeros
    grad_locations,  # (R, M, L, P, 2)
    grad_weights,  # (R, M, L, P)
    num_pairs,  # R * M
    num_keys,  # S
    LEVELS: tl.constexpr,
    HEADS: tl.constexpr,
    POINTS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pair = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = pair < num_pairs
    channel = tl.arange(0, CHANNELS)[None, :]
    map_index = tl.load(map_of_row + pair // HEADS, mask=valid, other=0).to(tl.int64)
    head_of_map = (map_index * num_keys * HEADS + pair % HEADS) * CHANNELS
    sample = pair.to(tl.int64) * (len(LEVELS) * POINTS)
    pointer = grad_output + pair.to(tl.int64)[:, None] * CHANNELS + channel
    grad = tl.load(pointer, mask=valid[:, None], other=0.0)
    for level in tl.static_range(len(LEVELS)):
        for _ in range(POINTS):
            column, row, fx, fy, attention, near = _place(
                locations, weights, sample, LEVELS[level][0], LEVELS[level][1], valid
            )
            grad_attention = tl.zeros((BLOCK,), dtype=tl.float32)
            grad_x = tl.zeros((BLOCK,), dtype=tl.float32)
            grad_y = tl.zeros((BLOCK,), dtype=tl.float32)
            for corner in tl.static_range(4):
                key, on_level, weight_x, weight_y = _corner(
                    column,
                    row,
                    fx,
                    fy,
                    near,
                    LEVELS[level][0],
                    LEVELS[level][1],
                    corner // 2,
                    corner % 2,
                )
                cell = head_of_map + (LEVELS[level][2] + key) * (HEADS * CHANNELS)
                offset = cell[:, None] + channel
                content = tl.load(value + offset, mask=on_level[:, None], other=0.0)
                dot = tl.sum(grad * content.to(tl.float32), axis=1)
                grad_attention += weight_x * weight_y * dot
                grad_x += (2 * (corner % 2) - 1) * weight_y * dot
                grad_y += (2 * (corner // 2) - 1) * weight_x * dot
                weight = attention * weight_x * weight_y
                tl.atomic_add(
                    grad_value + offset,
                    weight[:, None] * grad,
                    mask=on_level[:, None],
                    sem="relaxed",
                )
            tl.store(grad_weights + sample, grad_attention, mask=valid)
            grad_x *= attention * LEVELS[level][1]
            grad_y *= attention * LEVELS[level][0]
            tl.store(grad_locations + 2 * sample, grad_x, mask=valid)
            tl.store(grad_locations + 2 * sample + 1, grad_y, mask=valid)
            sample += 1

"""The equations of BEVFormer as plain loops over numpy arrays: slow, and easy to check by eye.

They read a module's weights, and nothing else of it. Everything is one sample, float64; arrays are
Q queries by C channels, points are (x, y) as fractions of a map.
"""

import math

import numpy as np


def bilinear(feature_map, x, y):
    """(h, w, C) map at a point; cell (r, c) has its middle at ((c + 0.5) / w, (r + 0.5) / h)."""
    height, width = feature_map.shape[:2]
    column, row = x * width - 0.5, y * height - 0.5
    value = np.zeros(feature_map.shape[2:])
    for r in (math.floor(row), math.floor(row) + 1):
        for c in (math.floor(column), math.floor(column) + 1):
            if 0 <= r < height and 0 <= c < width:
                value += (1 - abs(row - r)) * (1 - abs(column - c)) * feature_map[r, c]
    return value


def split_levels(features, shapes):
    """(S, ...) flattened levels -> list of (h, w, ...) maps."""
    maps, start = [], 0
    for height, width in shapes:
        maps.append(features[start : start + height * width].reshape(height, width, -1))
        start += height * width
    return maps


def deformable_attention(value, shapes, locations, weights):
    """Deformable DETR, equation 3, for the arrays of ops.multi_scale_deformable_attn."""
    batch, queries, heads, levels, points, _ = locations.shape
    channels = value.shape[-1]
    out = np.zeros((batch, queries, heads, channels))
    for b, q, m in np.ndindex(batch, queries, heads):
        maps = split_levels(value[b, :, m], shapes)
        for level, p in np.ndindex(levels, points):
            x, y = locations[b, q, m, level, p]
            out[b, q, m] += weights[b, q, m, level, p] * bilinear(maps[level], x, y)
    return out.reshape(batch, queries, heads * channels)


def linear(layer, x):
    """What an nn.Linear computes."""
    weight = layer.weight.detach().double().numpy()
    bias = layer.bias.detach().double().numpy()
    return x @ weight.T + bias


def layer_norm(layer, x):
    """What an nn.LayerNorm computes."""
    weight = layer.weight.detach().double().numpy()
    bias = layer.bias.detach().double().numpy()
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + layer.eps) * weight + bias


def feed_forward(ffn, x):
    """Two linear layers with a ReLU between them, the input added (mmcv's FFN)."""
    hidden = np.maximum(linear(ffn.layers[0][0], x), 0)
    return x + linear(ffn.layers[1], hidden)


def softmax(x):
    exponentials = np.exp(x - x.max())
    return exponentials / exponentials.sum()


def temporal_self_attention(module, query, query_pos, history, initial_query, bev_hw, shift):
    """BEVFormer, equation 5: attend in the previous and the current BEV, take the mean.

    Without a history the query stands in for both frames, and nothing is shifted.
    """
    height, width = bev_hw
    num_queries, channels = query.shape
    heads, points = module.num_heads, module.num_points
    size = channels // heads
    if history is None:
        frames, shifts = (query, query), (np.zeros(2), np.zeros(2))
    else:
        frames, shifts = (history, initial_query), (np.asarray(shift), np.zeros(2))
    joint = np.concatenate((frames[0], query + query_pos), axis=1)
    offsets = linear(module.sampling_offsets, joint).reshape(num_queries, heads, 2, points, 2)
    scores = linear(module.attention_weights, joint).reshape(num_queries, heads, 2, points)
    attended = np.zeros((num_queries, channels))
    for t in range(2):
        feature_map = linear(module.value_proj, frames[t]).reshape(height, width, channels)
        for q, m in np.ndindex(num_queries, heads):
            head = slice(m * size, (m + 1) * size)
            weights = softmax(scores[q, m, t])
            for p in range(points):
                x = (q % width + 0.5) / width + shifts[t][0] + offsets[q, m, t, p, 0] / width
                y = (q // width + 0.5) / height + shifts[t][1] + offsets[q, m, t, p, 1] / height
                attended[q, head] += weights[p] * bilinear(feature_map[..., head], x, y) / 2
    return linear(module.output_proj, attended) + query


def project(point, lidar2img, image_hw):
    """u, v as fractions of the image, and whether the point is visible."""
    ud, vd, depth = lidar2img[:3, :3] @ point + lidar2img[:3, 3]
    u = ud / max(depth, 1e-5) / image_hw[1]
    v = vd / max(depth, 1e-5) / image_hw[0]
    return u, v, depth > 1e-5 and 0 < u < 1 and 0 < v < 1


def pillar(q, bev_hw, num_heights, pc_range):
    """The points over BEV cell q, metres, lidar frame."""
    height, width = bev_hw
    x_min, y_min, z_min, x_max, y_max, z_max = pc_range
    x = x_min + (q % width + 0.5) / width * (x_max - x_min)
    y = y_min + (q // width + 0.5) / height * (y_max - y_min)
    heights = np.linspace(z_min + 0.5, z_max - 0.5, num_heights)
    return [np.array([x, y, z]) for z in heights]


def spatial_cross_attention(module, query, features, shapes, lidar2img, image_hw, pillars):
    """BEVFormer, equations 3 and 4: the mean over the cameras that see a pillar.

    Args:
        module: SpatialCrossAttention.
        query: (Q, C).
        features: (N, S, C) flattened levels of each camera.
        shapes: L pairs (h, w).
        lidar2img: (N, 4, 4).
        image_hw: height and width, pixels.
        pillars: Q lists of D points.
    """
    inner = module.deformable_attention
    num_queries, channels = query.shape
    heads, levels, points = inner.num_heads, len(shapes), inner.num_points
    size = channels // heads
    offsets = linear(inner.sampling_offsets, query).reshape(num_queries, heads, levels, points, 2)
    scores = linear(inner.attention_weights, query).reshape(num_queries, heads, levels * points)
    attended = np.zeros((num_queries, channels))
    for q in range(num_queries):
        per_camera = []
        for camera, matrix in enumerate(lidar2img):
            projected = [project(point, matrix, image_hw) for point in pillars[q]]
            if not any(visible for _, _, visible in projected):
                continue
            maps = split_levels(linear(inner.value_proj, features[camera]), shapes)
            out = np.zeros(channels)
            for m in range(heads):
                head = slice(m * size, (m + 1) * size)
                weights = softmax(scores[q, m]).reshape(levels, points)
                for level, p in np.ndindex(levels, points):
                    u, v, _ = projected[p % len(projected)]
                    height, width = shapes[level]
                    x = u + offsets[q, m, level, p, 0] / width
                    y = v + offsets[q, m, level, p, 1] / height
                    out[head] += weights[level, p] * bilinear(maps[level][..., head], x, y)
            per_camera.append(out)
        if per_camera:
            attended[q] = np.mean(per_camera, axis=0)
    return linear(module.output_proj, attended) + query


def ego_shift(can_bus, pc_range):
    """BEVFormer, section 3.4: how far the ego moved, (x, y) as fractions of the grid.

    `can_bus` holds the ego's translation in global axes (columns 0 and 1, metres) and its heading
    in them (column 16, radians from the x axis). On the grid y is ahead and x to the right.
    """
    x_min, y_min, _, x_max, y_max, _ = pc_range
    heading = can_bus[16]
    ahead = can_bus[0] * math.cos(heading) + can_bus[1] * math.sin(heading)
    to_the_right = can_bus[0] * math.sin(heading) - can_bus[1] * math.cos(heading)
    return np.array([to_the_right / (x_max - x_min), ahead / (y_max - y_min)])


def source_cells(angle_deg, bev_hw, center):
    """Which cell of the previous grid each cell of this one shows; None outside.

    The nearest-neighbour rule of torchvision's `rotate` for a counter-clockwise turn about `center`,
    (column, row) from the corner of the grid, on a picture whose rows go down.
    """
    height, width = bev_hw
    cos, sin = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    sources = []
    for row, column in np.ndindex(height, width):
        x, y = column + 0.5 - center[0], row + 0.5 - center[1]
        old_column = math.floor(cos * x - sin * y + center[0])
        old_row = math.floor(sin * x + cos * y + center[1])
        inside = 0 <= old_column < width and 0 <= old_row < height
        sources.append(old_row * width + old_column if inside else None)
    return sources


def encode(
    encoder,
    bev_queries,
    bev_pos,
    bev_hw,
    image_features,
    image_shapes,
    lidar2img,
    image_hw,
    history,
    shift,
):
    """The whole BEV encoder on one sample; `history` (Q, C) or None."""
    pillars = [
        pillar(q, bev_hw, encoder.num_points_in_pillar, encoder.pc_range)
        for q in range(len(bev_queries))
    ]
    bev = bev_queries
    for layer in encoder.layers:
        temporal, spatial = layer.attentions
        bev = temporal_self_attention(temporal, bev, bev_pos, history, bev_queries, bev_hw, shift)
        bev = layer_norm(layer.norms[0], bev)
        bev = spatial_cross_attention(
            spatial, bev, image_features, image_shapes, lidar2img, image_hw, pillars
        )
        bev = layer_norm(layer.norms[1], bev)
        bev = layer_norm(layer.norms[2], feed_forward(layer.ffns[0], bev))
    return bev


def box_code(box):
    """The ten numbers that the network should say for a box of the data set.

    Args:
        box: x, y, z of the bottom, l, w, h, yaw, vx, vy (mmdet3d >= 1.0rc0).

    Returns:
        cx, cy, log w, log l, cz, log h, sin, cos, vx, vy; the angle is that of mmdet3d <= 0.17.
    """
    x, y, bottom, length, width, height, yaw, vx, vy = box
    old_yaw = -yaw - math.pi / 2
    sizes = [math.log(size) for size in (width, length, height)]
    angle = [math.sin(old_yaw), math.cos(old_yaw)]
    return [x, y, sizes[0], sizes[1], bottom + height / 2, sizes[2], *angle, vx, vy]


def box_of(code):
    """Inverse of `box_code`; yaw in [-3 pi / 2, pi / 2)."""
    cx, cy, log_width, log_length, cz, log_height, sin, cos, vx, vy = code
    length, width, height = math.exp(log_length), math.exp(log_width), math.exp(log_height)
    yaw = -math.atan2(sin, cos) - math.pi / 2
    return [cx, cy, cz - height / 2, length, width, height, yaw, vx, vy]


def best_boxes(logits, codes, max_num, centre_range):
    """The `max_num` best pairs of query and class, without those centred outside a range.

    Args:
        logits: O rows of K.
        codes: O rows of ten.
        max_num: pairs kept at most.
        centre_range: x, y, z of one corner, x, y, z of the other.

    Returns:
        List of (score, label, box as in `box_code`), best first.
    """
    pairs = [
        (1 / (1 + math.exp(-logit)), label, query)
        for query, row in enumerate(logits)
        for label, logit in enumerate(row)
    ]
    pairs.sort(key=lambda pair: -pair[0])
    boxes = []
    for score, label, query in pairs[:max_num]:
        centre = [codes[query][column] for column in (0, 1, 4)]
        low, high = centre_range[:3], centre_range[3:]
        if all(a <= x <= b for a, x, b in zip(low, centre, high)):
            boxes.append((score, label, box_of(codes[query])))
    return boxes

"""BEVFormer from the image features on, in plain float64 equations: slow, and easy to check by eye.

Written from the papers and from what is known of the original, without the code of this project: it
reads a state dict by the names of the official checkpoints and holds the official numbers itself.
One sample at a time, one camera and level at a time. It is torch only for the gradients.

Shapes: Q BEV queries (rows of the grid one after the other), O objects, M heads, P points,
C channels.
"""

import math

import torch
from naive_equations import best_boxes, box_code, ego_shift, pillar, project, source_cells
from scipy.optimize import linear_sum_assignment

PC_RANGE = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)
ROTATE_CENTER = (100, 100)  # of every official model, for any grid
CHANNELS = 256
HEADS = 8
HEIGHTS = 4  # points of a pillar
BEV_POINTS = 4
CAMERA_POINTS = 8
OBJECT_POINTS = 4
CODE_WEIGHTS = (1, 1, 1, 1, 1, 1, 1, 1, 0.2, 0.2)
CENTRE_COLUMNS = [0, 1, 4]  # of the box code
MAX_BOXES = 300
POST_CENTER_RANGE = (-61.2, -61.2, -10.0, 61.2, 61.2, 10.0)


def sample(feature_map, x, y):
    """Bilinear interpolation, zeros outside.

    Args:
        feature_map: (h, w, M, C / M); cell (r, c) has its middle at ((c + 0.5) / w, (r + 0.5) / h).
        x: (Q, M, P) fractions of the width, P points for each head.
        y: (Q, M, P) fractions of the height.

    Returns:
        (Q, M, P, C / M).
    """
    height, width, heads = feature_map.shape[:3]
    head = torch.arange(heads)[:, None]
    column, row = x * width - 0.5, y * height - 0.5
    value = 0
    for r in (row.floor().detach(), row.floor().detach() + 1):
        for c in (column.floor().detach(), column.floor().detach() + 1):
            inside = (r >= 0) & (r < height) & (c >= 0) & (c < width)
            share = inside * (1 - (row - r).abs()) * (1 - (column - c).abs())
            cell = feature_map[r.clamp(0, height - 1).long(), c.clamp(0, width - 1).long(), head]
            value = value + share[..., None] * cell
    return value


def deform_conv(image, offset, mask, weight, stride, padding, dilation, groups, deform_groups):
    """Deformable ConvNets v2 (arXiv 1811.11168), equation 1.

    Args:
        image: (C_in, H, W).
        offset: (deform_groups * K * 2, H', W'): dy and dx of each of the K kernel points.
        mask: (deform_groups * K, H', W').
        weight: (C_out, C_in / groups, kernel height, kernel width).

    Returns:
        (C_out, H', W').
    """
    channels, height, width = image.shape
    kernel_height, kernel_width = weight.shape[-2:]
    out_height, out_width = mask.shape[-2:]
    feature_map = image.permute(1, 2, 0).reshape(height, width, deform_groups, -1)
    offset = offset.reshape(deform_groups, kernel_height, kernel_width, 2, -1)
    mask = mask.reshape(deform_groups, kernel_height, kernel_width, -1)
    pixels = [(row, column) for row in range(out_height) for column in range(out_width)]
    row, column = torch.tensor(pixels, dtype=torch.float64)[:, None].unbind(dim=-1)
    out = 0
    for i in range(kernel_height):
        for j in range(kernel_width):
            dy, dx = offset[:, i, j, 0].T, offset[:, i, j, 1].T  # (H' * W', deform_groups)
            y = row * stride - padding + i * dilation + dy
            x = column * stride - padding + j * dilation + dx
            value = sample(feature_map, (x + 0.5)[..., None] / width, (y + 0.5)[..., None] / height)
            value = value.squeeze(2) * mask[:, i, j].T[..., None]
            value = value.reshape(-1, groups, channels // groups)
            kernel = weight[:, :, i, j].reshape(groups, -1, channels // groups)
            out = out + torch.einsum("pgc,goc->gop", value, kernel)
    return out.reshape(-1, out_height, out_width)


def project_pillars(meta, bev_hw):
    """For each camera the (Q, HEIGHTS, 2) points and the queries with a visible one."""
    pillars = [pillar(q, bev_hw, HEIGHTS, PC_RANGE) for q in range(bev_hw[0] * bev_hw[1])]
    projected = []
    for camera, matrix in enumerate(meta["lidar2img"]):
        image_hw = meta["img_shape"][camera][:2]
        points = [[project(point, matrix, image_hw) for point in points] for points in pillars]
        seen = [q for q, row in enumerate(points) if any(visible for _, _, visible in row)]
        points_uv = torch.tensor(
            [[(u, v) for u, v, _ in row] for row in points], dtype=torch.float64
        )
        projected.append((points_uv, torch.tensor(seen, dtype=torch.long)))
    return projected


def inverse_sigmoid(x):
    """Deformable DETR's: finite at 0 and 1."""
    return torch.log(x.clamp(min=1e-5) / (1 - x).clamp(min=1e-5))


class NaiveBEVFormer:
    """The equations with the weights of a state dict.

    Attributes:
        weights: float64 copies of the parameters of the head, for the gradients.
    """

    def __init__(self, state_dict):
        head = "pts_bbox_head."
        self.weights = {
            name[len(head) :]: tensor.detach().double().clone().requires_grad_()
            for name, tensor in state_dict.items()
            if name.startswith(head)
        }
        rows = self.weights["positional_encoding.row_embed.weight"]
        columns = self.weights["positional_encoding.col_embed.weight"]
        self.bev_hw = (len(rows), len(columns))

    def _count(self, prefix):
        """How many numbered layers there are under a name."""
        names = [name[len(prefix) :] for name in self.weights if name.startswith(prefix)]
        return 1 + max(int(name.split(".")[0]) for name in names)

    def linear(self, name, x):
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, name, x):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def feed_forward(self, name, x):
        return x + self.linear(f"{name}.1", self.linear(f"{name}.0.0", x).relu())

    def split_heads(self, name, feature_map):
        """Project an (h, w, C) map to (h, w, M, C / M)."""
        return self.linear(name, feature_map).reshape(*feature_map.shape[:2], HEADS, -1)

    # BEV encoder

    def bev_positions(self):
        """(Q, C): the column's embedding, then the row's."""
        rows = self.weights["positional_encoding.row_embed.weight"]
        columns = self.weights["positional_encoding.col_embed.weight"]
        return torch.stack([torch.cat((column, row)) for row in rows for column in columns])

    def cell_centres(self):
        """(Q, 2) x and y as fractions of the grid."""
        height, width = self.bev_hw
        return torch.tensor(
            [[(c + 0.5) / width, (r + 0.5) / height] for r in range(height) for c in range(width)],
            dtype=torch.float64,
        )

    def temporal_self_attention(self, name, query, history, initial_query, shift):
        """BEVFormer, equation 5: attend in the previous and the current BEV, take the mean.

        Without a history the query stands in for both. With one, the current BEV is what the first
        layer got, in every layer.
        """
        height, width = self.bev_hw
        frames = (query, query) if history is None else (history, initial_query)
        shifts = (shift, torch.zeros(2))
        joint = torch.cat((frames[0], query + self.bev_positions()), dim=1)
        offsets = self.linear(f"{name}.sampling_offsets", joint)
        offsets = offsets.reshape(-1, HEADS, 2, BEV_POINTS, 2)
        shares = self.linear(f"{name}.attention_weights", joint)
        shares = shares.reshape(-1, HEADS, 2, BEV_POINTS).softmax(dim=-1)
        attended = 0
        for t in range(2):
            values = self.split_heads(
                f"{name}.value_proj", frames[t].reshape(height, width, CHANNELS)
            )
            x, y = (self.cell_centres() + shifts[t])[:, :, None, None].unbind(dim=1)
            x = x + offsets[:, :, t, :, 0] / width
            y = y + offsets[:, :, t, :, 1] / height
            values = sample(values, x, y)
            attended = attended + (shares[:, :, t, :, None] * values).sum(dim=2) / 2
        return query + self.linear(f"{name}.output_proj", attended.flatten(1))

    def spatial_cross_attention(self, name, query, levels, projected):
        """BEVFormer, equations 3 and 4: the mean over the cameras that see a query's pillar.

        Args:
            levels: for each level the (h, w, C) maps of the cameras.
            projected: for each camera the (Q, HEIGHTS, 2) points and which queries it sees.
        """
        inner = f"{name}.deformable_attention"
        layout = (-1, HEADS, len(levels), CAMERA_POINTS)
        offsets = self.linear(f"{inner}.sampling_offsets", query).reshape(*layout, 2)
        shares = self.linear(f"{inner}.attention_weights", query)
        shares = shares.reshape(-1, HEADS, len(levels) * CAMERA_POINTS).softmax(dim=-1)
        shares = shares.reshape(layout)
        total = torch.zeros_like(query)
        views = torch.zeros(len(query), 1)
        for camera, (points_uv, seen) in enumerate(projected):
            attended = torch.zeros(len(seen), HEADS, CHANNELS // HEADS, dtype=torch.float64)
            for level, maps in enumerate(levels):
                height, width = maps[camera].shape[:2]
                values = self.split_heads(f"{inner}.value_proj", maps[camera])
                height_of_point = [p % HEIGHTS for p in range(CAMERA_POINTS)]
                u, v = points_uv[seen][:, None, height_of_point].unbind(dim=-1)
                x = u + offsets[seen, :, level, :, 0] / width
                y = v + offsets[seen, :, level, :, 1] / height
                values = sample(values, x, y)
                attended = attended + (shares[seen, :, level, :, None] * values).sum(dim=2)
            total = total.index_add(0, seen, attended.flatten(1))
            views[seen] += 1
        return query + self.linear(f"{name}.output_proj", total / views.clamp(min=1))

    def encode(self, features, meta, history=None):
        """BEV features of one frame.

        Args:
            features: L tensors (N, C, h, w).
            meta: with `can_bus` relative to the previous frame, `lidar2img` and `img_shape`.
            history: (Q, C) BEV features of the previous frame, or None at the start of a scene.

        Returns:
            (Q, C).
        """
        can_bus = torch.as_tensor(meta["can_bus"], dtype=torch.float64)
        hidden = self.linear("transformer.can_bus_mlp.0", can_bus).relu()
        motion = self.linear("transformer.can_bus_mlp.2", hidden).relu()
        motion = self.norm("transformer.can_bus_mlp.norm", motion)
        initial_query = self.weights["bev_embedding.weight"] + motion
        shift = torch.from_numpy(ego_shift(meta["can_bus"], PC_RANGE))
        if history is None:
            shift = torch.zeros(2)
        else:
            sources = source_cells(meta["can_bus"][17], self.bev_hw, ROTATE_CENTER)
            empty = torch.zeros(CHANNELS, dtype=torch.float64)
            history = torch.stack([empty if s is None else history[s] for s in sources])

        cameras, level_embeds = (
            self.weights[f"transformer.{part}_embeds"] for part in ("cams", "level")
        )
        levels = [
            [
                image.double().permute(1, 2, 0) + camera + level_embeds[level]
                for image, camera in zip(images, cameras)
            ]
            for level, images in enumerate(features)
        ]
        projected = project_pillars(meta, self.bev_hw)
        query = initial_query
        for layer in range(self._count("transformer.encoder.layers.")):
            name = f"transformer.encoder.layers.{layer}"
            query = self.temporal_self_attention(
                f"{name}.attentions.0", query, history, initial_query, shift
            )
            query = self.norm(f"{name}.norms.0", query)
            query = self.spatial_cross_attention(f"{name}.attentions.1", query, levels, projected)
            query = self.norm(f"{name}.norms.1", query)
            query = self.norm(f"{name}.norms.2", self.feed_forward(f"{name}.ffns.0.layers", query))
        return query

    # Object decoder

    def self_attention(self, name, query, query_pos):
        """Attention is all you need, section 3.2; positions are added to queries and keys only."""
        located = query + query_pos
        weight, bias = self.weights[f"{name}.in_proj_weight"], self.weights[f"{name}.in_proj_bias"]
        queries, keys, values = (
            (x @ w.T + b).reshape(len(x), HEADS, -1)
            for x, w, b in zip((located, located, query), weight.chunk(3), bias.chunk(3))
        )
        mixed = []
        for m in range(HEADS):
            scores = queries[:, m] @ keys[:, m].T / math.sqrt(CHANNELS // HEADS)
            mixed.append(scores.softmax(dim=-1) @ values[:, m])
        return query + self.linear(f"{name}.out_proj", torch.cat(mixed, dim=1))

    def bev_attention(self, name, query, query_pos, bev, reference_xy):
        """Deformable DETR, equation 2, on the BEV map."""
        height, width = self.bev_hw
        located = query + query_pos
        offsets = self.linear(f"{name}.sampling_offsets", located)
        offsets = offsets.reshape(-1, HEADS, OBJECT_POINTS, 2)
        shares = self.linear(f"{name}.attention_weights", located)
        shares = shares.reshape(-1, HEADS, OBJECT_POINTS).softmax(dim=-1)
        values = self.split_heads(f"{name}.value_proj", bev.reshape(height, width, CHANNELS))
        x, y = reference_xy[:, :, None, None].unbind(dim=1)
        values = sample(values, x + offsets[..., 0] / width, y + offsets[..., 1] / height)
        attended = (shares[..., None] * values).sum(dim=2)
        return query + self.linear(f"{name}.output_proj", attended.flatten(1))

    def decode(self, bev):
        """Objects of a BEV.

        Returns:
            logits: (O, K) of each decoder layer, K classes.
            codes: (O, 10) of each decoder layer, metres.
        """
        query_pos, query = self.weights["query_embedding.weight"].chunk(2, dim=1)
        reference = self.linear("transformer.reference_points", query_pos).sigmoid()
        low, high = torch.tensor(PC_RANGE, dtype=torch.float64).chunk(2)
        logits, codes = [], []
        for layer in range(self._count("transformer.decoder.layers.")):
            name = f"transformer.decoder.layers.{layer}"
            query = self.self_attention(f"{name}.attentions.0.attn", query, query_pos)
            query = self.norm(f"{name}.norms.0", query)
            query = self.bev_attention(
                f"{name}.attentions.1", query, query_pos, bev, reference[:, :2]
            )
            query = self.norm(f"{name}.norms.1", query)
            query = self.norm(f"{name}.norms.2", self.feed_forward(f"{name}.ffns.0.layers", query))

            x = query
            for linear, norm in ((0, 1), (3, 4)):
                x = self.linear(f"cls_branches.{layer}.{linear}", x)
                x = self.norm(f"cls_branches.{layer}.{norm}", x).relu()
            logits.append(self.linear(f"cls_branches.{layer}.6", x))

            x = query
            for linear in (0, 2):
                x = self.linear(f"reg_branches.{layer}.{linear}", x).relu()
            raw = self.linear(f"reg_branches.{layer}.4", x)
            centre = (inverse_sigmoid(reference) + raw[:, CENTRE_COLUMNS]).sigmoid()
            code = raw.clone()
            code[:, CENTRE_COLUMNS] = centre * (high - low) + low
            codes.append(code)
            reference = centre.detach()  # a layer does not teach the ones before where to look
        return logits, codes


# Losses and boxes


def focal_loss(logits, is_positive):
    """Focal loss (arXiv 1708.02002), equation 5, gamma 2, alpha 0.25; (O, K), no mean."""
    p = logits.sigmoid()
    positive = -0.25 * (1 - p) ** 2 * torch.nn.functional.logsigmoid(logits)
    negative = -0.75 * p**2 * torch.nn.functional.logsigmoid(-logits)
    return torch.where(is_positive, positive, negative)


def match(logits, codes, targets, labels):
    """DETR, equation 1: queries and truths of the cheapest one-to-one matching."""
    p = logits.sigmoid()
    positive = -0.25 * (1 - p) ** 2 * (p + 1e-12).log()
    negative = -0.75 * p**2 * (1 - p + 1e-12).log()
    classification = 2 * (positive - negative)[:, labels]
    distance = 0.25 * (codes[:, None, :8] - targets[None, :, :8]).abs().sum(dim=-1)
    return linear_sum_assignment((classification + distance).detach().numpy())


def losses(outputs, truths):
    """Losses of a batch.

    Args:
        outputs: for each sample what `decode` returned.
        truths: for each sample the boxes as in `box_code`, and the labels.

    Returns:
        dict by the published names.
    """
    names = [f"d{layer}." for layer in range(len(outputs[0][0]) - 1)] + [""]
    num_boxes = max(1, sum(len(labels) for _, labels in truths))
    result = {}
    for layer, name in enumerate(names):
        loss_cls = loss_bbox = 0
        for (logits, codes), (boxes, labels) in zip(outputs, truths):
            logits, codes = logits[layer], codes[layer]
            targets = torch.tensor(
                [box_code(box) for box in boxes.tolist()], dtype=torch.float64
            ).reshape(-1, 10)
            is_positive = torch.zeros_like(logits, dtype=torch.bool)
            for query, truth in zip(*match(logits, codes, targets, labels)):
                is_positive[query, labels[truth]] = True
                if torch.isfinite(targets[truth]).all():
                    error = (codes[query] - targets[truth]).abs()
                    loss_bbox = loss_bbox + (error * torch.tensor(CODE_WEIGHTS)).sum()
            loss_cls = loss_cls + focal_loss(logits, is_positive).sum()
        result[f"{name}loss_cls"] = 2.0 * loss_cls / num_boxes
        result[f"{name}loss_bbox"] = 0.25 * loss_bbox / num_boxes
    return result


def decoded_boxes(logits, codes):
    """Scores, labels and boxes (as in `box_code`) of the last decoder layer, best first."""
    return best_boxes(logits[-1].tolist(), codes[-1].tolist(), MAX_BOXES, POST_CENTER_RANGE)


# Frames in time


def relative_to(previous, meta):
    """The meta's pose minus the previous meta's of the scene; the previous may be None."""
    can_bus = meta["can_bus"].copy()
    for column in (0, 1, 2, 17):
        can_bus[column] = can_bus[column] - previous["can_bus"][column] if previous else 0.0
    return dict(meta, can_bus=can_bus)


def queue(absolute_metas):
    """Metas of a training queue: poses relative to the frame before, zero at scene starts."""
    metas, previous = {}, None
    for t, meta in enumerate(absolute_metas):
        if previous is not None and previous["scene_token"] != meta["scene_token"]:
            previous = None
        metas[t] = dict(relative_to(previous, meta), prev_bev_exists=previous is not None)
        previous = meta
    return metas


def last_bev(network, frames, metas):
    """BEV features of the last frame of a queue; those before it carry no gradient."""
    bev = None
    for t, features in enumerate(frames):
        history = bev.detach() if bev is not None and metas[t]["prev_bev_exists"] else None
        bev = network.encode(features, metas[t], history)
    return bev


class Stream:
    """Frames at test time: the BEV and the pose of the frame before, for each scene."""

    def __init__(self, network):
        self.network = network
        self.scenes = {}

    def step(self, features, meta):
        """BEV features of the next frame; the meta's pose is absolute."""
        previous, prev_bev = self.scenes.get(meta["scene_token"], (None, None))
        bev = self.network.encode(features, relative_to(previous, meta), prev_bev)
        self.scenes[meta["scene_token"]] = meta, bev
        return bev

"""Base class and helpers of the network's three deformable attentions.

Shape legend: C channels, M heads, G groups of points (levels, or frames), P points per group, L levels,
B batch, T maps, Q queries, S cells of a map.
"""

import math

import torch
from einops import rearrange
from mmcv.runner import BaseModule
from torch import nn

from projects.bevformer.transfer import constant


class DeformableAttention(BaseModule):
    """The projections that predict offsets, weights and values, with their initial weights.

    Args:
        embed_dims: C.
        num_heads: M.
        num_groups: G.
        num_points: P.
        query_dims: channels of the input that predicts offsets and weights; None is C.
        output_proj: has an output projection.

    Attributes:
        default_backend: see `ops.set_default_backend`; subclasses pass it to ops.

    Raises:
        ValueError: C is not a multiple of M.
    """

    default_backend = None

    def __init__(
        self,
        embed_dims,
        num_heads,
        num_groups,
        num_points,
        query_dims=None,
        output_proj=True,
        init_cfg=None,
    ):
        super().__init__(init_cfg)
        check_heads(embed_dims, num_heads)
        self.num_heads, self.num_groups, self.num_points = num_heads, num_groups, num_points
        samples = num_heads * num_groups * num_points
        query_dims = query_dims or embed_dims
        self.sampling_offsets = nn.Linear(query_dims, samples * 2)
        self.attention_weights = nn.Linear(query_dims, samples)
        self.value_proj = nn.Linear(embed_dims, embed_dims)
        if output_proj:
            self.output_proj = nn.Linear(embed_dims, embed_dims)
        self.init_weights()

    def init_weights(self):
        """Offsets as rays, uniform attention, Xavier projections.

        Head m looks in direction 2 pi m / M, and point p lies p + 1 cells away.

        Source: Deformable DETR (arXiv 2010.04159), appendix A.4.
        """
        angles = torch.arange(self.num_heads, dtype=torch.float32) * (
            2.0 * math.pi / self.num_heads
        )
        rays = torch.stack((angles.cos(), angles.sin()), dim=-1)  # (M, 2)
        rays = rays / rays.abs().max(dim=-1, keepdim=True).values
        steps = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        bias = rays[:, None, None, :] * steps[None, None, :, None]  # (M, 1, P, 2)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(bias.expand(-1, self.num_groups, -1, -1).reshape(-1))
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        init_projection(self.value_proj)
        if hasattr(self, "output_proj"):
            init_projection(self.output_proj)

    def samples(self, query, values, reference, map_hw):
        """What to sample of T maps of one level each, and with which weights; T = G.

        Args:
            query: (B, Q, C') what predicts offsets and weights.
            values: (B, T, S, C) features of the maps, row by row.
            reference: (B, T, Q, 2) (x, y) where each query looks, fractions of the map.
            map_hw: rows and columns of the maps.

        Returns:
            Arguments of `multi_scale_deformable_attn` for a batch of B * T maps.
        """
        sizes = dict(m=self.num_heads, t=self.num_groups)
        offsets = self.sampling_offsets(query).float()
        offsets = rearrange(offsets, "b q (m t p xy) -> (b t) q m 1 p xy", xy=2, **sizes)
        weights = self.attention_weights(query).float()
        weights = rearrange(weights, "b q (m t p) -> (b t) q m 1 p", **sizes).softmax(dim=-1)
        reference = rearrange(reference, "b t q xy -> (b t) q 1 1 1 xy")
        locations = sampling_locations(reference, offsets, [map_hw])
        values = rearrange(self.value_proj(values), "b t s (m c) -> (b t) s m c", m=self.num_heads)
        return values, [map_hw], locations, weights


def init_projection(layer):
    """Xavier weights, zero bias, in place."""
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)


def check_heads(embed_dims, num_heads):
    """Raise ValueError where the channels do not divide evenly among the heads."""
    if embed_dims % num_heads != 0:
        raise ValueError(f"embed_dims ({embed_dims}) must be divisible by num_heads ({num_heads})")


def sampling_locations(reference, offsets, map_hw):
    """Reference points plus offsets, as fractions of the maps.

    Args:
        reference: (..., 2) (x, y) fractions; it broadcasts with `offsets`.
        offsets: (..., L, K, 2) float32 (x, y) in cells of their map, K any number of points.
        map_hw: L pairs (h, w).

    Returns:
        Of the shape of `offsets`.
    """
    sizes = tuple((w, h) for h, w in map_hw)
    map_wh = constant(
        ("map_wh", sizes, offsets.dtype),
        lambda: torch.tensor(sizes, dtype=offsets.dtype)[:, None],  # (L, 1, 2)
        offsets,
    )
    return torch.addcdiv(reference, offsets, map_wh)

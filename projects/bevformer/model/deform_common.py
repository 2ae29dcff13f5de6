"""Initial weights that the deformable attention modules share."""

import math

import torch
from torch import nn


def init_sampling_offsets(layer, num_heads, num_groups, num_points):
    """Start the offsets as rays: head m looks in direction 2 pi m / M, point p goes p + 1 cells far.

    Args:
        layer: nn.Linear with M * G * P * 2 outputs; edited in place.
        num_heads: M.
        num_groups: G, everything between heads and points (levels, or queue frames and levels).
        num_points: P.

    Source: Deformable DETR (arXiv 2010.04159), appendix A.4.
    """
    angles = torch.arange(num_heads, dtype=torch.float32) * (2.0 * math.pi / num_heads)
    rays = torch.stack((angles.cos(), angles.sin()), dim=-1)  # (M, 2)
    rays = rays / rays.abs().max(dim=-1, keepdim=True).values
    steps = torch.arange(1, num_points + 1, dtype=torch.float32)
    bias = rays[:, None, None, :] * steps[None, None, :, None]  # (M, 1, P, 2)
    nn.init.zeros_(layer.weight)
    with torch.no_grad():
        layer.bias.copy_(bias.expand(num_heads, num_groups, num_points, 2).reshape(-1))


def init_projection(layer):
    """Xavier weights, zero bias; edited in place."""
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)


def check_heads(embed_dims, num_heads):
    """Raise ValueError where the channels do not divide evenly among the heads."""
    if embed_dims % num_heads != 0:
        raise ValueError(f"embed_dims ({embed_dims}) must be divisible by num_heads ({num_heads})")

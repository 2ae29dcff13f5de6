"""GridMask augmentation: a grid of black squares over the images of a frame."""

import numpy as np
import torch
from torch import nn


class GridMask(nn.Module):
    """In training, and with probability `prob`, blanks a regular grid of squares.

    The grid's period is drawn from [2, H) pixels; stripes of `ratio` times the period stay visible
    along both axes, the squares between them are blanked. All images share one grid.

    Args:
        ratio: visible share of the period along each axis.
        prob: of masking at all.

    Source: GridMask (arXiv 2001.04086), with the settings of the original BEVFormer.
    """

    def __init__(self, ratio=0.5, prob=0.7):
        super().__init__()
        self.ratio = ratio
        self.prob = prob

    def forward(self, images):
        """Mask.

        Args:
            images: (B * N, 3, H, W).

        Returns:
            (B * N, 3, H, W); the input itself when nothing is masked, never edited in place.
        """
        if not self.training or np.random.rand() > self.prob:
            return images
        height, width = images.shape[-2:]
        period = np.random.randint(2, height)
        stripe = min(max(int(period * self.ratio + 0.5), 1), period - 1)
        offset_y, offset_x = np.random.randint(period, size=2)
        rows = (torch.arange(height, device=images.device) + offset_y) % period < stripe
        columns = (torch.arange(width, device=images.device) + offset_x) % period < stripe
        keep = rows[:, None] | columns[None, :]  # (H, W)
        return images * keep.to(images.dtype)

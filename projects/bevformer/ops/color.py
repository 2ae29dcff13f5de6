"""Colour distortion of batches of images, on any device.

Shape legend: M images, H height, W width. Channels are blue, green, red; values are 0 ... 255 and
may leave that range.
"""

from __future__ import annotations

import torch
from torch import Tensor


def distort_colors(
    images: Tensor,
    brightness: Tensor,
    contrast_first: Tensor,
    saturation: Tensor,
    hue: Tensor,
    contrast_last: Tensor,
    channels: Tensor,
) -> Tensor:
    """Change brightness, contrast, saturation, hue and the order of the channels.

    Args:
        images: (M, 3, H, W) float32.
        brightness: (M,) added; 0 for no change.
        contrast_first: (M,) factor before hue and saturation change; 1 for no change.
        saturation: (M,) factor; 1 for no change.
        hue: (M,) degrees added; 0 for no change.
        contrast_last: (M,) factor after that; 1 for no change.
        channels: (M, 3) int64, the channels that become the first, second and third.

    Returns:
        (M, 3, H, W) float32.

    Source: SSD (arXiv 1512.02325), section 3.6; the order of the changes is mmdet's.
    """
    images = (images + _each(brightness)) * _each(contrast_first)
    angle, strength, value = bgr_to_hsv(images)
    angle = (angle + hue[:, None, None]) % 360.0
    images = hsv_to_bgr(angle, strength * saturation[:, None, None], value)
    images = images * _each(contrast_last)
    return images.gather(1, channels[:, :, None, None].expand_as(images))


def _each(numbers: Tensor) -> Tensor:
    """(M,) -> (M, 1, 1, 1): one number per image."""
    return numbers[:, None, None, None]


def bgr_to_hsv(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue, saturation and value of a batch.

    Args:
        images: (M, 3, H, W) float32.

    Returns:
        hue: (M, H, W) degrees, [0, 360].
        saturation: (M, H, W), 0 ... 1 where no channel is negative.
        value: (M, H, W) the largest channel.

    Source: OpenCV's definition for float32 images, negative values included.
    """
    blue, green, red = images.unbind(1)
    value = images.amax(1)
    spread = value - images.amin(1)
    epsilon = torch.finfo(torch.float32).eps
    saturation = spread / (value.abs() + epsilon)
    per_step = 60.0 / (spread + epsilon)
    hue = torch.where(
        value == red,
        (green - blue) * per_step,
        torch.where(
            value == green,
            (blue - red) * per_step + 120.0,
            (red - green) * per_step + 240.0,
        ),
    )
    return torch.where(hue < 0, hue + 360.0, hue), saturation, value


def hsv_to_bgr(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Inverse of `bgr_to_hsv`; a saturation above 1 gives negative channels.

    Args:
        hue: (M, H, W) degrees.
        saturation: (M, H, W).
        value: (M, H, W).

    Returns:
        (M, 3, H, W).
    """
    chroma = value * saturation
    sixths = hue / 60.0
    channels = []
    for offset in (1.0, 3.0, 5.0):  # blue, green, red
        place = (sixths + offset) % 6.0
        channels.append(value - chroma * torch.minimum(place, 4.0 - place).clamp(0.0, 1.0))
    return torch.stack(channels, dim=1)

"""The ground seen from above: its colours, and the mask of the drivable surface.

Both are pictures of RESOLUTION_M metres a pixel; column = x / RESOLUTION_M, row = y / RESOLUTION_M.
"""

import cv2
import numpy as np

from projects.synthetic_nuscenes.road import LANE_WIDTH, SIDES
from projects.synthetic_nuscenes.traffic import Crossing

RESOLUTION_M = 0.1

_SHIFT = 4  # fractional bits of polygon corners
_SAMPLE_M = 1.0  # distance of the corners along a strip

_ASPHALT = (78, 79, 82)
_PARKING = (92, 91, 90)
_BICYCLE_LANE = (112, 78, 70)
_KERB = (165, 163, 158)
_PAVEMENT = (138, 132, 124)
_SEAM = (112, 107, 100)
_GRASS = (84, 98, 58)
_YARD = (120, 112, 98)
_WHITE = (205, 205, 202)
_YELLOW = (196, 160, 60)


class _Painter:
    """Fills strips given in road coordinates."""

    def __init__(self, road, image):
        self._road, self._image = road, image

    def strip(self, s0, s1, d0, d1, color):
        """Fill s0 <= s <= s1, d0 <= d <= d1."""
        s = np.linspace(s0, s1, max(2, int(np.ceil((s1 - s0) / _SAMPLE_M)) + 1))
        x0, y0 = self._road.point(s, d0)
        x1, y1 = self._road.point(s, d1)
        outline = np.stack([np.concatenate([x0, x1[::-1]]), np.concatenate([y0, y1[::-1]])], axis=1)
        # cv2 puts integer coordinates at pixel centres.
        corners = np.round((outline / RESOLUTION_M - 0.5) * 2**_SHIFT).astype(np.int32)
        cv2.fillPoly(self._image, [corners], color, lineType=cv2.LINE_AA, shift=_SHIFT)


def _blank(world, color):
    width, height = (int(np.ceil(metres / RESOLUTION_M)) for metres in world.region_m)
    return np.full((height, width, len(color)), color, dtype=np.uint8)


def _span(world):
    """Stations between which the road may lie in the mapped region."""
    reach = 130.0
    return world.ego.s[0] - reach, world.ego.s[-1] + reach


def paint_ground(world, rng):
    """Colours of the ground, (H, W, 3) uint8, square root of linear RGB."""
    image = _blank(world, _GRASS)
    painter, section = _Painter(world.road, image), world.section
    s0, s1 = _span(world)
    tint = rng.normal(0.0, 2.5, 3) + rng.normal(0.0, 8.0)

    def tinted(color):
        return tuple(float(np.clip(value + shift, 0, 255)) for value, shift in zip(color, tint))

    for side in SIDES:

        def band(inner, outer, color, start=s0, stop=s1, side=side):
            low, high = sorted((side * inner, side * outer))
            painter.strip(start, stop, low, high, color)

        line, kerb = section.building_line(side), section.kerb(side)
        band(line, line + 16.0, tinted(_YARD))
        band(kerb, line, tinted(_PAVEMENT))
        for at in np.arange(kerb + 0.3, line, 1.0):
            band(at, at + 0.06, tinted(_SEAM))
        for s in np.arange(s0, s1, 1.5):
            band(kerb + 0.2, line, tinted(_SEAM), s, s + 0.06)
        band(kerb, kerb + 0.22, tinted(_KERB))
        band(section.parking_edge, kerb, tinted(_PARKING))
        band(section.lane_edge, section.parking_edge, tinted(_BICYCLE_LANE))
        band(0.0, section.lane_edge, tinted(_ASPHALT))
        band(section.lane_edge - 0.07, section.lane_edge + 0.07, _WHITE)
        band(section.parking_edge - 0.05, section.parking_edge + 0.05, _WHITE)
        for s in np.arange(s0, s1, 6.5):
            band(section.parking_edge, section.parking_edge + 1.2, _WHITE, s, s + 0.12)
        for lane in range(1, section.lanes_per_side):
            for s in np.arange(s0, s1, 9.0):
                band(lane * LANE_WIDTH - 0.07, lane * LANE_WIDTH + 0.07, _WHITE, s, s + 3.0)
    for offset in (-0.16, 0.16):
        painter.strip(s0, s1, offset - 0.06, offset + 0.06, _YELLOW)
    for crossing in world.crossings:
        if s0 < crossing.s < s1:
            _paint_crossing(painter, section, crossing, tinted(_ASPHALT))
    return _weathered(image, rng)


def _paint_crossing(painter, section, crossing, asphalt):
    low, high = crossing.s - Crossing.HALF_WIDTH, crossing.s + Crossing.HALF_WIDTH
    left, right = section.kerb(1), section.kerb(-1)
    painter.strip(low - 1.0, high + 1.0, -right, left, asphalt)
    for d in np.arange(-right + 0.4, left - 0.5, 1.1):
        painter.strip(low, high, d, d + 0.55, _WHITE)
    stop = Crossing.STOP_DISTANCE - 0.6
    painter.strip(low - stop - 0.35, low - stop, -section.parking_edge, -0.2, _WHITE)
    painter.strip(high + stop, high + stop + 0.35, 0.2, section.parking_edge, _WHITE)


def _weathered(image, rng):
    """Blotches of several sizes and a fine grain."""
    height, width = image.shape[:2]
    factor = np.zeros((height, width), dtype=np.float32)
    for cell, strength in ((120, 0.05), (25, 0.035), (4, 0.03)):
        coarse = rng.normal(0.0, strength, (height // cell + 2, width // cell + 2)).astype(
            np.float32
        )
        factor += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    factor += 1.0
    return cv2.multiply(image, cv2.merge([factor] * 3), dtype=cv2.CV_8U)


def drivable_mask(world):
    """(H, W) uint8, 255 on the drivable surface and 0 elsewhere."""
    image = _blank(world, (0,))
    painter = _Painter(world.road, image)
    s0, s1 = _span(world)
    painter.strip(s0, s1, -world.section.kerb(-1), world.section.kerb(1), (255,))
    return np.where(image[..., 0] > 127, 255, 0).astype(np.uint8)


def mip_levels(image, count=6):
    """The picture and its halvings, packed for the shader.

    Returns:
        texels: (P, 3) uint8, level after level, row by row.
        layout: (count, 3) int64, first texel, height and width of each level.
    """
    levels = [image]
    for _ in range(count - 1):
        height, width = levels[-1].shape[:2]
        levels.append(
            cv2.resize(
                levels[-1], (max(1, width // 2), max(1, height // 2)), interpolation=cv2.INTER_AREA
            )
        )
    layout, first = [], 0
    for level in levels:
        layout.append((first, level.shape[0], level.shape[1]))
        first += level.shape[0] * level.shape[1]
    return np.concatenate([level.reshape(-1, 3) for level in levels]), np.array(
        layout, dtype=np.int64
    )

"""The road of a scene: its centre line and its cross-section.

Road coordinates are (s, d): metres along the centre line, and metres to its left.

        d     building line, outer[side]
        ^     pavement: walking tracks
        |     furniture strip (trees, lamps, parked bicycles)       <- kerb
        |     parking strip or construction zone
        |     bicycle lane
        |     lanes_per_side x LANE_WIDTH, traffic against s
        +---- centre line --------------------------------> s
              lanes_per_side x LANE_WIDTH, traffic along s; then the same strips mirrored
"""

from dataclasses import dataclass
from typing import Dict

import numpy as np

LANE_WIDTH = 3.5
BICYCLE_LANE_WIDTH = 1.6
FURNITURE_WIDTH = 1.4
PAVEMENT_WIDTH = 3.4

LEFT, RIGHT = 1, -1
SIDES = (LEFT, RIGHT)

_STEP = 0.5
_MAX_CURVATURE = 1.0 / 75.0
_MAX_HEADING = np.radians(50.0)


class CentreLine:
    """A smooth curve of bounded curvature and heading, so that it never meets itself."""

    def __init__(self, rng, s_min=-320.0, s_max=620.0):
        self.s = np.arange(s_min, s_max + _STEP, _STEP)
        curvature = np.empty_like(self.s)
        heading, start = 0.0, 0
        while start < len(self.s):
            length = rng.uniform(30.0, 80.0)
            stop = min(len(self.s), start + int(length / _STEP))
            bend = rng.uniform(-_MAX_CURVATURE, _MAX_CURVATURE)
            if abs(heading + bend * length) > _MAX_HEADING:
                bend = -np.sign(heading) * abs(bend)
            curvature[start:stop] = bend
            heading += bend * (stop - start) * _STEP
            start = stop
        # A car cannot change its curvature in no time: blend over 15 m.
        width = int(15.0 / _STEP) | 1
        padded = np.pad(curvature, width // 2, mode="edge")
        self.curvature = np.convolve(padded, np.ones(width) / width, mode="valid")
        self._heading = np.concatenate([[0.0], np.cumsum(self.curvature[:-1]) * _STEP])
        self._heading += rng.uniform(-np.pi, np.pi)
        middle = self._heading[:-1] + 0.5 * _STEP * self.curvature[:-1]
        self._x = np.concatenate([[0.0], np.cumsum(np.cos(middle)) * _STEP])
        self._y = np.concatenate([[0.0], np.cumsum(np.sin(middle)) * _STEP])

    def move(self, dx, dy):
        """Shift the whole road by (dx, dy) metres."""
        self._x += dx
        self._y += dy

    def heading(self, s):
        """Direction of +s in radians, world frame; s (...)."""
        return np.interp(s, self.s, self._heading)

    def bend(self, s):
        """Curvature in 1/m, positive to the left; s (...)."""
        return np.interp(s, self.s, self.curvature)

    def point(self, s, d):
        """World (x, y), each (...), of road coordinates s (...) and d (...)."""
        heading = self.heading(s)
        x = np.interp(s, self.s, self._x) - d * np.sin(heading)
        y = np.interp(s, self.s, self._y) + d * np.cos(heading)
        return x, y


@dataclass(frozen=True)
class CrossSection:
    """Widths of a road; distances are metres from the centre line, the same sign on both sides."""

    lanes_per_side: int
    parking_width: Dict[int, float]

    @property
    def lane_edge(self):
        """Outer edge of the outermost lane."""
        return self.lanes_per_side * LANE_WIDTH

    @property
    def parking_edge(self):
        """Inner edge of the parking strip."""
        return self.lane_edge + BICYCLE_LANE_WIDTH

    def kerb(self, side):
        """Edge of the pavement."""
        return self.parking_edge + self.parking_width[side]

    def furniture_edge(self, side):
        """Where the walking tracks begin."""
        return self.kerb(side) + FURNITURE_WIDTH

    def building_line(self, side):
        """Where the pavement ends."""
        return self.furniture_edge(side) + PAVEMENT_WIDTH

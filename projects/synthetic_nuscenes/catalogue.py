"""Kinds of objects: sizes of the ten classes, colours and category names.

Mean sizes are those of nuScenes, rounded; the spread is about nine per cent of each side.
"""

from dataclasses import dataclass
from typing import Tuple

import numpy as np

_SPREAD = 0.09
_SPREAD_LIMIT = 2.0  # standard deviations


@dataclass(frozen=True)
class Kind:
    """A kind of object: its nuScenes category and its mean length, width and height in metres."""

    category: str
    size_lwh: Tuple[float, float, float]
    length_spread: float = _SPREAD


KINDS = {
    "car": Kind("vehicle.car", (4.6, 1.95, 1.73)),
    "truck": Kind("vehicle.truck", (6.9, 2.5, 2.84), 0.15),
    "construction_vehicle": Kind("vehicle.construction", (6.4, 2.85, 3.2)),
    "bus": Kind("vehicle.bus.rigid", (11.2, 2.95, 3.5)),
    "trailer": Kind("vehicle.trailer", (12.0, 2.9, 3.8), 0.12),
    "barrier": Kind("movable_object.barrier", (0.5, 2.5, 1.0)),
    # Two-wheelers are higher with their rider; the mean over both is that of nuScenes.
    "motorcycle": Kind("vehicle.motorcycle", (2.1, 0.77, 1.25)),
    "ridden_motorcycle": Kind("vehicle.motorcycle", (2.1, 0.77, 1.65)),
    "bicycle": Kind("vehicle.bicycle", (1.7, 0.6, 1.08)),
    "ridden_bicycle": Kind("vehicle.bicycle", (1.75, 0.62, 1.7)),
    "pedestrian": Kind("human.pedestrian.adult", (0.73, 0.67, 1.77)),
    "sitting_pedestrian": Kind("human.pedestrian.adult", (0.8, 0.67, 1.3)),
    "construction_worker": Kind("human.pedestrian.construction_worker", (0.73, 0.7, 1.78)),
    "traffic_cone": Kind("movable_object.trafficcone", (0.41, 0.41, 1.07)),
}

# Narrower than the limits that lanes and parking strips can hold.
_MAX_WIDTH = 3.0


def draw_size(kind, rng):
    """Length, width and height in metres of a new object of `kind`, a key of KINDS."""
    mean = np.array(KINDS[kind].size_lwh)
    spread = np.array([KINDS[kind].length_spread, _SPREAD, _SPREAD])
    size = mean * (1.0 + spread * np.clip(rng.normal(size=3), -_SPREAD_LIMIT, _SPREAD_LIMIT))
    size[1] = min(size[1], _MAX_WIDTH)
    return np.round(size, 3)


# Linear RGB, 0 to 1.
CAR_COLORS = np.array(
    [
        [0.85, 0.85, 0.86], [0.55, 0.57, 0.60], [0.25, 0.26, 0.28], [0.06, 0.06, 0.07],
        [0.60, 0.07, 0.07], [0.08, 0.16, 0.45], [0.10, 0.35, 0.55], [0.06, 0.28, 0.15],
        [0.62, 0.50, 0.30], [0.72, 0.35, 0.08], [0.40, 0.20, 0.35], [0.75, 0.68, 0.18],
    ]
)  # fmt: skip
CARGO_COLORS = np.array(
    [[0.85, 0.85, 0.83], [0.62, 0.64, 0.66], [0.20, 0.32, 0.50], [0.55, 0.18, 0.14],
     [0.25, 0.42, 0.28], [0.70, 0.62, 0.42]]
)  # fmt: skip
BUS_COLORS = np.array(
    [[0.80, 0.80, 0.82], [0.75, 0.62, 0.10], [0.15, 0.40, 0.60], [0.62, 0.12, 0.12],
     [0.15, 0.45, 0.30]]
)  # fmt: skip
SKIN_COLORS = np.array(
    [[0.85, 0.66, 0.53], [0.72, 0.52, 0.38], [0.50, 0.34, 0.24], [0.32, 0.21, 0.15]]
)


def pick_color(palette, rng, jitter=0.06):
    """One colour of an (n, 3) palette, varied a little."""
    color = palette[rng.integers(len(palette))]
    return np.clip(color + rng.normal(0.0, jitter, 3), 0.02, 0.95)

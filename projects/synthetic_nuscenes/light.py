"""Sun, sky and air of a scene."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Light:
    """Everything that colours a scene; colours are linear RGB.

    Attributes:
        to_sun: (3,) unit vector, world frame.
        sun: (3,) light on a surface that faces the sun.
        ambient: (3,) light on a surface that faces the sky.
        zenith: (3,) colour of the sky above.
        horizon: (3,) colour of the sky at the horizon and of the haze.
        cloudiness: 0 to 1.
        haze_range_m: distance over which haze hides two thirds of a surface.
        shadow: share of the light that a shadow on the ground takes away.
        noise: standard deviation of the image noise, grey levels.
    """

    to_sun: np.ndarray
    sun: np.ndarray
    ambient: np.ndarray
    zenith: np.ndarray
    horizon: np.ndarray
    cloudiness: float
    haze_range_m: float
    shadow: float
    noise: float


def draw_light(rng):
    """A day between clear and overcast."""
    overcast = rng.uniform(0.0, 1.0)
    azimuth, elevation = rng.uniform(-np.pi, np.pi), np.radians(rng.uniform(35.0, 65.0))
    to_sun = [
        np.cos(azimuth) * np.cos(elevation),
        np.sin(azimuth) * np.cos(elevation),
        np.sin(elevation),
    ]
    warmth = rng.uniform(-0.06, 0.10)
    brightness = rng.uniform(0.85, 1.15)
    grey, blue = np.array([0.62, 0.66, 0.70]), np.array([0.16, 0.33, 0.68])
    horizon = np.array([0.68, 0.75, 0.82]) * rng.uniform(0.85, 1.05)
    return Light(
        to_sun=np.array(to_sun),
        sun=np.array([1 + warmth, 1.0, 1 - warmth]) * brightness * (0.95 - 0.7 * overcast),
        ambient=np.array([1 - warmth, 1.0, 1 + 1.3 * warmth + 0.04])
        * brightness
        * (0.42 + 0.38 * overcast),
        zenith=blue * (1 - overcast) + grey * overcast,
        horizon=horizon,
        cloudiness=float(0.25 + 0.6 * overcast),
        haze_range_m=float(rng.uniform(180.0, 500.0)),
        shadow=float(0.55 - 0.40 * overcast),
        noise=float(rng.uniform(1.0, 2.5)),
    )

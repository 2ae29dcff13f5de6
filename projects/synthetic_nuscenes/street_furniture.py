"""Shapes of barriers and cones, and of the scenery that is not annotated; see vehicles.py."""

import numpy as np

from projects.synthetic_nuscenes.mesh import FACADE, FOLIAGE, LAMP, PLAIN, STRIPES, MeshBuilder

CONE_ORANGE = (0.95, 0.25, 0.03)
WHITE = (0.88, 0.88, 0.86)
FACADE_COLORS = np.array(
    [[0.52, 0.38, 0.30], [0.62, 0.58, 0.50], [0.45, 0.45, 0.47], [0.40, 0.22, 0.17],
     [0.68, 0.64, 0.60], [0.35, 0.38, 0.42]]
)  # fmt: skip
LEAF_COLORS = np.array(
    [[0.10, 0.22, 0.06], [0.16, 0.26, 0.08], [0.22, 0.24, 0.08], [0.30, 0.20, 0.07]]
)


def barrier(size, rng):
    """A striped board on two feet; its normal is the x axis, it is wider than long."""
    mesh = MeshBuilder(size)
    mesh.box(-0.16, 0.16, -0.5, 0.5, 0.30, 1.0, WHITE, STRIPES)
    for y in (-0.44, 0.34):
        mesh.box(-0.5, 0.5, y, y + 0.10, 0.0, 0.10, (0.10, 0.10, 0.10), PLAIN)
        mesh.box(-0.12, 0.12, y, y + 0.10, 0.10, 0.30, (0.45, 0.45, 0.45), PLAIN)
    return mesh


def traffic_cone(size, rng):
    """An orange cone with a white band on a square base."""
    mesh = MeshBuilder(size)
    mesh.box(-0.5, 0.5, -0.5, 0.5, 0.0, 0.07, (0.55, 0.13, 0.02), PLAIN)
    levels = [(0.07, 0.36), (0.42, 0.25), (0.66, 0.175), (1.0, 0.07)]
    for (z0, r0), (z1, r1), color in zip(levels, levels[1:], (CONE_ORANGE, WHITE, CONE_ORANGE)):
        _ring(mesh, z0, r0, z1, r1, color)
    mesh.box(-0.07, 0.07, -0.07, 0.07, 0.98, 1.0, CONE_ORANGE, PLAIN)
    return mesh


def _ring(mesh, z0, r0, z1, r1, color, surface=PLAIN, sides=6):
    angles = np.arange(sides + 1) * 2 * np.pi / sides
    for a, b in zip(angles, angles[1:]):
        corners = [(r0 * np.cos(a), r0 * np.sin(a), z0), (r0 * np.cos(b), r0 * np.sin(b), z0),
                   (r1 * np.cos(b), r1 * np.sin(b), z1), (r1 * np.cos(a), r1 * np.sin(a), z1)]  # fmt: skip
        mesh.quad(corners, color, surface, inside=(0.0, 0.0, (z0 + z1) / 2))


def building(size, rng):
    """A block with rows of windows."""
    mesh = MeshBuilder(size)
    color = np.clip(
        FACADE_COLORS[rng.integers(len(FACADE_COLORS))] * rng.uniform(0.7, 1.2), 0.05, 0.9
    )
    mesh.box(-0.5, 0.5, -0.5, 0.5, 0.0, 1.0, color, FACADE, sides={"top": (color * 0.6, PLAIN)})
    return mesh


def tree(size, rng):
    """A trunk and a faceted crown."""
    mesh = MeshBuilder(size)
    leaves = LEAF_COLORS[rng.integers(len(LEAF_COLORS))] * rng.uniform(0.8, 1.3)
    trunk = 0.12 / size[0]
    mesh.box(-trunk, trunk, -trunk, trunk, 0.0, 0.45, (0.16, 0.11, 0.07), PLAIN)
    levels = [(0.34, 0.18), (0.48, 0.46), (0.70, 0.50), (0.88, 0.34), (1.0, 0.08)]
    for (z0, r0), (z1, r1) in zip(levels, levels[1:]):
        _ring(mesh, z0, r0, z1, r1, leaves, FOLIAGE, sides=8)
    return mesh


def lamp_post(size, rng):
    """A thin pole with an arm and a lamp towards +x."""
    mesh = MeshBuilder(size)
    grey = (0.25, 0.26, 0.27)
    mesh.box(-0.50, -0.44, -0.30, 0.30, 0.0, 0.97, grey, PLAIN)
    mesh.box(-0.50, 0.50, -0.20, 0.20, 0.96, 0.98, grey, PLAIN)
    mesh.box(0.22, 0.50, -0.50, 0.50, 0.98, 1.0, (0.80, 0.80, 0.75), LAMP)
    return mesh

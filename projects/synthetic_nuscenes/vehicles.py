"""Shapes of vehicles. Lamps, windscreens and grilles distinguish the front from the back.

Every function takes the size (length, width, height) in metres and a random generator and returns
a `MeshBuilder`; positions are fractions of the size.
"""

import numpy as np

from projects.synthetic_nuscenes.catalogue import BUS_COLORS, CAR_COLORS, CARGO_COLORS, pick_color
from projects.synthetic_nuscenes.mesh import GLASS, LAMP, PLAIN, RIBS, MeshBuilder

DARK = (0.035, 0.035, 0.04)
CHASSIS = (0.06, 0.06, 0.065)
WINDOW = (0.05, 0.06, 0.08)
WINDSCREEN = (0.10, 0.14, 0.18)
HEAD_LAMP = (1.0, 0.97, 0.85)
TAIL_LAMP = (0.85, 0.02, 0.02)
PLATE = (0.75, 0.75, 0.70)
AMBER = (1.0, 0.45, 0.03)
MACHINE_YELLOW = (0.80, 0.50, 0.03)


def _lamps(mesh, head_z, tail_z, inner=0.28, outer=0.47, at=0.5):
    """White lamps in front, red ones behind, and their corners seen from the sides."""
    for sign in (-1, 1):
        along = tuple(sorted((sign * inner, sign * outer)))
        mesh.plate("front", along, *head_z, HEAD_LAMP, LAMP, at=at)
        mesh.plate("back", along, *tail_z, TAIL_LAMP, LAMP, at=at)
    for side in ("left", "right"):
        mesh.plate(side, (0.455, 0.495), *head_z, HEAD_LAMP, LAMP, at=0.499)
        mesh.plate(side, (-0.495, -0.45), *tail_z, TAIL_LAMP, LAMP, at=0.499)


def _wheels(mesh, positions, radius, width=0.09):
    for x in positions:
        mesh.wheel(x, -0.5, -0.5 + width, radius)
        mesh.wheel(x, 0.5 - width, 0.5, radius)


def car(size, rng):
    """A saloon, an estate or a van: body, bonnet, narrower cabin with windows."""
    mesh = MeshBuilder(size)
    paint = pick_color(CAR_COLORS, rng)
    cabin_bottom, cabin_top = [
        ((-0.40, 0.24), (-0.24, 0.06)),
        ((-0.485, 0.24), (-0.43, 0.08)),
        ((-0.49, 0.34), (-0.46, 0.20)),
    ][rng.choice(3, p=[0.45, 0.4, 0.15])]
    waist = 0.56
    edge = 0.49
    mesh.box(-0.495, 0.22, -edge, edge, 0.15, waist, paint)
    bonnet_low = (0.22, 0.495, -edge, edge, 0.15)
    mesh.frustum(bonnet_low, (0.22, 0.485, -edge, edge, 0.49), paint)
    mesh.quad(
        [(0.485, -edge, 0.49), (0.485, edge, 0.49), (0.22, edge, waist), (0.22, -edge, waist)],
        paint,
    )
    for y in (-edge, edge):
        mesh.quad([(0.22, y, waist), (0.485, y, 0.49), (0.22, y, 0.49), (0.22, y, 0.49)], paint)
    mesh.frustum(
        (*cabin_bottom, -0.46, 0.46, waist),
        (*cabin_top, -0.38, 0.38, 1.0),
        paint,
        sides={
            "front": (WINDSCREEN, GLASS),
            "back": (WINDOW, GLASS),
            "left": (WINDOW, GLASS),
            "right": (WINDOW, GLASS),
        },
    )
    _pillars(mesh, cabin_bottom, cabin_top, waist, paint)
    mesh.plate("front", (-0.26, 0.26), 0.27, 0.42, DARK, at=0.4965)
    mesh.plate("front", (-0.12, 0.12), 0.18, 0.25, PLATE, at=0.4985)
    mesh.plate("back", (-0.12, 0.12), 0.32, 0.40, PLATE, at=0.4985)
    mesh.plate("back", (-0.46, 0.46), 0.15, 0.25, DARK, at=0.4975)
    _lamps(mesh, (0.33, 0.46), (0.38, 0.53))
    _wheels(mesh, (-0.31, 0.32), 0.19 * size[2])
    return mesh


def _pillars(mesh, bottom, top, waist, paint):
    """The B pillars: a strip of body colour that parts the side windows."""
    middle_bottom, middle_top = np.mean(bottom), np.mean(top)
    for sign in (-1, 1):
        low, high = sign * 0.465, sign * 0.385
        mesh.quad(
            [
                (middle_bottom - 0.012, low, waist),
                (middle_bottom + 0.012, low, waist),
                (middle_top + 0.012, high, 1.0),
                (middle_top - 0.012, high, 1.0),
            ],
            paint,
        )


def truck(size, rng):
    """Cab in front, chassis, cargo box behind."""
    mesh = MeshBuilder(size)
    cab, cargo = pick_color(CAR_COLORS, rng), pick_color(CARGO_COLORS, rng)
    cab_back = 0.5 - 2.0 / size[0]
    mesh.box(-0.49, cab_back, -0.36, 0.36, 0.14, 0.28, CHASSIS, PLAIN)
    mesh.box(-0.49, cab_back - 0.02, -0.49, 0.49, 0.28, 1.0, cargo, RIBS)
    mesh.box(cab_back, 0.49, -0.47, 0.47, 0.12, 0.52, cab)
    mesh.frustum(
        (cab_back, 0.49, -0.47, 0.47, 0.52), (cab_back, 0.46, -0.44, 0.44, 0.84), cab,
        sides={"front": (WINDSCREEN, GLASS)},
    )  # fmt: skip
    for side in ("left", "right"):
        mesh.plate(side, (cab_back + 0.05, 0.45), 0.54, 0.74, WINDOW, GLASS, at=0.474)
    mesh.plate("front", (-0.30, 0.30), 0.24, 0.46, DARK, at=0.494)
    mesh.plate("back", (-0.02, 0.02), 0.32, 0.97, DARK, at=0.494)
    mesh.plate("back", (-0.49, 0.49), 0.20, 0.30, DARK, at=0.496)
    _lamps(mesh, (0.18, 0.27), (0.21, 0.29), inner=0.33)
    _wheels(mesh, (-0.38, -0.25, 0.34), 0.17 * size[2], width=0.12)
    return mesh


def bus(size, rng):
    """One long body with a window band, a wide windscreen and a destination sign in front."""
    mesh = MeshBuilder(size)
    paint = pick_color(BUS_COLORS, rng)
    mesh.box(-0.497, 0.497, -0.49, 0.49, 0.10, 1.0, paint)
    for side in ("left", "right"):
        for start in np.arange(-0.46, 0.40, 0.145):
            mesh.plate(side, (start, start + 0.125), 0.48, 0.82, WINDOW, GLASS, at=0.495)
        mesh.plate(side, (-0.497, 0.497), 0.10, 0.18, DARK, at=0.4935)
    for start in (0.36, -0.08):
        mesh.plate("right", (start, start + 0.09), 0.14, 0.82, WINDSCREEN, GLASS, at=0.497)
    mesh.plate("front", (-0.45, 0.45), 0.36, 0.82, WINDSCREEN, GLASS, at=0.4985)
    mesh.plate("front", (-0.33, 0.33), 0.86, 0.96, AMBER, LAMP, at=0.4985)
    mesh.plate("back", (-0.36, 0.36), 0.60, 0.82, WINDOW, GLASS, at=0.4985)
    mesh.plate("back", (-0.34, 0.34), 0.18, 0.42, DARK, PLAIN, at=0.4985)
    _lamps(mesh, (0.17, 0.26), (0.26, 0.48), inner=0.37)
    _wheels(mesh, (-0.28, 0.30), 0.14 * size[2], width=0.10)
    return mesh


def trailer(size, rng):
    """A long box without a cab: drawbar in front, wheels and red lamps at the rear."""
    mesh = MeshBuilder(size)
    cargo = pick_color(CARGO_COLORS, rng)
    mesh.box(-0.497, 0.42, -0.49, 0.49, 0.28, 1.0, cargo, RIBS)
    mesh.box(-0.48, 0.38, -0.30, 0.30, 0.17, 0.28, CHASSIS, PLAIN)
    mesh.box(0.38, 0.50, -0.05, 0.05, 0.17, 0.22, CHASSIS, PLAIN)
    for y in (-0.40, 0.34):
        mesh.box(0.28, 0.30, y, y + 0.06, 0.0, 0.28, CHASSIS, PLAIN)
    mesh.plate("back", (-0.02, 0.02), 0.30, 0.97, DARK, at=0.4985)
    mesh.plate("back", (-0.49, 0.49), 0.19, 0.29, (0.75, 0.73, 0.70), at=0.499)
    for sign in (-1, 1):
        low, high = sorted((sign * 0.28, sign * 0.48))
        mesh.plate("back", (low, high), 0.19, 0.29, TAIL_LAMP, LAMP, at=0.5)
    for side in ("left", "right"):
        mesh.plate(side, (-0.49, -0.46), 0.30, 0.36, TAIL_LAMP, LAMP, at=0.494)
        mesh.plate(side, (0.36, 0.41), 0.30, 0.35, AMBER, LAMP, at=0.494)
    _wheels(mesh, (-0.42, -0.32, -0.22), 0.13 * size[2], width=0.13)
    return mesh


def construction_vehicle(size, rng):
    """A wheel loader: counterweight and cab behind, arms and bucket in front."""
    mesh = MeshBuilder(size)
    yellow = np.clip(np.array(MACHINE_YELLOW) * rng.uniform(0.85, 1.15), 0.0, 1.0)
    mesh.box(-0.49, 0.05, -0.38, 0.38, 0.18, 0.52, yellow)
    mesh.plate("back", (-0.36, 0.36), 0.22, 0.46, DARK, at=0.494)
    for sign in (-1, 1):
        low, high = sorted((sign * 0.22, sign * 0.36))
        mesh.plate("back", (low, high), 0.36, 0.44, TAIL_LAMP, LAMP, at=0.498)
    cab = dict.fromkeys(("front", "left", "right", "back"), (WINDSCREEN, GLASS))
    mesh.box(-0.20, 0.08, -0.26, 0.26, 0.52, 0.94, yellow, sides=cab)
    mesh.box(-0.22, 0.10, -0.28, 0.28, 0.94, 1.0, yellow)
    for x in (-0.21, 0.07):
        for y in (-0.27, 0.25):
            mesh.box(x, x + 0.02, y, y + 0.02, 0.52, 0.94, yellow)
    for y in (-0.24, 0.14):
        mesh.frustum((0.02, 0.36, y, y + 0.10, 0.22), (-0.02, 0.22, y, y + 0.10, 0.52), yellow)
    mesh.frustum(
        (0.34, 0.50, -0.50, 0.50, 0.03), (0.32, 0.42, -0.50, 0.50, 0.30), (0.22, 0.21, 0.20)
    )
    mesh.box(0.05, 0.10, -0.22, 0.22, 0.22, 0.50, CHASSIS, PLAIN)
    _wheels(mesh, (-0.32, 0.17), 0.22 * size[2], width=0.17)
    return mesh

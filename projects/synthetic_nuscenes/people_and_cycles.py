"""Shapes of pedestrians, bicycles, motorcycles and their riders; see vehicles.py for the arguments."""

import numpy as np

from projects.synthetic_nuscenes.catalogue import CAR_COLORS, SKIN_COLORS, pick_color
from projects.synthetic_nuscenes.mesh import LAMP, PLAIN, MeshBuilder
from projects.synthetic_nuscenes.vehicles import DARK, HEAD_LAMP, TAIL_LAMP

HAIR_COLORS = np.array(
    [[0.05, 0.04, 0.03], [0.20, 0.12, 0.06], [0.45, 0.35, 0.18], [0.35, 0.34, 0.33]]
)
TROUSER_COLORS = np.array(
    [[0.07, 0.08, 0.12], [0.10, 0.14, 0.28], [0.22, 0.20, 0.17], [0.40, 0.36, 0.28]]
)
SAFETY_ORANGE = (0.95, 0.32, 0.03)
SAFETY_YELLOW = (0.85, 0.80, 0.05)


def _head(mesh, x, z0, z1, skin, hair, depth=0.30, width=0.26):
    """A head whose front is a bright face and whose back is hair."""
    half = depth / 2
    mesh.box(
        x - half, x + half, -width / 2, width / 2, z0, z1, hair, PLAIN,
        sides={"front": (skin, PLAIN)},
    )  # fmt: skip
    middle = (z0 + z1) / 2
    for side in ("left", "right"):
        mesh.plate(
            side, (x, x + half), z0, middle, skin, at=width / 2 + 0.01, inside=(x, 0.0, middle)
        )


def _shirt(rng):
    return pick_color(CAR_COLORS, rng, jitter=0.12)


def _open_jacket(shirt):
    """Faces of a torso; the shirt between the halves of the jacket makes the front brighter."""
    return {"front": (0.45 * np.asarray(shirt) + 0.45, PLAIN)}


def pedestrian(size, rng, shirt=None, hat=None):
    """A walking or standing figure: one leg ahead, arms swinging, face in front, perhaps a rucksack."""
    mesh = MeshBuilder(size)
    skin, trousers = pick_color(SKIN_COLORS, rng), pick_color(TROUSER_COLORS, rng)
    hair = pick_color(HAIR_COLORS, rng, 0.02) if hat is None else hat
    shirt = _shirt(rng) if shirt is None else shirt
    side = rng.choice([-1, 1])
    for y, foot in ((0.16 * side, 0.22), (-0.16 * side, -0.20)):
        low = (foot - 0.12, foot + 0.12, y - 0.12, y + 0.12, 0.04)
        mesh.frustum(low, (-0.13, 0.15, y - 0.13, y + 0.13, 0.48), trousers, PLAIN)
        mesh.box(foot - 0.12, foot + 0.24, y - 0.13, y + 0.13, 0.0, 0.045, DARK, PLAIN)
    mesh.frustum(
        (-0.18, 0.18, -0.30, 0.30, 0.46), (-0.20, 0.20, -0.36, 0.36, 0.82),
        shirt, PLAIN, _open_jacket(shirt),
    )  # fmt: skip
    for y, hand in ((0.43 * side, -0.34), (-0.43 * side, 0.38)):
        low = (hand - 0.10, hand + 0.10, y - 0.07, y + 0.07, 0.46)
        mesh.frustum(low, (-0.10, 0.10, y - 0.07, y + 0.07, 0.81), shirt, PLAIN)
        mesh.box(hand - 0.09, hand + 0.09, y - 0.06, y + 0.06, 0.42, 0.46, skin, PLAIN)
    if rng.random() < 0.4:
        mesh.box(-0.46, -0.20, -0.24, 0.24, 0.52, 0.80, pick_color(CAR_COLORS, rng), PLAIN)
    mesh.box(-0.08, 0.08, -0.08, 0.08, 0.82, 0.87, skin, PLAIN)
    _head(mesh, 0.02, 0.86, 1.0, skin, hair)
    return mesh


def construction_worker(size, rng):
    """A pedestrian in an orange vest and a yellow helmet."""
    return pedestrian(size, rng, shirt=SAFETY_ORANGE, hat=SAFETY_YELLOW)


def sitting_pedestrian(size, rng):
    """A figure on a low seat, thighs forward."""
    mesh = MeshBuilder(size)
    skin, trousers, shirt = (
        pick_color(SKIN_COLORS, rng),
        pick_color(TROUSER_COLORS, rng),
        _shirt(rng),
    )
    mesh.box(-0.50, 0.0, -0.50, 0.50, 0.0, 0.34, (0.30, 0.22, 0.15), PLAIN)
    for y in (-0.18, 0.18):
        mesh.box(-0.20, 0.40, y - 0.14, y + 0.14, 0.34, 0.46, trousers, PLAIN)
        mesh.box(0.28, 0.42, y - 0.12, y + 0.12, 0.0, 0.36, trousers, PLAIN)
        mesh.box(0.28, 0.50, y - 0.12, y + 0.12, 0.0, 0.05, DARK, PLAIN)
    mesh.frustum(
        (-0.38, -0.02, -0.32, 0.32, 0.40), (-0.34, 0.0, -0.36, 0.36, 0.80),
        shirt, PLAIN, _open_jacket(shirt),
    )  # fmt: skip
    for y in (-0.43, 0.43):
        mesh.frustum(
            (0.10, 0.28, y - 0.07, y + 0.07, 0.46),
            (-0.28, -0.06, y - 0.07, y + 0.07, 0.79),
            shirt,
            PLAIN,
        )
    _head(mesh, -0.14, 0.82, 1.0, skin, pick_color(HAIR_COLORS, rng, 0.02))
    return mesh


def _rider(mesh, rng, seat_z, hands, helmet):
    """A figure leaning forward from the seat to the handlebar at hands = (x, z)."""
    skin, trousers, shirt = (
        pick_color(SKIN_COLORS, rng),
        pick_color(TROUSER_COLORS, rng),
        _shirt(rng),
    )
    hand_x, hand_z = hands
    for y in (-0.22, 0.22):
        mesh.frustum(
            (0.0, 0.12, y - 0.12, y + 0.12, 0.16),
            (-0.16, 0.0, y - 0.12, y + 0.12, seat_z + 0.04),
            trousers,
            PLAIN,
        )
        mesh.frustum(
            (hand_x - 0.05, hand_x + 0.02, y * 1.6 - 0.09, y * 1.6 + 0.09, hand_z),
            (-0.01, 0.08, y * 1.4 - 0.09, y * 1.4 + 0.09, 0.80),
            shirt,
            PLAIN,
        )
    mesh.frustum(
        (-0.18, -0.02, -0.30, 0.30, seat_z), (-0.07, 0.09, -0.34, 0.34, 0.83),
        shirt, PLAIN, _open_jacket(shirt),
    )  # fmt: skip
    _head(mesh, 0.07, 0.84, 1.0, skin, helmet, depth=0.13, width=0.36)


def _motorcycle(size, rng, ridden):
    mesh = MeshBuilder(size)
    paint = pick_color(CAR_COLORS, rng)
    top = 0.72 if ridden else 0.98  # height of the handlebar, as a fraction of the box
    radius = 0.31
    mesh.wheel(-0.35, -0.10, 0.10, radius)
    mesh.wheel(0.35, -0.09, 0.09, radius)
    mesh.box(-0.18, 0.20, -0.16, 0.16, 0.22 * top, 0.62 * top, (0.12, 0.12, 0.13), PLAIN)
    mesh.frustum(
        (-0.10, 0.24, -0.20, 0.20, 0.55 * top), (-0.02, 0.18, -0.16, 0.16, 0.80 * top), paint
    )
    mesh.frustum(
        (-0.48, -0.06, -0.16, 0.16, 0.60 * top), (-0.46, -0.06, -0.16, 0.16, 0.70 * top), DARK
    )
    mesh.box(0.22, 0.30, -0.13, 0.13, 0.30 * top, 0.90 * top, paint)
    mesh.box(0.14, 0.20, -0.50, 0.50, 0.92 * top, top, DARK, PLAIN)
    mesh.plate("front", (-0.18, 0.18), 0.66 * top, 0.84 * top, HEAD_LAMP, LAMP, at=0.32)
    mesh.plate("back", (-0.18, 0.18), 0.56 * top, 0.68 * top, TAIL_LAMP, LAMP, at=0.495)
    if ridden:
        _rider(mesh, rng, 0.48, (0.17, 0.70), pick_color(CAR_COLORS, rng))
    return mesh


def motorcycle(size, rng):
    """A parked motorcycle."""
    return _motorcycle(size, rng, ridden=False)


def ridden_motorcycle(size, rng):
    """A motorcycle with its rider."""
    return _motorcycle(size, rng, ridden=True)


def _bicycle(size, rng, ridden):
    mesh = MeshBuilder(size)
    paint = pick_color(CAR_COLORS, rng)
    top = 0.64 if ridden else 0.98
    radius = 0.34
    for x in (-0.30, 0.30):
        mesh.wheel(x, -0.05, 0.05, radius)
    for low, high in (((-0.05, 0.02), (-0.14, -0.07)), ((-0.05, 0.02), (0.16, 0.24))):
        mesh.frustum(
            (*low, -0.06, 0.06, 0.22 * top), (*high, -0.06, 0.06, 0.84 * top), paint, PLAIN
        )
    mesh.box(-0.12, 0.22, -0.05, 0.05, 0.76 * top, 0.84 * top, paint, PLAIN)
    mesh.frustum(
        (0.28, 0.34, -0.07, 0.07, 0.35 * top), (0.19, 0.25, -0.07, 0.07, 0.92 * top), paint
    )
    mesh.box(-0.20, -0.04, -0.14, 0.14, 0.86 * top, 0.94 * top, DARK, PLAIN)
    mesh.box(0.18, 0.26, -0.50, 0.50, 0.93 * top, top, DARK, PLAIN)
    mesh.plate("front", (-0.16, 0.16), 0.78 * top, 0.90 * top, HEAD_LAMP, LAMP, at=0.28)
    mesh.plate("back", (-0.16, 0.16), 0.60 * top, 0.76 * top, TAIL_LAMP, LAMP, at=0.22)
    if ridden:
        _rider(mesh, rng, 0.54, (0.22, 0.62), pick_color(CAR_COLORS, rng))
    return mesh


def bicycle(size, rng):
    """A parked bicycle."""
    return _bicycle(size, rng, ridden=False)


def ridden_bicycle(size, rng):
    """A bicycle with its rider."""
    return _bicycle(size, rng, ridden=True)

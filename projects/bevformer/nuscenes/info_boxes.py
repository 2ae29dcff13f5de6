"""Conventions of the boxes of an info file: by its stamp, by the shape of cars, by the way they move."""

from __future__ import annotations

from typing import Any, Sequence

import numpy as np

from projects.bevformer.geometry.boxes import BOX_CONVENTION_NEW, BOX_CONVENTION_OLD

# Classes whose boxes are clearly longer than wide.
_VEHICLES = ("car", "truck", "bus")
_CLEARLY_LONGER = 1.2
_MOVING = 2.0  # m/s; what is so fast and long moves the way that it points, whatever its class
# Moving objects for a judgement: for quarter turns, and for what a few reversing cars explain as well.
_ENOUGH, _MANY = 5, 30
_FRAMES = 2000  # that are looked at, for speed
# Degrees between heading and velocity, median. A wrong convention is about 90 degrees off in most traffic.
_FITS, _MAY_FIT, _MAY_FIT_OF_FEW = 20, 35, 50
_COLUMNS = {
    BOX_CONVENTION_NEW: "x, y, z, l, w, h, yaw",
    BOX_CONVENTION_OLD: "x, y, z, w, l, h, -yaw - pi/2",
}


def box_convention(infos: Sequence[dict], metadata: dict[str, Any], path: str) -> str:
    """The stamp if there is one, else the convention that fits the sizes of vehicles.

    Raises:
        ValueError: an unknown stamp or one that the sizes contradict, or neither a stamp nor vehicles that
            show the convention.
    """
    stamp = metadata.get("box_convention")
    if stamp not in (None, *_COLUMNS):
        raise ValueError(
            f'{path}: metadata["box_convention"] is {stamp!r}, not one of {tuple(_COLUMNS)}'
        )
    if not any(len(info.get("gt_boxes", ())) for info in infos):
        return stamp or BOX_CONVENTION_NEW  # no box, nothing to convert
    boxes = _objects(infos, _VEHICLES)["boxes"]
    ratio = (boxes[:, 3] / boxes[:, 4]).mean() if len(boxes) else 1.0
    shown = None
    if ratio > _CLEARLY_LONGER:
        shown = BOX_CONVENTION_NEW
    if ratio < 1 / _CLEARLY_LONGER:
        shown = BOX_CONVENTION_OLD
    if stamp and shown not in (None, stamp):
        raise ValueError(
            f'{path}: metadata["box_convention"] is "{stamp}" ({_COLUMNS[stamp]}), but the sizes of its '
            f'cars, trucks and buses are those of "{shown}" ({_COLUMNS[shown]}): mend the stamp, or '
            "write the file again with tools/create_data.py"
        )
    if stamp or shown:
        return stamp or shown
    raise ValueError(
        f"{path} has no box convention, and its cars, trucks and buses do not show which one it is: set "
        f'metadata["box_convention"] to "{BOX_CONVENTION_NEW}" (mmdet3d >= 1.0: '
        f'{_COLUMNS[BOX_CONVENTION_NEW]}) or "{BOX_CONVENTION_OLD}" (mmdet3d <= 0.17: '
        f"{_COLUMNS[BOX_CONVENTION_OLD]}), or write the file again with tools/create_data.py"
    )


def check_headings(infos: Sequence[dict], convention: str, path: str) -> None:
    """Refuse a file whose objects do not move the way that they point.

    Args:
        infos: records with boxes of `BOX_CONVENTION_NEW`.
        convention: of the file, from which they were converted.
        path: the file, for messages.

    Raises:
        ValueError: names the angle, and the columns that fit if any do.
    """
    objects = _objects(infos)
    boxes, velocity = objects["boxes"], objects["velocity"]
    moving = np.hypot(*velocity.T) > _MOVING  # False where unknown
    moving &= np.abs(np.log(boxes[:, 3] / boxes[:, 4])) > np.log(_CLEARLY_LONGER)
    if moving.sum() < _ENOUGH:
        return
    boxes, velocity = boxes[moving], velocity[moving]
    course = np.arctan2(velocity[:, 1], velocity[:, 0])
    found = _median_degrees(boxes[:, 6] - course)
    few = len(boxes) < _MANY
    if found <= (_MAY_FIT_OF_FEW if few else _MAY_FIT):
        return
    # The true yaw as sign * yaw + quarters * pi/2 of the yaw that was read.
    turns = [(sign, quarters) for sign in (1, -1) for quarters in range(4)]
    angles = [_median_degrees(s * boxes[:, 6] + q * np.pi / 2 - course) for s, q in turns]
    best = turns[int(np.argmin(angles))]
    if few and (min(angles) > _FITS or best == (1, 2)):
        return
    if min(angles) <= _FITS:
        sign, quarters = best
        longer_first = (boxes[:, 3] > boxes[:, 4]).mean() > 0.5
        columns = _columns_of_file(convention, sign, quarters, longer_first)
        remedy = f"they fit {columns}: "
        known = next((name for name, text in _COLUMNS.items() if text == columns), None)
        if known:
            remedy += f'set metadata["box_convention"] to "{known}"'
        else:
            remedy += (
                f'convert them to {_COLUMNS[BOX_CONVENTION_NEW]} and set metadata["box_convention"] to '
                f'"{BOX_CONVENTION_NEW}"'
            )
    else:
        remedy = "no known convention fits; gt_velocity must be m/s along the axes of the lidar"
    raise ValueError(
        f"{path}: boxes read as {_COLUMNS[convention]} point {found:.0f} degrees away from the "
        f"velocities (median of {len(boxes)} moving objects); {remedy}, or write the file again with "
        "tools/create_data.py"
    )


def _columns_of_file(convention, sign, quarters, longer_first):
    """Text of the columns of a file whose true yaw is sign * yaw + quarters * pi/2 of the yaw read."""
    if convention == BOX_CONVENTION_OLD:  # read as -column - pi/2, length and width swapped
        sign, quarters, longer_first = -sign, quarters - sign, not longer_first
    offset = ("", " + pi/2", " + pi", " - pi/2")[-sign * quarters % 4]
    return f"x, y, z, {'l, w' if longer_first else 'w, l'}, h, {'-' * (sign < 0)}yaw{offset}"


def _median_degrees(radians):
    wrapped = (radians + np.pi) % (2 * np.pi) - np.pi
    return float(np.degrees(np.median(np.abs(wrapped))))


def _objects(infos, class_names=None):
    """boxes (V, 7) and velocity (V, 2) of all objects, or of some classes, of up to `_FRAMES` records."""
    filled = [info for info in infos if len(info.get("gt_boxes", ()))]
    filled = filled[:: -(-len(filled) // _FRAMES) or 1]
    if not filled:
        return {"boxes": np.zeros((0, 7)), "velocity": np.zeros((0, 2))}
    rows = {
        key: np.concatenate([info[f"gt_{key}"] for info in filled])
        for key in ("boxes", "velocity", "names")
    }
    chosen = slice(None) if class_names is None else np.isin(rows["names"], class_names)
    return {key: rows[key][chosen] for key in ("boxes", "velocity")}

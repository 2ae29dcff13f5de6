"""What stands along a road: parked vehicles, construction zones, pavements, scenery."""

import numpy as np

from projects.synthetic_nuscenes.catalogue import draw_size
from projects.synthetic_nuscenes.objects import Path, make_object
from projects.synthetic_nuscenes.road import FURNITURE_WIDTH, LEFT, SIDES

PARALLEL_PARKING, PERPENDICULAR_PARKING = 3.3, 6.0  # metres, widths of the strip

_PARALLEL_DECK = (
    "car", "car", "car", "car", "truck", "truck", "bus", "trailer", "trailer",
    "motorcycle", "motorcycle", "empty", "empty", "empty", "empty",
)  # fmt: skip
_PERPENDICULAR_DECK = (
    "car", "car", "car", "car", "car", "motorcycle", "motorcycle",
    "empty", "empty", "empty", "empty", "empty", "empty", "empty",
)  # fmt: skip
_WALKING_TRACKS = (0.6, 1.6, 2.6)  # metres from the furniture strip


class Deck:
    """Draws kinds without replacement, so that rare ones appear at their proper rate."""

    def __init__(self, kinds, rng):
        self._kinds, self._rng, self._left = kinds, rng, []

    def draw(self):
        """The next kind; an empty deck is reshuffled."""
        if not self._left:
            self._left = [self._kinds[index] for index in self._rng.permutation(len(self._kinds))]
        return self._left.pop()


class RoadsideDesigner:
    """Places all objects along the lanes between two stations of a road."""

    def __init__(self, road, section, crossings, span, times, rng):
        self._road, self._section, self._crossings = road, section, crossings
        self._s_min, self._s_max = span
        self._times, self._rng = times, rng
        self._objects = []

    def furnish(self):
        """All objects along the lanes."""
        for side in SIDES:
            self._fill_parking(side)
            self._fill_furniture(side)
            self._fill_pavement(side)
            self._fill_background(side)
        for crossing in self._crossings:
            self._fill_crossing(crossing)
        return self._objects

    def _add(self, kind, s, d, turn, size=None, parked=True):
        path = Path.still(s, d, turn, len(self._times))
        self._objects.append(make_object(kind, path, self._rng, size, parked))

    def _next_clear(self, s, length):
        """First station from s on where something of this length does not block a crossing."""
        for crossing in sorted(self._crossings, key=lambda item: item.s):
            low, high = crossing.s - 4.5, crossing.s + 4.5
            if s < high and s + length > low:
                s = high
        return s

    def _advance(self, s, d, length):
        """Station that lies `length` metres after s along the line at d: bends stretch or shrink it."""
        return s + length / (1.0 - d * self._road.bend(s))

    def _along(self, side):
        """Yaw of traffic on this side relative to the direction of the road."""
        return np.pi if side == LEFT else 0.0

    # Parking strip.

    def _fill_parking(self, side):
        rng = self._rng
        perpendicular = self._section.parking_width[side] == PERPENDICULAR_PARKING
        deck = Deck(_PERPENDICULAR_DECK if perpendicular else _PARALLEL_DECK, rng)
        s, next_zone = self._s_min, self._s_min + rng.uniform(0.0, 70.0)
        while s < self._s_max:
            if s >= next_zone:
                length = rng.uniform(21.0, 28.0)
                s = self._next_clear(s, length)
                self._construction_zone(side, s, length)
                s += length + 2.0
                next_zone = s + rng.uniform(55.0, 95.0)
                continue
            kind = deck.draw()
            if kind == "empty":
                s += 3.0 if perpendicular else rng.uniform(4.0, 9.0)
            elif kind == "motorcycle":
                s = self._park_motorcycles(side, s)
            else:
                s = self._park(side, s, kind, perpendicular)

    def _park(self, side, s, kind, perpendicular):
        rng = self._rng
        size = draw_size(kind, rng)
        strip = self._section.parking_width[side]
        room = size[1] + 0.9 if perpendicular else size[0] + rng.uniform(0.9, 2.2)
        s = self._next_clear(s, 1.2 * room)
        reverse = np.pi if rng.random() < (0.5 if perpendicular else 0.15) else 0.0
        if perpendicular:
            turn, slack = side * np.pi / 2, strip - size[0]
        else:
            turn, slack = self._along(side), strip - size[1]
        middle = self._section.parking_edge + strip / 2
        d = side * (middle + rng.uniform(-0.3, 0.3) * max(slack, 0.0))
        at = self._advance(s, d, room / 2)
        self._add(kind, at, d, turn + reverse + rng.normal(0.0, 0.015), size)
        return self._advance(at, d, room / 2)

    def _park_motorcycles(self, side, s):
        rng = self._rng
        count = rng.integers(1, 3)
        s = self._next_clear(s, 2.0 * count)
        for _ in range(count):
            turn = side * np.pi / 2 + rng.choice([0.0, np.pi]) + rng.normal(0.0, 0.12)
            d = side * (self._section.parking_edge + 1.6 + rng.uniform(-0.15, 0.15))
            s = self._advance(s, d, 0.9)
            self._add("motorcycle", s, d, turn)
            s = self._advance(s, d, 0.7)
        return s

    def _construction_zone(self, side, start, length):
        """Barriers and cones along the road, machines and workers behind them."""
        rng = self._rng
        edge = self._section.parking_edge + 0.4
        s, stop = start + 0.3, start + length
        with_barriers = rng.random() < 0.5
        while s < stop:
            run = stop - s if stop - s < 9.0 else rng.uniform(6.0, 9.0)
            end = s + run
            while s < end - 0.2:
                if with_barriers:
                    if s + 3.2 > stop:
                        break
                    # A barrier is wider than long: its normal points across the road.
                    facing = side * np.pi / 2 + rng.choice([0.0, np.pi]) + rng.normal(0.0, 0.04)
                    size = draw_size("barrier", rng)
                    at = self._advance(s, side * edge, size[1] / 2)
                    self._add("barrier", at, side * edge, facing, size)
                    s = self._advance(at, side * edge, size[1] / 2 + rng.uniform(0.1, 0.3))
                else:
                    d = side * (edge + rng.uniform(-0.1, 0.1))
                    self._add("traffic_cone", s + 0.25, d, rng.uniform(-np.pi, np.pi))
                    s += rng.uniform(1.8, 3.0)
            with_barriers = not with_barriers
            if end >= stop:
                break
        # Room for the widest machine behind the barriers; it reaches over the kerb a little.
        middle = edge + 0.45 + (self._section.parking_width[side] - 0.2) / 2
        turns = [0.0, np.pi]
        if self._section.parking_width[side] == PERPENDICULAR_PARKING:
            turns += [0.35, -0.35, np.pi - 0.35, np.pi + 0.35]
        for index in range(2):
            at = start + length * (0.28 + 0.45 * index)
            turn = rng.choice(turns) + rng.normal(0.0, 0.012)
            if index == 0 or rng.random() < 0.45:
                self._add("construction_vehicle", at, side * middle, turn)
            else:
                self._add("traffic_cone", at - 1.5, side * middle, 0.0)
        for at in (0.03, 0.51, 0.94):
            if rng.random() < 0.5:
                yaw = rng.uniform(-np.pi, np.pi)
                self._add("construction_worker", start + length * at, side * (middle + 0.2), yaw)

    # Pavement.

    def _fill_furniture(self, side):
        """Trees, lamps, bicycles and benches between kerb and walking tracks."""
        rng = self._rng
        d = side * (self._section.kerb(side) + FURNITURE_WIDTH - 0.3)
        s = self._s_min + rng.uniform(0.0, 6.0)
        while s < self._s_max:
            s = self._next_clear(s, 8.0)
            choice = rng.random()
            facing_road = -side * np.pi / 2
            if choice < 0.34:
                width, height = rng.uniform(2.6, 4.2), rng.uniform(5.0, 8.5)
                self._add("tree", s, d, rng.uniform(-np.pi, np.pi), (width, width, height))
            elif choice < 0.56:
                # The pole is the rear end of the box: keep it at d, the arm reaches over the road.
                reach = 1.8
                shifted = d - side * (reach / 2 - 0.1)
                self._add(
                    "lamp_post", s, shifted, facing_road, (reach, 0.22, rng.uniform(6.0, 7.5))
                )
            elif choice < 0.82:
                for _ in range(rng.integers(1, 3)):
                    turn = self._along(side) + rng.choice([0.0, np.pi]) + rng.normal(0.0, 0.1)
                    s = self._advance(s, d, 1.2)
                    self._add("bicycle", s, d, turn)
                    s = self._advance(s, d, 1.0)
            else:
                turn = facing_road + rng.normal(0.0, 0.2) + (np.pi if rng.random() < 0.3 else 0.0)
                self._add("sitting_pedestrian", s, d, turn, parked=False)
            s += rng.uniform(6.0, 15.0)

    def _fill_pavement(self, side):
        """Pedestrians; all on one track walk at the same speed, so they never collide."""
        rng, seconds = self._rng, self._times - self._times[0]
        still_track = rng.integers(len(_WALKING_TRACKS))
        for index, track in enumerate(_WALKING_TRACKS):
            speed = 0.0 if index == still_track else rng.choice([-1, 1]) * rng.uniform(0.6, 1.8)
            reach = abs(speed) * seconds[-1]
            s = self._s_min - reach + rng.uniform(0.0, 30.0)
            while s < self._s_max + reach:
                turn = 0.0 if speed > 0 else np.pi
                if speed == 0.0:
                    turn = rng.uniform(-np.pi, np.pi)
                d = side * (self._section.furniture_edge(side) + track + rng.uniform(-0.06, 0.06))
                turns = turn + 0.08 * np.sin(0.7 * seconds + rng.uniform(0.0, 6.0)) * (speed != 0.0)
                path = Path(s + speed * seconds, np.full(len(seconds), d), turns)
                self._objects.append(make_object("pedestrian", path, rng))
                s += 1.4 + rng.exponential(62.0)

    def _fill_crossing(self, crossing):
        """Pedestrians who cross the road while the vehicles wait."""
        rng, section = self._rng, self._section
        offsets = np.linspace(-1.6, 1.6, 4)
        for offset in offsets[rng.permutation(4)[: rng.integers(2, 5)]]:
            side = rng.choice(SIDES)
            waiting = 0.75
            from_d = side * (section.kerb(side) + waiting)
            to_d = -side * (section.kerb(-side) + waiting)
            speed = max(rng.uniform(1.1, 1.8), abs(to_d - from_d) / (crossing.red_s - 2.5))
            start = self._first_red(crossing) + rng.uniform(1.5, 2.5)
            share = np.clip((self._times - start) * speed / abs(to_d - from_d), 0.0, 1.0)
            d = from_d + share * (to_d - from_d)
            turn = np.full(len(d), np.arctan2(to_d - from_d, 0.0))
            path = Path(np.full(len(d), crossing.s + offset), d, turn)
            self._objects.append(make_object("pedestrian", path, rng))

    def _first_red(self, crossing):
        """A red phase that begins during the recording, or else its first one."""
        phases = crossing.phase_s + crossing.period_s * np.arange(-3, 4)
        inside = phases[(phases > self._times[0]) & (phases < self._times[-1])]
        return inside[0] if len(inside) else phases[phases >= self._times[0]][0]

    # Background.

    def _fill_background(self, side):
        """Buildings behind the pavement, trees in the gaps."""
        rng = self._rng
        line = self._section.building_line(side)
        s = self._s_min - 40.0
        while s < self._s_max + 40.0:
            width, depth = rng.uniform(9.0, 20.0), rng.uniform(8.0, 14.0)
            setback = rng.choice([0.3, 0.3, 2.0, 5.0])
            bend = self._road.bend(s + width / 2)
            # On the inside of a bend the stations crowd together as the distance grows.
            room = width * 1.0 / max(0.5, 1.0 - bend * side * (line + setback))
            if rng.random() < 0.72:
                d = side * (line + setback + depth / 2)
                size = (width, depth, rng.uniform(5.0, 17.0))
                self._add("building", s + room / 2, d, 0.0, size)
            else:
                for _ in range(rng.integers(1, 4)):
                    crown, height = rng.uniform(3.0, 5.5), rng.uniform(5.0, 9.0)
                    d = side * (line + rng.uniform(3.0, 9.0))
                    at = s + rng.uniform(0.1, 0.9) * room
                    self._add("tree", at, d, rng.uniform(-np.pi, np.pi), (crown, crown, height))
            s += room + rng.choice([0.1, 0.1, 2.5])

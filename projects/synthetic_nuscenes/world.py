"""One scene: a road with its traffic and surroundings, for the duration of the recording.

World frame: x and y metres from the lower left corner of the mapped region, z up, ground at z = 0.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import List, Tuple

import numpy as np

from projects.synthetic_nuscenes.catalogue import draw_size
from projects.synthetic_nuscenes.layout import (
    PARALLEL_PARKING,
    PERPENDICULAR_PARKING,
    Deck,
    RoadsideDesigner,
)
from projects.synthetic_nuscenes.light import Light, draw_light
from projects.synthetic_nuscenes.objects import Path, WorldObject, make_object
from projects.synthetic_nuscenes.poses import planar_pose
from projects.synthetic_nuscenes.road import (
    BICYCLE_LANE_WIDTH,
    LANE_WIDTH,
    RIGHT,
    SIDES,
    CentreLine,
    CrossSection,
)
from projects.synthetic_nuscenes.traffic import STEP_S, Crossing, drive

KEY_FRAME_PERIOD_S = 0.5

_WARM_UP_S = 8.0  # traffic finds its gaps before the first key frame
MARGIN_S = 1.0  # cameras fire, and the CAN bus goes on, around the key frames
_REACH_M = 95.0  # inhabitants that never come this close to the ego vehicle are left out
_BORDER_M = 100.0  # of the mapped region around the drive
_EGO_LENGTH_M = 4.6
_TRAILER_GAP_M = 1.0  # the drawbar is part of the trailer; bends bring the two closer

_TRAFFIC_DECK = (
    "car", "car", "car", "car", "car", "truck", "bus",
    "truck_with_trailer", "ridden_motorcycle", "ridden_motorcycle",
)  # fmt: skip


@dataclass(frozen=True)
class EgoMotion:
    """Drive of the ego vehicle along its lane; positions are integrals of the accelerations.

    Attributes:
        times: (T,) seconds after the first key frame.
        s, speed, acceleration: (T,) along the centre line of the road; the acceleration is constant
            between two times.
        d: metres to the left of the centre line.
    """

    times: np.ndarray
    s: np.ndarray
    speed: np.ndarray
    acceleration: np.ndarray
    d: float

    def along(self, time_s):
        """Station (m), speed (m/s) and acceleration (m/s^2) along the centre line at time_s (...)."""
        index = np.floor((np.asarray(time_s) - self.times[0]) / STEP_S + 1e-9).astype(int)
        index = np.clip(index, 0, len(self.times) - 1)
        rest = time_s - self.times[index]
        speed, acceleration = self.speed[index], self.acceleration[index]
        station = self.s[index] + speed * rest + 0.5 * acceleration * rest**2
        return station, speed + acceleration * rest, acceleration


@dataclass(frozen=True)
class World:
    """One scene.

    Attributes:
        name: "scene-NNNN".
        road, section, crossings: the street.
        ego: the drive.
        objects: all inhabitants and scenery within reach of the drive.
        light: sun, sky and air.
        region_m: (width, height) of the mapped region, metres; it begins at (0, 0).
    """

    name: str
    road: CentreLine
    section: CrossSection
    crossings: List[Crossing]
    ego: EgoMotion
    objects: List[WorldObject]
    light: Light
    region_m: Tuple[float, float]

    def ego_pose(self, time_s):
        """ego2world, (4, 4), at one time in seconds after the first key frame."""
        s, _, _ = self.ego.along(time_s)
        x, y = self.road.point(s, self.ego.d)
        return planar_pose(x, y, self.road.heading(s))

    def object_poses(self, time_s):
        """object2world, (K, 4, 4), of all objects at one time."""
        place = np.clip((time_s - self.ego.times[0]) / STEP_S, 0.0, len(self.ego.times) - 1.001)
        before = int(place)
        share = place - before
        now = np.array(
            [
                [p.s[before : before + 2], p.d[before : before + 2], p.turn[before : before + 2]]
                for p in (item.path for item in self.objects)
            ]
        )  # (K, 3, 2)
        s, d, turn = (now[..., 0] * (1 - share) + now[..., 1] * share).T
        x, y = self.road.point(s, d)
        return planar_pose(x, y, self.road.heading(s) + turn)


def scene_number(name):
    """The number in "scene-NNNN".

    Raises:
        ValueError: the name is not of that form.
    """
    match = re.fullmatch(r"scene-(\d{4})", name)
    if match is None:
        raise ValueError(
            f"scene name {name!r} is not of the form scene-NNNN, as nuScenes names them"
        )
    return int(match.group(1))


def scene_generator(seed, name, purpose):
    """Random generator that depends only on these three."""
    digest = hashlib.sha256(f"{seed}/{name}/{purpose}".encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))


def build_world(name, seed, duration_s):
    """Design the scene `name`.

    Args:
        name: "scene-NNNN".
        seed: of the data set.
        duration_s: seconds between the first and the last key frame.

    Returns:
        World; it depends only on the three arguments.
    """
    scene_number(name)
    rng = scene_generator(seed, name, "world")
    road = CentreLine(rng)
    section = _draw_section(rng)
    times = np.arange(-_WARM_UP_S, duration_s + MARGIN_S + STEP_S, STEP_S)
    crossings = _draw_crossings(rng)
    ego, traffic = _simulate_traffic(section, crossings, times, rng)

    recorded = times >= -MARGIN_S
    path_x, path_y = road.point(ego.s[recorded], ego.d)
    road.move(_BORDER_M - path_x.min(), _BORDER_M - path_y.min())
    region_m = (float(np.ptp(path_x)) + 2 * _BORDER_M, float(np.ptp(path_y)) + 2 * _BORDER_M)

    span = (ego.s[recorded][0] - _REACH_M - 10.0, ego.s[-1] + _REACH_M + 10.0)
    designer = RoadsideDesigner(road, section, crossings, span, times, rng)
    objects = traffic + designer.furnish()
    near = [item for item in objects if _comes_near(item, road, ego, recorded)]
    return World(name, road, section, crossings, ego, near, draw_light(rng), region_m)


def _draw_section(rng):
    lanes = int(rng.choice([1, 2]))
    widths = dict.fromkeys(SIDES, PARALLEL_PARKING)
    # A wider road would take pedestrians too long to cross, and long vehicles park along the road.
    if lanes == 1 and rng.random() < 0.45:
        widths[SIDES[rng.integers(2)]] = PERPENDICULAR_PARKING
    return CrossSection(lanes, widths)


def _draw_crossings(rng):
    crossings, s = [], rng.uniform(-90.0, -10.0)
    while s < 420.0:
        crossings.append(Crossing(s, period_s=60.0, red_s=17.0, phase_s=rng.uniform(0.0, 60.0)))
        s += rng.uniform(90.0, 150.0)
    return crossings


def _stop_lines(crossings, sign):
    """Stop lines, in metres of progress, of traffic along (sign 1) or against (-1) the road."""
    setback = Crossing.HALF_WIDTH + Crossing.STOP_DISTANCE
    return [(sign * crossing.s - setback, crossing) for crossing in crossings]


def _simulate_traffic(section, crossings, times, rng):
    ego, objects = None, []
    ego_lane = int(rng.integers(section.lanes_per_side))
    for side in SIDES:
        sign = 1 if side == RIGHT else -1
        stops = _stop_lines(crossings, sign)
        for lane in range(section.lanes_per_side):
            d = side * LANE_WIDTH * (lane + 0.5)
            units = _draw_lane(rng, 24.0 if section.lanes_per_side == 2 else 16.0)
            with_ego = side == RIGHT and lane == ego_lane
            if with_ego:
                units = _insert_ego(units, rng)
            positions = np.array([unit[0] for unit in units])
            lengths = np.array([unit[1] for unit in units])
            speeds = np.array([unit[2] for unit in units])
            progress, speed, acceleration = drive(positions, lengths, speeds, stops, times)
            for index, (_, length, _, members) in enumerate(units):
                if members is None:
                    ego = EgoMotion(
                        times, progress[:, index], speed[:, index], acceleration[:, index], d
                    )
                    continue
                objects += _lane_objects(members, length, progress[:, index], sign, d, rng)
        d = side * (section.lane_edge + BICYCLE_LANE_WIDTH / 2)
        objects += _cyclists(sign, d, stops, times, rng)
    return ego, objects


def _draw_lane(rng, mean_gap):
    """Vehicles of one lane, the leader first: (progress, length, desired speed, members)."""
    base_speed = rng.uniform(5.5, 10.0)
    deck, units, progress = Deck(_TRAFFIC_DECK, rng), [], 520.0
    while progress > -420.0:
        kind = deck.draw()
        names = ("truck", "trailer") if kind == "truck_with_trailer" else (kind,)
        members = [(member, draw_size(member, rng)) for member in names]
        length = sum(size[0] for _, size in members) + _TRAILER_GAP_M * (len(members) - 1)
        speed = float(np.clip(rng.normal(base_speed, 1.2), 3.0, 12.0))
        progress -= length / 2
        units.append((progress, length, speed, members))
        progress -= length / 2 + 7.0 + rng.exponential(mean_gap)
    return units


def _insert_ego(units, rng):
    """Put the ego vehicle, a unit without members, into the gap nearest to its start."""
    start, speed = -45.0, rng.uniform(5.5, 10.0)
    ahead = [unit for unit in units if unit[0] - unit[1] / 2 > start + _EGO_LENGTH_M / 2 + 5.0]
    behind = [unit for unit in units if unit[0] + unit[1] / 2 < start - _EGO_LENGTH_M / 2 - 5.0]
    return [*ahead, (start, _EGO_LENGTH_M, speed, None), *behind]


def _lane_objects(members, length, progress, sign, d, rng):
    """The vehicle, or truck and trailer, that moves with this progress (T,) in a lane at d."""
    objects, front = [], length / 2
    turn = np.full(len(progress), 0.0 if sign > 0 else np.pi)
    for kind, size in members:
        center = progress + front - size[0] / 2
        path = Path(sign * center, np.full(len(progress), d), turn)
        objects.append(make_object(kind, path, rng, size))
        front -= size[0] + _TRAILER_GAP_M
    return objects


def _cyclists(sign, d, stops, times, rng):
    positions, progress = [], 420.0
    while progress > -320.0:
        positions.append(progress)
        progress -= 8.0 + rng.exponential(48.0)
    speeds = rng.uniform(2.5, 6.0, len(positions))
    sizes = [draw_size("ridden_bicycle", rng) for _ in positions]
    lengths = np.array([size[0] for size in sizes])
    progress, _, _ = drive(np.array(positions), lengths, speeds, stops, times)
    objects = []
    for index, size in enumerate(sizes):
        members = [("ridden_bicycle", size)]
        objects += _lane_objects(members, size[0], progress[:, index], sign, d, rng)
    return objects


def _comes_near(item, road, ego, recorded):
    """Whether an object comes within range of the ego vehicle during the recording."""
    x, y = road.point(item.path.s[recorded], item.path.d[recorded])
    ego_x, ego_y = road.point(ego.s[recorded], ego.d)
    reach = _REACH_M + (0.0 if item.annotated else 25.0)
    return bool((np.hypot(x - ego_x, y - ego_y) < reach).any())

"""The objects of the world: kind, shape and motion."""

import functools
from dataclasses import dataclass
from typing import Optional

import numpy as np

from projects.synthetic_nuscenes import people_and_cycles, street_furniture, vehicles
from projects.synthetic_nuscenes.catalogue import KINDS, draw_size
from projects.synthetic_nuscenes.mesh import Mesh

_SHAPES = {
    "car": vehicles.car,
    "truck": vehicles.truck,
    "construction_vehicle": vehicles.construction_vehicle,
    "bus": vehicles.bus,
    "trailer": vehicles.trailer,
    "motorcycle": people_and_cycles.motorcycle,
    "ridden_motorcycle": people_and_cycles.ridden_motorcycle,
    "bicycle": people_and_cycles.bicycle,
    "ridden_bicycle": people_and_cycles.ridden_bicycle,
    "pedestrian": people_and_cycles.pedestrian,
    "sitting_pedestrian": people_and_cycles.sitting_pedestrian,
    "construction_worker": people_and_cycles.construction_worker,
    "barrier": street_furniture.barrier,
    "traffic_cone": street_furniture.traffic_cone,
    "building": street_furniture.building,
    "tree": street_furniture.tree,
    "lamp_post": street_furniture.lamp_post,
}

_MOVING_SPEED = 0.2  # m/s


@dataclass(frozen=True)
class Path:
    """A motion in road coordinates, sampled every traffic.STEP_S seconds.

    Attributes:
        s: (T,) metres along the centre line.
        d: (T,) metres to its left.
        turn: (T,) radians, yaw relative to the direction of the road.
    """

    s: np.ndarray
    d: np.ndarray
    turn: np.ndarray

    @classmethod
    def still(cls, s, d, turn, steps):
        """A motion that stands still."""
        return cls(np.full(steps, s), np.full(steps, d), np.full(steps, turn))


@dataclass(frozen=True)
class WorldObject:
    """One object of the world.

    Attributes:
        kind: key of catalogue.KINDS, or the name of a piece of scenery.
        size_lwh: (3,) metres.
        path: its motion.
        parked: nobody is about to move it.
        looks: seed of its colours and details.
    """

    kind: str
    size_lwh: np.ndarray
    path: Path
    parked: bool
    looks: int

    @functools.cached_property
    def mesh(self) -> Mesh:
        """Its surface; fills the box of its size."""
        builder = _SHAPES[self.kind](self.size_lwh, np.random.default_rng(self.looks))
        return builder.build().fitted(self.size_lwh)

    @property
    def annotated(self):
        return self.kind in KINDS

    def attribute(self, speed) -> Optional[str]:
        """Name of the nuScenes attribute at this speed in m/s, or None."""
        category = KINDS[self.kind].category
        if category.startswith("movable_object"):
            return None
        moving = speed > _MOVING_SPEED
        if category.startswith("human"):
            if self.kind == "sitting_pedestrian":
                return "pedestrian.sitting_lying_down"
            return "pedestrian.moving" if moving else "pedestrian.standing"
        if category in ("vehicle.bicycle", "vehicle.motorcycle"):
            return "cycle.with_rider" if self.kind.startswith("ridden") else "cycle.without_rider"
        if self.parked:
            return "vehicle.parked"
        return "vehicle.moving" if moving else "vehicle.stopped"


def make_object(kind, path, rng, size_lwh=None, parked=False):
    """Draw the size (unless given) and the appearance of a new object."""
    size = draw_size(kind, rng) if size_lwh is None else np.asarray(size_lwh, dtype=np.float64)
    return WorldObject(kind, size, path, parked, looks=int(rng.integers(2**32)))

"""How each class is scored: nuScenes' ten as the benchmark says, own classes as the config says.

`config` is either the devkit's DetectionConfig (the benchmark) or an `OwnBenchmark`; both have
`class_range`, `dist_ths` and so on, and `rules_of` has the rest.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Mapping, Sequence

import numpy as np

from projects.bevformer.messages import did_you_mean, listed
from projects.bevformer.nuscenes.spec import ATTRIBUTES, CLASSES

DEFAULT_RANGE_M = 50.0
DEFAULT_DISTANCES_M = (0.5, 1.0, 2.0, 4.0)
DEFAULT_ERROR_DISTANCE_M = 2.0
_NAMED_AT_MOST = 12  # names of a message
_PERIODS = {"full": 2 * np.pi, "half": np.pi, "none": 2 * np.pi}


@dataclass(frozen=True)
class ClassRules:
    """What is scored of a class besides its place and size.

    Attributes:
        attributes: attribute of an object that moves and of one that stands still, or () for none. They
            follow from the speed and are not predicted.
        velocity: whether velocities are compared.
        orientation: "full", "half" for what looks the same from both sides, or "none".
        in_racks: whether objects within a bicycle rack are left out.
    """

    attributes: tuple[str, ...] = ()
    velocity: bool = True
    orientation: str = "full"
    in_racks: bool = False

    @property
    def undefined_errors(self) -> tuple[str, ...]:
        """Errors that are left out of the averages."""
        defined = {
            "orient_err": self.orientation != "none",
            "vel_err": self.velocity,
            "attr_err": bool(self.attributes),
        }
        return tuple(error for error, is_defined in defined.items() if not is_defined)

    @property
    def period_rad(self) -> float:
        """The turn after which an object looks the same."""
        return _PERIODS[self.orientation]


_VEHICLE = ClassRules(("vehicle.moving", "vehicle.parked"))
_CYCLE = ClassRules(("cycle.with_rider", "cycle.without_rider"), in_racks=True)
NUSCENES_RULES = {
    "car": _VEHICLE,
    "truck": _VEHICLE,
    "construction_vehicle": _VEHICLE,
    "bus": replace(_VEHICLE, attributes=("vehicle.moving", "vehicle.stopped")),
    "trailer": _VEHICLE,
    "barrier": ClassRules(velocity=False, orientation="half"),
    "motorcycle": _CYCLE,
    "bicycle": _CYCLE,
    "pedestrian": ClassRules(("pedestrian.moving", "pedestrian.standing")),
    "traffic_cone": ClassRules(velocity=False, orientation="none"),
}
# The ranges of the benchmark, for classes of its names in a benchmark of one's own.
_NUSCENES_RANGES_M = {
    **dict.fromkeys(("pedestrian", "motorcycle", "bicycle"), 40.0),
    **dict.fromkeys(("barrier", "traffic_cone"), 30.0),
}
_SETTINGS = ("range", "velocity", "orientation", "attributes", "names")


@dataclass
class OwnBenchmark:
    """Matching and averages of nuScenes for classes of one's own; attributes as the devkit's DetectionConfig.

    Attributes:
        rules: class name -> `ClassRules`, in the order of the labels.
        class_range: class name -> metres from the vehicle within which it counts.
        aliases: other name in the info file -> class name.
        dist_ths: distances of the matching, m.
        dist_th_tp: the one of them at which errors are taken.
    """

    rules: dict[str, ClassRules]
    class_range: dict[str, float]
    aliases: dict[str, str]
    dist_ths: list[float]
    dist_th_tp: float
    dist_fcn: str = "center_distance"
    min_recall: float = 0.1
    min_precision: float = 0.1
    max_boxes_per_sample: int = 500
    mean_ap_weight: int = 5

    def serialize(self) -> dict[str, Any]:
        """For `metrics_summary.json`."""
        own = vars(self).copy()
        own.pop("mean_ap_weight")  # of NDS
        return {**own, "rules": {name: vars(rules) for name, rules in self.rules.items()}}


def rules_of(config: Any) -> dict[str, ClassRules]:
    """Class name -> rules, in the order of the labels."""
    if isinstance(config, OwnBenchmark):
        return config.rules
    return {name: NUSCENES_RULES[name] for name in config.class_range}


def attributes_of(config: Any) -> tuple[str, ...]:
    """The attributes that boxes can have; the index is the code in `Boxes.attribute`."""
    own = (name for rules in rules_of(config).values() for name in rules.attributes)
    return tuple(dict.fromkeys((*ATTRIBUTES, *own)))


def own_benchmark(
    class_names: Sequence[str], settings: Mapping[str, Any] | None
) -> OwnBenchmark | None:
    """The benchmark of a data set's classes.

    Args:
        class_names: in the order of the labels.
        settings: `benchmark` of the data set, or None.

    Returns:
        None for the benchmark of nuScenes: its classes, or some of them, without settings.

    Raises:
        ValueError: an unknown key or class, or a value that cannot be.
    """
    if settings is None and set(class_names) <= set(CLASSES):
        return None
    settings = _checked_dict(
        {} if settings is None else settings,
        ("classes", "distances", "error_distance"),
        "benchmark",
    )
    of_classes = _checked_dict(settings.get("classes", {}), class_names, "benchmark.classes")
    distances = _distances(settings.get("distances", DEFAULT_DISTANCES_M))
    error_distance = settings.get("error_distance", DEFAULT_ERROR_DISTANCE_M)
    if error_distance not in distances:
        raise ValueError(
            f"benchmark.error_distance is {error_distance!r}, which is not one of benchmark.distances "
            f"({', '.join(map(str, distances))}): errors are taken at one of them, "
            f"{DEFAULT_ERROR_DISTANCE_M} where none is given"
        )
    own = OwnBenchmark({}, {}, {}, distances, float(error_distance))
    for name in class_names:
        where = f"benchmark.classes.{name}"
        given = _checked_dict(of_classes.get(name, {}), _SETTINGS, where)
        base = NUSCENES_RULES.get(name, ClassRules())
        default_range = _NUSCENES_RANGES_M.get(name, DEFAULT_RANGE_M)
        own.class_range[name] = _positive(given.get("range", default_range), f"{where}.range")
        own.rules[name] = ClassRules(
            _attributes(given.get("attributes", base.attributes), where),
            _one_of(given.get("velocity", base.velocity), (True, False), f"{where}.velocity"),
            _one_of(given.get("orientation", base.orientation), _PERIODS, f"{where}.orientation"),
            base.in_racks,
        )
        for other in _names(given.get("names", ()), where):
            if other in class_names or other in own.aliases:
                owner = own.aliases.get(other, other)
                raise ValueError(
                    f"{where}.names has {other!r}, which is the class {owner!r} already: an object has one "
                    "class"
                )
            own.aliases[other] = name
    return own


def describe(config: OwnBenchmark) -> str:
    """One line for the log."""
    ranges = ", ".join(f"{name} {metres:g}" for name, metres in config.class_range.items())
    return (
        f"own classes: mAP_own is over {len(config.rules)} classes at "
        f"{', '.join(map(str, config.dist_ths))} m, errors at {config.dist_th_tp} m; ranges in m: {ranges}"
    )


def name_objects(
    infos: Sequence[dict],
    class_names: Sequence[str],
    own: OwnBenchmark | None,
    scored: bool,
) -> list[str]:
    """Give the objects of info records, in place, the names of their classes.

    Args:
        infos: of an info file.
        class_names: in the order of the labels.
        own: the benchmark of own classes.
        scored: whether the records, and not the tables of nuScenes, are ground truth of an evaluation.

    Returns:
        what the file lacks: objects of some classes, and what is compared of those scored.
    """
    annotated = [info for info in infos if "gt_names" in info]
    if not annotated:
        return []
    lines = []
    if own is not None and own.aliases:
        found = set().union(*(info["gt_names"].tolist() for info in annotated))
        unknown = [f"{name} ({own.aliases[name]})" for name in own.aliases if name not in found]
        if unknown:
            lines.append(f"object of a name that benchmark.classes has: {', '.join(unknown)}")
        for info in annotated:
            names = [own.aliases.get(name, name) for name in info["gt_names"].tolist()]
            info["gt_names"] = np.array(names, dtype=str)
    lines += _absent_classes(annotated, class_names)
    if scored:
        rules = {name: NUSCENES_RULES[name] for name in class_names} if own is None else own.rules
        lines += _unknown_truth(annotated, rules)
    return lines


def _absent_classes(infos, class_names):
    """Objects without lidar and radar points are neither trained on nor scored."""
    found = Counter()
    for info in infos:
        points = info["num_lidar_pts"] + info["num_radar_pts"]
        found.update(info["gt_names"][points > 0].tolist())
    absent = [name for name in class_names if name not in found]
    if absent:
        others = [name for name, _ in found.most_common() if name not in class_names]
        named = f"; it has {listed(others, _NAMED_AT_MOST)}" if others else ""
        yield (
            f"object with lidar or radar points of {len(absent)} of {len(class_names)} classes, which are not "
            f"learned and whose AP is 0: {', '.join(absent)}{named}"
        )


def _unknown_truth(infos, rules):
    present, with_velocity, attributes = set(), set(), set()
    for info in infos:
        present.update(info["gt_names"].tolist())
        known = np.isfinite(info["gt_velocity"].reshape(-1, 2)).all(axis=1)
        with_velocity.update(info["gt_names"][known].tolist())
        attributes.update(info.get("gt_attributes", np.array([])).tolist())
    found = [(name, of) for name, of in rules.items() if name in present]
    still = [name for name, of in found if of.velocity and name not in with_velocity]
    plain = [name for name, of in found if of.attributes and attributes.isdisjoint(of.attributes)]
    for what, setting, names in (
        ("known velocity", "velocity=False", still),
        ("object with one of the attributes", "attributes=[]", plain),
    ):
        if names:
            yield (
                f"{what} of {', '.join(names)}: that error will be 1; {setting} in "
                f"benchmark.classes.{names[0]} leaves it out"
            )


def _checked_dict(value, known, where):
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} is {value!r}, not a dict of {', '.join(known)}")
    for key in value:
        if key not in known:
            hint = did_you_mean(str(key), known)
            raise ValueError(f"{where} has {key!r}, which is not one of {', '.join(known)}{hint}")
    return value


def _positive(value, where):
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 < value < math.inf:
        raise ValueError(f"{where} is {value!r}, not a positive number of metres")
    return float(value)


def _distances(value):
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"benchmark.distances is {value!r}, not a list of metres")
    distances = [_positive(one, "an entry of benchmark.distances") for one in value]
    if len(set(distances)) < len(distances):
        raise ValueError(f"benchmark.distances is {value!r}: a distance occurs twice")
    return sorted(distances)


def _one_of(value, allowed, where):
    if not isinstance(value, (bool, str)) or value not in allowed:
        raise ValueError(f"{where} is {value!r}: it must be one of {', '.join(map(str, allowed))}")
    return value


def _names(value, where):
    if not _are_names(value):
        raise ValueError(f"{where}.names is {value!r}, not a list of names in the info file")
    return list(value)


def _attributes(value, where):
    if not _are_names(value) or len(value) not in (0, 2):
        raise ValueError(
            f"{where}.attributes is {value!r}: it must be two names, of an object that moves and of one "
            "that stands still, or empty"
        )
    return tuple(value)


def _are_names(value):
    texts = isinstance(value, (list, tuple))
    return texts and all(isinstance(name, str) and name for name in value)

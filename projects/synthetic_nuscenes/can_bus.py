"""CAN bus messages of a drive, in the files that the devkit's NuScenesCanBus reads."""

import json

import numpy as np

from projects.bevformer.files.writing import atomic_write
from projects.synthetic_nuscenes.rotations import quaternion_from_matrix
from projects.synthetic_nuscenes.world import MARGIN_S

POSE_RATE_HZ = 50.0
_GRAVITY = 9.81
_BEFORE_S, _AFTER_S = 0.1, 0.6  # messages begin before the first and end after the last key frame
_WHEELBASE_M = 2.6
_STEERING_RATIO = 15.0
_ROUTE_STEP_M = 1.0


def write_can_bus(folder, world, first_timestamp_us):
    """Write <folder>/<scene>_{pose,ms_imu,steeranglefeedback,vehicle_monitor,route,meta}.json.

    Args:
        folder: existing folder.
        world: world.World.
        first_timestamp_us: time of the first key frame, microseconds.
    """
    stop = world.ego.times[-1] - MARGIN_S + _AFTER_S
    times_us = np.round(np.arange(-_BEFORE_S, stop, 1.0 / POSE_RATE_HZ) * 1e6).astype(np.int64)
    states = [
        _State(world, time_us / 1e6, int(first_timestamp_us + time_us)) for time_us in times_us
    ]
    messages = {
        "pose": [state.pose() for state in states],
        "ms_imu": [state.imu() for state in states],
        "steeranglefeedback": [state.steering() for state in states],
        "vehicle_monitor": [state.monitor() for state in states[::25]],
    }
    contents = dict(messages)
    contents["meta"] = {name: _statistics(rows) for name, rows in messages.items()}
    stations = np.arange(world.ego.s[0], world.ego.s[-1] + 50.0, _ROUTE_STEP_M)
    contents["route"] = np.stack(world.road.point(stations, world.ego.d), axis=1).tolist()
    for name, content in contents.items():
        with atomic_write(folder / f"{world.name}_{name}.json") as file:
            file.write(json.dumps(content))


class _State:
    """Motion of the ego vehicle at one time; vectors are in the ego frame, except for the position."""

    def __init__(self, world, time_s, utime):
        s, rate, rate_change = (float(value) for value in world.ego.along(time_s))
        bend, d = float(world.road.bend(s)), world.ego.d
        stretch = 1.0 - d * bend  # length of the lane for each metre of centre line
        self._utime = utime
        self._pose = world.ego_pose(time_s)
        self._speed = rate * stretch
        self._yaw_rate = rate * bend
        self._curvature = bend / stretch
        self._acceleration = [rate_change * stretch, self._speed * self._yaw_rate, _GRAVITY]

    def pose(self):
        return {
            "accel": self._acceleration,
            "orientation": quaternion_from_matrix(self._pose[:3, :3]).tolist(),
            "pos": self._pose[:3, 3].tolist(),
            "rotation_rate": [0.0, 0.0, self._yaw_rate],
            "utime": self._utime,
            "vel": [self._speed, 0.0, 0.0],
        }

    def imu(self):
        return {
            "linear_accel": self._acceleration,
            "q": quaternion_from_matrix(self._pose[:3, :3]).tolist(),
            "rotation_rate": [0.0, 0.0, self._yaw_rate],
            "utime": self._utime,
        }

    def steering(self):
        """Angle of the steering wheel in radians, by the single-track model."""
        angle = _STEERING_RATIO * np.arctan(_WHEELBASE_M * self._curvature)
        return {"utime": self._utime, "value": float(angle)}

    def monitor(self):
        return {
            "available_distance": 120.0,
            "battery_level": 80,
            "brake": int(np.clip(-self._acceleration[0] * 20.0, 0, 126)),
            "brake_switch": 2 if self._acceleration[0] < -0.3 else 1,
            "gear_position": 7,
            "left_signal": 0,
            "right_signal": 0,
            "steering": float(np.degrees(self.steering()["value"])),
            "throttle": int(np.clip(self._acceleration[0] * 300.0, 0, 1000)),
            "utime": self._utime,
            "vehicle_speed": self._speed * 3.6,
            "yaw_rate": float(np.degrees(self._yaw_rate)),
        }


def _statistics(rows):
    """Statistics of one kind of message, for the meta file."""
    utimes = np.array([row["utime"] for row in rows])
    timespan = float(utimes[-1] - utimes[0]) / 1e6
    return {
        "message_count": len(rows),
        "message_freq": (len(rows) - 1) / timespan if timespan else 0.0,
        "timespan": timespan,
        "var_stats": {name: _spread([row[name] for row in rows]) for name in rows[0]},
    }


def _spread(values):
    values = np.asarray(values, dtype=np.float64)
    change = np.diff(values, axis=0) if len(values) > 1 else np.zeros_like(values)
    statistics = {}
    for suffix, data in (("", values), ("_diff", change)):
        for name in ("max", "mean", "min", "std"):
            statistics[name + suffix] = float(getattr(data, name)())
    return statistics

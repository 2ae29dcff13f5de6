"""Car following along lanes, with stops where pedestrians cross.

The intelligent driver model (Treiber, Hennecke, Helbing, Phys. Rev. E 62, 2000) gives each vehicle
its acceleration from its own speed, the gap to the one ahead and the difference of their speeds.
"""

from dataclasses import dataclass

import numpy as np

STEP_S = 0.05

_ACCELERATION = 1.4  # m/s^2, at most
_BRAKING = 2.0  # m/s^2, comfortable
_HARD_BRAKING = 7.0
_HEADWAY_S = 1.3
_STANDSTILL_GAP = 2.2  # m


@dataclass(frozen=True)
class Crossing:
    """A crossing that is closed to vehicles for `red_s` out of every `period_s` seconds.

    Attributes:
        s: where pedestrians cross, metres along the road.
        period_s: duration of a cycle.
        red_s: how long vehicles wait in a cycle.
        phase_s: a time at which vehicles get red.
    """

    s: float
    period_s: float
    red_s: float
    phase_s: float

    HALF_WIDTH = 2.0
    STOP_DISTANCE = 3.5

    def closed(self, time_s):
        """Whether vehicles must wait at this time."""
        return (time_s - self.phase_s) % self.period_s < self.red_s


def drive(progress, length, desired_speed, stops, times):
    """Simulate the vehicles of one lane.

    Args:
        progress: (V,) metres along the driving direction of the middles of the vehicles at
            times[0], in descending order: the first is the leader.
        length: (V,) metres.
        desired_speed: (V,) m/s.
        stops: list of (position of the stop line in metres of progress, Crossing).
        times: (T,) seconds, STEP_S apart.

    Returns:
        progress (T, V), speed (T, V) and acceleration (T, V); between two times the acceleration
        is constant: progress[t + 1] = progress[t] + speed[t] * dt + acceleration[t] * dt^2 / 2.
    """
    count = len(progress)
    position, speed = (
        np.array(progress, dtype=np.float64),
        np.array(desired_speed, dtype=np.float64),
    )
    front_offset = np.asarray(length) / 2
    history = np.empty((3, len(times), count))
    for index, time in enumerate(times):
        gap = np.full(count, 1e6)
        gap[1:] = position[:-1] - front_offset[:-1] - position[1:] - front_offset[1:]
        leader_speed = np.concatenate([[1e3], speed[:-1]])
        acceleration = _idm(speed, desired_speed, gap, leader_speed)
        for line, crossing in stops:
            if crossing.closed(time):
                distance = line - position - front_offset
                can_stop = (distance > 0) & (speed**2 < 2 * 4.0 * np.maximum(distance, 1e-3))
                to_line = _idm(speed, desired_speed, distance + _STANDSTILL_GAP - 0.4, 0.0)
                acceleration = np.where(can_stop, np.minimum(acceleration, to_line), acceleration)
        acceleration = np.clip(acceleration, -_HARD_BRAKING, _ACCELERATION)
        acceleration = np.maximum(acceleration, -speed / STEP_S)  # no reversing
        history[:, index] = position, speed, acceleration
        position = position + speed * STEP_S + 0.5 * acceleration * STEP_S**2
        speed = np.maximum(speed + acceleration * STEP_S, 0.0)
    return history


def _idm(speed, desired_speed, gap, leader_speed):
    approach = speed * (speed - leader_speed) / (2 * np.sqrt(_ACCELERATION * _BRAKING))
    wanted_gap = _STANDSTILL_GAP + np.maximum(speed * _HEADWAY_S + approach, 0.0)
    free = 1.0 - (speed / desired_speed) ** 4
    return _ACCELERATION * (free - (wanted_gap / np.maximum(gap, 0.1)) ** 2)

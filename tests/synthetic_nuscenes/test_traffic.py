"""Car following: nobody collides, everybody stops at a closed crossing, motion is consistent."""

import numpy as np
import pytest

from projects.synthetic_nuscenes.traffic import STEP_S, Crossing, drive

TIMES = np.arange(0.0, 30.0, STEP_S)


def test_a_free_vehicle_keeps_its_desired_speed():
    progress, speed, _ = drive([0.0], [4.0], np.array([8.0]), [], TIMES)
    np.testing.assert_allclose(speed[:, 0], 8.0, atol=0.05)
    assert progress[-1, 0] == pytest.approx(8.0 * TIMES[-1], abs=0.5)


def test_a_fast_vehicle_stays_behind_a_slow_one():
    progress, speed, _ = drive([20.0, 0.0], [5.0, 5.0], np.array([3.0, 12.0]), [], TIMES)
    assert (progress[:, 0] - progress[:, 1]).min() > 5.0
    assert speed[-1, 1] == pytest.approx(3.0, abs=0.3)


def test_motion_is_the_integral_of_the_acceleration():
    progress, speed, acceleration = drive([20.0, 0.0], [5.0, 5.0], np.array([3.0, 12.0]), [], TIMES)
    moved = progress[:-1] + speed[:-1] * STEP_S + 0.5 * acceleration[:-1] * STEP_S**2
    np.testing.assert_allclose(progress[1:], moved, atol=1e-12)
    np.testing.assert_allclose(speed[1:], speed[:-1] + acceleration[:-1] * STEP_S, atol=1e-12)


def test_vehicles_wait_at_a_closed_crossing_and_then_drive_on():
    crossing = Crossing(s=60.0, period_s=100.0, red_s=20.0, phase_s=0.0)
    progress, speed, _ = drive(
        [0.0, -15.0], [5.0, 5.0], np.array([8.0, 8.0]), [(55.0, crossing)], TIMES
    )
    waiting = np.searchsorted(TIMES, 19.0)
    assert speed[waiting].max() < 0.3
    assert 50.0 < progress[waiting, 0] + 2.5 < 55.0
    assert progress[-1, 0] > 60.0
    assert (speed >= 0).all()


def test_a_vehicle_too_close_to_stop_drives_on():
    crossing = Crossing(s=8.0, period_s=100.0, red_s=20.0, phase_s=0.0)
    progress, _, _ = drive([0.0], [4.0], np.array([10.0]), [(5.0, crossing)], TIMES)
    assert progress[-1, 0] > 100.0

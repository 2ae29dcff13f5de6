"""The tables of a large data set without its images, for benchmarks: rows like those of nuScenes.

A scene is a bent road on which the ego vehicle and other objects move at steady speeds and ignore each
other. Lidar points and visibility follow from size, distance and a share drawn for each object. Sensors
record at the rates of nuScenes, which gives as many rows.

Shape legend: F key frames, R records of a sensor, K objects.
"""

import json
from dataclasses import dataclass

import cv2
import numpy as np

from projects.bevformer.nuscenes.spec import CAMERAS
from projects.synthetic_nuscenes.catalogue import KINDS, draw_size
from projects.synthetic_nuscenes.recording import (
    ANNOTATION_RANGE_M,
    LIDAR_CHANNEL,
    first_timestamp_us,
    log_name,
    scene_rig,
)
from projects.synthetic_nuscenes.rotations import quaternion_from_matrix
from projects.synthetic_nuscenes.schema import (
    RADARS,
    TABLES,
    fixed_tables,
    make_token,
    visibility_token,
)
from projects.synthetic_nuscenes.world import KEY_FRAME_PERIOD_S, scene_generator

_MAP_FILE = "maps/synthetic.png"
_IMAGE_HW = (900, 1600)
# Records of a sensor from one key frame to the next, the key frame's own among them.
_RECORDS = {**dict.fromkeys(CAMERAS, 6), LIDAR_CHANNEL: 10, **dict.fromkeys(RADARS, 6)}
_POSE_RATE_HZ = 50.0

# Kind -> how many of 100 objects, moving share, speed when moving (m/s), least and most metres from
# the middle of the road.
_POPULATION = {
    "car": (41, 0.4, 8.0, 3.0, 25.0),
    "truck": (8, 0.4, 7.0, 3.0, 25.0),
    "construction_vehicle": (1, 0.2, 2.0, 6.0, 30.0),
    "bus": (2, 0.6, 6.0, 3.0, 20.0),
    "trailer": (2, 0.2, 6.0, 4.0, 30.0),
    "barrier": (13, 0.0, 0.0, 5.0, 30.0),
    "motorcycle": (1, 0.0, 0.0, 4.0, 15.0),
    "ridden_motorcycle": (1, 1.0, 7.0, 3.0, 8.0),
    "bicycle": (1, 0.0, 0.0, 6.0, 15.0),
    "ridden_bicycle": (1, 1.0, 4.0, 4.0, 10.0),
    "pedestrian": (20, 0.6, 1.3, 7.0, 35.0),
    "traffic_cone": (9, 0.0, 0.0, 4.0, 30.0),
}
_OBJECTS_PER_METRE = 0.39  # of road; about 35 annotations a key frame, as in nuScenes
_BEAM_STEP_RAD, _AZIMUTH_STEP_RAD = np.radians(1.33), np.radians(0.33)


@dataclass(frozen=True)
class TablesTask:
    """One scene to generate."""

    seed: int
    scene: str
    frame_count: int


def write_tables(folder, seed, scene_rows):
    """Write the 13 tables, and the one map mask that they name.

    Args:
        folder: the table folder, in the data root; existing.
        seed: of the data set.
        scene_rows: iterator over what `make_scene` returns for each scene.
    """
    cv2.imwrite(str(folder.parent / _MAP_FILE), np.full((8, 8), 255, np.uint8))
    files = {table: (folder / f"{table}.json").open("w") for table in TABLES}
    try:
        separators = dict.fromkeys(TABLES, "[\n")

        def write(table, rows):
            if rows:
                files[table].write(separators[table] + ",\n".join(rows))
                separators[table] = ",\n"

        for table, rows in fixed_tables(seed, CAMERAS).items():
            write(table, [json.dumps(row) for row in rows])
        logs = []
        for rows_of_table, log_token in scene_rows:
            logs.append(log_token)
            for table, rows in rows_of_table.items():
                write(table, rows)
        row = {"token": make_token(seed, "map"), "category": "semantic_prior",
               "filename": _MAP_FILE, "log_tokens": logs}  # fmt: skip
        write("map", [json.dumps(row)])
        for table, file in files.items():
            file.write("[]" if separators[table] == "[\n" else "\n]")
    finally:
        for file in files.values():
            file.close()


def make_scene(task, can_bus_folder):
    """Generate one scene, and write its CAN bus poses.

    Returns:
        rows: {table: list of JSON objects as text}.
        log_token: token of its log.
    """
    rng = scene_generator(task.seed, task.scene, "tables")
    drive = _Drive(rng, (task.frame_count - 1) * KEY_FRAME_PERIOD_S)
    rows = {table: [] for table in TABLES}

    def token(*parts):
        return make_token(task.seed, *parts)

    start_us = first_timestamp_us(task.scene)
    samples = [token("sample", task.scene, frame) for frame in range(task.frame_count)]
    times_us = start_us + (np.arange(task.frame_count) * KEY_FRAME_PERIOD_S * 1e6).astype(np.int64)
    scene_token, log_token = token("scene", task.scene), token("log", task.scene)
    log = log_name(task.seed, task.scene)
    rows["log"].append(
        json.dumps({"token": log_token, "logfile": log, "vehicle": "synthetic",
                    "date_captured": "2020-09-13", "location": "synthetic"})
    )  # fmt: skip
    rows["scene"].append(
        json.dumps({"token": scene_token, "log_token": log_token, "nbr_samples": len(samples),
                    "first_sample_token": samples[0], "last_sample_token": samples[-1],
                    "name": task.scene, "description": "Made up, tables only"})
    )  # fmt: skip
    for sample, time_us, before, after in zip(samples, times_us.tolist(), *_chain(samples)):
        rows["sample"].append(
            f'{{"token": "{sample}", "timestamp": {time_us}, "prev": "{before}", "next": "{after}", '
            f'"scene_token": "{scene_token}"}}'
        )
    _add_sensors(rows, task, token, drive, log, samples, start_us)
    _add_annotations(rows, task, token, drive, samples, rng)
    _write_can_bus(can_bus_folder / f"{task.scene}_pose.json", drive, start_us)
    return rows, log_token


class _Drive:
    """The path of the ego vehicle, and the road that continues ahead of it and behind it."""

    _MARGIN_M, _STEP_M = 150.0, 0.5

    def __init__(self, rng, duration_s):
        self.duration_s = duration_s
        self._speed = rng.uniform(2.0, 11.0)
        self._swing, self._phase = rng.uniform(0.0, 0.9), rng.uniform(0.0, 2 * np.pi)
        self.length = self.station(duration_s + 2.0) + self._MARGIN_M
        self._s = np.arange(-self._MARGIN_M, self.length + self._MARGIN_M, self._STEP_M)
        bend = rng.uniform(0.0, 0.01) * np.sin(self._s / rng.uniform(30.0, 90.0))
        self._yaw = rng.uniform(-np.pi, np.pi) + np.cumsum(bend) * self._STEP_M
        origin = rng.uniform(300.0, 2000.0, 2)
        self._x = origin[0] + np.cumsum(np.cos(self._yaw)) * self._STEP_M
        self._y = origin[1] + np.cumsum(np.sin(self._yaw)) * self._STEP_M

    def station(self, time_s):
        """Metres along the road at a time; never backwards."""
        swing = self._swing * self._speed * 3.0
        return self._speed * time_s + swing * np.sin(time_s / 3.0 + self._phase)

    def place(self, s, d=0.0):
        """x, y and yaw at station s, d metres to the left."""
        x, y, yaw = (np.interp(s, self._s, values) for values in (self._x, self._y, self._yaw))
        return x - d * np.sin(yaw), y + d * np.cos(yaw), yaw


def _chain(tokens):
    """Previous and next token of every one; "" beyond the ends."""
    return ["", *tokens[:-1]], [*tokens[1:], ""]


def _add_sensors(rows, task, token, drive, log, samples, start_us):
    rig = scene_rig(task.seed, task.scene, _IMAGE_HW)
    for channel in _RECORDS:
        calibration = token("calibrated_sensor", task.scene, channel)
        sensor2ego, intrinsic = np.eye(4), []
        if channel in CAMERAS:
            sensor2ego = rig.cameras[channel].camera2ego
            intrinsic = rig.cameras[channel].intrinsic.tolist()
        elif channel == LIDAR_CHANNEL:
            sensor2ego = rig.lidar2ego
        rows["calibrated_sensor"].append(
            json.dumps({"token": calibration, "sensor_token": token("sensor", channel),
                        "translation": sensor2ego[:3, 3].tolist(),
                        "rotation": quaternion_from_matrix(sensor2ego[:3, :3]).tolist(), "camera_intrinsic": intrinsic})
        )  # fmt: skip

        delay_s = rig.cameras[channel].delay_s if channel in CAMERAS else 0.0
        per_frame = _RECORDS[channel]
        count = (len(samples) - 1) * per_frame + 1  # (R,)
        times_s = np.arange(count) * (KEY_FRAME_PERIOD_S / per_frame) + delay_s
        times_us = (start_us + np.round(times_s * 1e6)).astype(np.int64)
        x, y, yaw = (values.tolist() for values in drive.place(drive.station(times_s)))
        cos, sin = np.cos(np.array(yaw) / 2).tolist(), np.sin(np.array(yaw) / 2).tolist()
        tokens = [token("sample_data", task.scene, channel, number) for number in range(count)]
        before, after = _chain(tokens)
        height, width = _IMAGE_HW if channel in CAMERAS else (0, 0)
        suffix = "jpg" if channel in CAMERAS else "pcd.bin" if channel == LIDAR_CHANNEL else "pcd"
        for i, time_us in enumerate(times_us.tolist()):
            is_key = i % per_frame == 0
            sample = samples[-(-i // per_frame)]  # of the key frame that follows
            folder = "samples" if is_key else "sweeps"
            rows["ego_pose"].append(
                f'{{"token": "{tokens[i]}", "timestamp": {time_us}, '
                f'"rotation": [{cos[i]}, 0.0, 0.0, {sin[i]}], "translation": [{x[i]}, {y[i]}, 0.0]}}'
            )
            rows["sample_data"].append(
                f'{{"token": "{tokens[i]}", "sample_token": "{sample}", '
                f'"ego_pose_token": "{tokens[i]}", "calibrated_sensor_token": "{calibration}", '
                f'"timestamp": {time_us}, "fileformat": "{suffix[:3]}", '
                f'"is_key_frame": {"true" if is_key else "false"}, "height": {height}, '
                f'"width": {width}, "filename": '
                f'"{folder}/{channel}/{log}__{channel}__{time_us}.{suffix}", '
                f'"prev": "{before[i]}", "next": "{after[i]}"}}'
            )


def _add_annotations(rows, task, token, drive, samples, rng):
    kinds = [kind for kind, (count, *_) in _POPULATION.items() for _ in range(count)]
    number = int(drive.length * _OBJECTS_PER_METRE)
    kinds = [kinds[i] for i in rng.integers(len(kinds), size=number)]
    sizes = np.array([draw_size(kind, rng) for kind in kinds])  # (K, 3) l, w, h
    _, moving_share, speed, near, far = np.array([_POPULATION[kind] for kind in kinds]).T
    side = rng.choice([-1.0, 1.0], number)
    speed = speed * rng.uniform(0.6, 1.4, number) * (rng.random(number) < moving_share)
    station = rng.uniform(-80.0, drive.length, number)
    lateral = side * rng.uniform(near, far)
    hidden = rng.random(number) < 0.15
    seen_share = np.where(hidden, 0.0, rng.beta(2.0, 1.0, number))  # (K,)

    times_s = np.arange(len(samples)) * KEY_FRAME_PERIOD_S
    # Traffic on the left comes towards the ego vehicle.
    x, y, yaw = drive.place(station - side * speed * times_s[:, None], lateral)  # (F, K)
    yaw = yaw + np.where(side > 0, np.pi, 0.0)
    ego_x, ego_y, _ = drive.place(drive.station(times_s))
    away = np.hypot(x - ego_x[:, None], y - ego_y[:, None])
    face = sizes[:, 2] * np.maximum(sizes[:, 0], sizes[:, 1])
    beams = face / (np.maximum(away, 3.0) ** 2 * _BEAM_STEP_RAD * _AZIMUTH_STEP_RAD)
    points = (beams * seen_share).astype(np.int64)
    share = seen_share * rng.uniform(0.7, 1.0, away.shape)
    levels = visibility_token(share).tolist()
    near = (away <= ANNOTATION_RANGE_M) & (seen_share > 0)

    centers = np.stack([x, y, np.broadcast_to(sizes[:, 2] / 2, x.shape)], axis=-1).tolist()
    cos, sin = np.cos(yaw / 2).tolist(), np.sin(yaw / 2).tolist()
    wlh = sizes[:, [1, 0, 2]].tolist()
    for k, kind in enumerate(kinds):
        frames = np.flatnonzero(near[:, k])
        if not len(frames):
            continue
        instance = token("instance", task.scene, k)
        category = KINDS[kind].category
        # Who leaves and comes back stays annotated in between.
        frames = range(int(frames[0]), int(frames[-1]) + 1)
        tokens = [token("sample_annotation", task.scene, k, frame) for frame in frames]
        rows["instance"].append(
            json.dumps({"token": instance, "category_token": token("category", category),
                        "nbr_annotations": len(tokens), "first_annotation_token": tokens[0],
                        "last_annotation_token": tokens[-1]})
        )  # fmt: skip
        name = _attribute(category, speed[k] > 0)
        attribute = f'"{token("attribute", name)}"' if name else ""
        for frame, own, before, after in zip(frames, tokens, *_chain(tokens)):
            rows["sample_annotation"].append(
                f'{{"token": "{own}", "sample_token": "{samples[frame]}", '
                f'"instance_token": "{instance}", "visibility_token": "{levels[frame][k]}", '
                f'"attribute_tokens": [{attribute}], "translation": {centers[frame][k]}, '
                f'"size": {wlh[k]}, "rotation": [{cos[frame][k]}, 0.0, 0.0, {sin[frame][k]}], '
                f'"prev": "{before}", "next": "{after}", "num_lidar_pts": {points[frame, k]}, '
                f'"num_radar_pts": 0}}'
            )


def _attribute(category, moves):
    if category.startswith("movable_object"):
        return None
    if category.startswith("human"):
        return "pedestrian.moving" if moves else "pedestrian.standing"
    if category in ("vehicle.bicycle", "vehicle.motorcycle"):
        return "cycle.with_rider" if moves else "cycle.without_rider"
    return "vehicle.moving" if moves else "vehicle.parked"


def _write_can_bus(path, drive, start_us):
    times_s = np.arange(-0.1, drive.duration_s + 0.6, 1.0 / _POSE_RATE_HZ)
    times_us = (start_us + np.round(times_s * 1e6)).astype(np.int64).tolist()
    x, y, yaw = drive.place(drive.station(times_s))
    speed = np.gradient(drive.station(times_s), times_s)
    acceleration, turn = np.gradient(speed, times_s), np.gradient(yaw, times_s)
    columns = (x, y, np.cos(yaw / 2), np.sin(yaw / 2), acceleration, turn, speed)
    messages = [
        {"accel": [a, v * rate, 9.81], "orientation": [cos, 0.0, 0.0, sin], "pos": [px, py, 0.0],
         "rotation_rate": [0.0, 0.0, rate], "utime": time_us, "vel": [v, 0.0, 0.0]}
        for time_us, px, py, cos, sin, a, rate, v in zip(times_us, *(c.tolist() for c in columns))
    ]  # fmt: skip
    path.write_text(json.dumps(messages))

"""Write the 13 tables of the nuScenes schema."""

import hashlib
import json
from typing import Dict, List, Sequence, Tuple

import numpy as np

from projects.bevformer.files.writing import atomic_write
from projects.bevformer.nuscenes.spec import BICYCLE_RACK, CATEGORY_TO_CLASS
from projects.synthetic_nuscenes.catalogue import KINDS
from projects.synthetic_nuscenes.recording import LIDAR_CHANNEL, Frame, log_name
from projects.synthetic_nuscenes.rotations import matrices_about_z, quaternion_from_matrix

_UNDETECTED_CATEGORIES = (
    "animal",
    "human.pedestrian.personal_mobility",
    "human.pedestrian.stroller",
    "human.pedestrian.wheelchair",
    "movable_object.debris",
    "movable_object.pushable_pullable",
    BICYCLE_RACK,
    "vehicle.emergency.ambulance",
    "vehicle.emergency.police",
)
CATEGORIES = tuple(sorted((*CATEGORY_TO_CLASS, *_UNDETECTED_CATEGORIES)))

ATTRIBUTES = {
    "vehicle.moving": "The vehicle moves.",
    "vehicle.stopped": "The vehicle stands in traffic and is about to move on.",
    "vehicle.parked": "The vehicle stands, and nobody is about to move it.",
    "cycle.with_rider": "Somebody rides it.",
    "cycle.without_rider": "Nobody rides it.",
    "pedestrian.sitting_lying_down": "The person sits or lies.",
    "pedestrian.standing": "The person stands.",
    "pedestrian.moving": "The person walks.",
}

# Token -> level and the share of the object that the cameras see; upper bounds below.
_VISIBILITIES = {"1": "v0-40", "2": "v40-60", "3": "v60-80", "4": "v80-100"}
_VISIBILITY_BOUNDS = (0.4, 0.6, 0.8)

RADARS = (
    "RADAR_FRONT",
    "RADAR_FRONT_RIGHT",
    "RADAR_FRONT_LEFT",
    "RADAR_BACK_LEFT",
    "RADAR_BACK_RIGHT",
)
TABLES = (
    "category", "attribute", "visibility", "sensor", "log", "map", "scene", "calibrated_sensor", "sample",
    "sample_data", "ego_pose", "instance", "sample_annotation",
)  # fmt: skip


def make_token(seed, *parts):
    """A token of 32 hexadecimal digits, the hash of the seed and the parts."""
    text = "/".join(str(part) for part in (seed, *parts))
    return hashlib.md5(text.encode()).hexdigest()


def fixed_tables(seed: int, cameras: Sequence[str]) -> Dict[str, List[dict]]:
    """Rows of the tables that do not depend on the recording, by table."""
    modalities = {
        **dict.fromkeys(cameras, "camera"),
        LIDAR_CHANNEL: "lidar",
        **dict.fromkeys(RADARS, "radar"),  # named in the table, without data
    }

    def named_rows(table, descriptions):
        return [
            {"token": make_token(seed, table, name), "name": name, "description": description}
            for name, description in descriptions.items()
        ]

    return {
        "category": named_rows("category", {name: name for name in CATEGORIES}),
        "attribute": named_rows("attribute", ATTRIBUTES),
        "visibility": [
            {
                "token": token,
                "level": level,
                "description": f"visible share in per cent: {level[1:]}",
            }
            for token, level in _VISIBILITIES.items()
        ],
        "sensor": [
            {
                "token": make_token(seed, "sensor", channel),
                "channel": channel,
                "modality": modality,
            }
            for channel, modality in modalities.items()
        ],
    }


def visibility_token(visible_share):
    """Visibility tokens of objects by the share of them that the cameras see; scalar or array."""
    return np.digitize(visible_share, _VISIBILITY_BOUNDS) + 1


class TableWriter:
    """Collects the rows of a data set, scene by scene."""

    def __init__(self, seed: int, image_hw: Tuple[int, int], cameras: Sequence[str]) -> None:
        self._seed, self._image_hw, self._cameras = seed, image_hw, cameras
        self._tables: Dict[str, list] = {table: [] for table in TABLES}
        self._tables.update(fixed_tables(seed, cameras))

    def _token(self, *parts):
        return make_token(self._seed, *parts)

    def add_scene(self, scene, rig, frames: List[Frame]):
        """Add one scene.

        Args:
            scene: "scene-NNNN".
            rig: cameras.SensorRig.
            frames: its key frames in time order.
        """
        log = log_name(self._seed, scene)
        log_token = self._token("log", scene)
        samples = [self._token("sample", scene, frame.index) for frame in frames]
        self._tables["log"].append(
            {"token": log_token, "logfile": log, "vehicle": "synthetic",
             "date_captured": "2020-09-13", "location": "synthetic"}
        )  # fmt: skip
        self._tables["map"].append(
            {"token": self._token("map", scene), "category": "semantic_prior",
             "filename": f"maps/{log}.png", "log_tokens": [log_token]}
        )  # fmt: skip
        self._tables["scene"].append(
            {"token": self._token("scene", scene), "log_token": log_token, "name": scene,
             "description": "Synthetic street", "nbr_samples": len(frames),
             "first_sample_token": samples[0], "last_sample_token": samples[-1]}
        )  # fmt: skip
        for frame, token, (before, after) in zip(frames, samples, _neighbours(samples)):
            self._tables["sample"].append(
                {"token": token, "timestamp": frame.timestamp_us, "prev": before, "next": after,
                 "scene_token": self._token("scene", scene)}
            )  # fmt: skip
        self._add_calibration(scene, rig)
        self._add_sensor_data(scene, frames, samples)
        self._add_annotations(scene, frames, samples)

    def _add_calibration(self, scene, rig):
        sensors = {
            channel: (camera.camera2ego, camera.intrinsic.tolist())
            for channel, camera in rig.cameras.items()
        }
        sensors[LIDAR_CHANNEL] = (rig.lidar2ego, [])
        for channel, (sensor2ego, intrinsic) in sensors.items():
            self._tables["calibrated_sensor"].append(
                {"token": self._token("calibrated_sensor", scene, channel),
                 "sensor_token": self._token("sensor", channel),
                 "translation": sensor2ego[:3, 3].tolist(),
                 "rotation": quaternion_from_matrix(sensor2ego[:3, :3]).tolist(), "camera_intrinsic": intrinsic}
            )  # fmt: skip

    def _add_sensor_data(self, scene, frames, samples):
        height, width = self._image_hw
        for channel in (*self._cameras, LIDAR_CHANNEL):
            tokens = [self._token("sample_data", scene, frame.index, channel) for frame in frames]
            for frame, sample, token, (before, after) in zip(
                frames, samples, tokens, _neighbours(tokens)
            ):
                shot = next(shot for shot in frame.shots if shot.channel == channel)
                is_camera = channel != LIDAR_CHANNEL
                self._tables["ego_pose"].append(
                    {"token": token, "timestamp": shot.timestamp_us,
                     "rotation": quaternion_from_matrix(shot.ego2global[:3, :3]).tolist(),
                     "translation": shot.ego2global[:3, 3].tolist()}
                )  # fmt: skip
                self._tables["sample_data"].append(
                    {"token": token, "sample_token": sample, "ego_pose_token": token,
                     "calibrated_sensor_token": self._token("calibrated_sensor", scene, channel),
                     "timestamp": shot.timestamp_us, "fileformat": "jpg" if is_camera else "pcd",
                     "is_key_frame": True, "height": height if is_camera else 0,
                     "width": width if is_camera else 0, "filename": shot.filename,
                     "prev": before, "next": after}
                )  # fmt: skip

    def _add_annotations(self, scene, frames, samples):
        for object_index, track in _tracks(frames).items():
            instance = self._token("instance", scene, object_index)
            tokens = [
                self._token("sample_annotation", scene, object_index, frame_number)
                for frame_number, _ in track
            ]
            kind = track[0][1].kind
            self._tables["instance"].append(
                {"token": instance, "nbr_annotations": len(track),
                 "category_token": self._token("category", KINDS[kind].category),
                 "first_annotation_token": tokens[0], "last_annotation_token": tokens[-1]}
            )  # fmt: skip
            for (frame_number, seen), token, (before, after) in zip(
                track, tokens, _neighbours(tokens)
            ):
                length, width, height = (float(side) for side in seen.size_lwh)
                attributes = [self._token("attribute", seen.attribute)] if seen.attribute else []
                level = int(visibility_token(seen.visible_share))
                self._tables["sample_annotation"].append(
                    {"token": token, "sample_token": samples[frame_number],
                     "instance_token": instance, "visibility_token": str(level),
                     "attribute_tokens": attributes, "translation": [seen.x, seen.y, height / 2],
                     "size": [width, length, height],
                     "rotation": quaternion_from_matrix(matrices_about_z(seen.yaw_rad)).tolist(),
                     "prev": before, "next": after, "num_lidar_pts": seen.lidar_points,
                     "num_radar_pts": 0}
                )  # fmt: skip

    def write(self, folder):
        """Write every table to <folder>/<table>.json."""
        for name, rows in self._tables.items():
            with atomic_write(folder / f"{name}.json") as file:
                file.write(json.dumps(rows, indent=0))


def _neighbours(tokens):
    """(previous, next) of every token of a chain; "" beyond its ends."""
    return list(zip(["", *tokens[:-1]], [*tokens[1:], ""]))


def _tracks(frames):
    """{object index: [(frame number, Observation)]}.

    A track reaches from the first to the last time that a sensor noticed the object. Where it was
    hidden in between it stays annotated, as in nuScenes, without lidar points: velocities are taken
    from neighbouring annotations.
    """
    tracks = {}
    for number, frame in enumerate(frames):
        for seen in frame.observations:
            tracks.setdefault(seen.object_index, []).append((number, seen))
    kept = {}
    for index, track in sorted(tracks.items()):
        noticed = [place for place, (_, seen) in enumerate(track) if seen.noticed]
        if noticed:
            kept[index] = track[noticed[0] : noticed[-1] + 1]
    return kept

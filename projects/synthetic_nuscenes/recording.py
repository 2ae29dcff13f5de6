"""Record one scene: the files of all sensors, and the objects around.

Files below the data root: samples/<channel>/..., maps/<scene>.png, can_bus/<scene>_<message>.json.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import List, Optional, Sequence, Tuple

import cv2
import numpy as np

from projects.synthetic_nuscenes.cameras import NUSCENES_RIG, CameraMount, SensorRig, draw_rig
from projects.synthetic_nuscenes.can_bus import write_can_bus
from projects.synthetic_nuscenes.ground import drivable_mask
from projects.synthetic_nuscenes.lidar import scan
from projects.synthetic_nuscenes.renderer import Renderer
from projects.synthetic_nuscenes.shader import SUPERSAMPLING
from projects.synthetic_nuscenes.world import (
    KEY_FRAME_PERIOD_S,
    World,
    build_world,
    scene_generator,
    scene_number,
)

LIDAR_CHANNEL = "LIDAR_TOP"
ANNOTATION_RANGE_M = 70.0

_JPEG_QUALITY = 90
_KEY_FRAME_JITTER_US = 2000
_SHUTTER_JITTER_US = 800
_SPEED_WINDOW_S = 0.1


@dataclass(frozen=True)
class Shot:
    """One reading of one sensor: its file (relative to the data root), time, and ego2global (4, 4)."""

    channel: str
    filename: str
    timestamp_us: int
    ego2global: np.ndarray


@dataclass(frozen=True)
class Observation:
    """One object at a key frame.

    Attributes:
        object_index: within the scene.
        kind: key of catalogue.KINDS.
        size_lwh: (3,) metres.
        x, y, yaw_rad: on the ground, global frame.
        attribute: name, or None.
        lidar_points: returns on its surface.
        pixels: area in the images of all cameras, pixels.
        visible_share: part of what the cameras would see of it if nothing hid it, 0 to 1.
    """

    object_index: int
    kind: str
    size_lwh: np.ndarray
    x: float
    y: float
    yaw_rad: float
    attribute: Optional[str]
    lidar_points: int
    pixels: float
    visible_share: float

    @property
    def noticed(self):
        """Whether any sensor detected it."""
        return self.lidar_points > 0 or self.pixels >= 1.0


@dataclass(frozen=True)
class Frame:
    """One key frame: its number, time, the readings of all sensors, and the objects around."""

    index: int
    timestamp_us: int
    shots: List[Shot]
    observations: List[Observation]


@dataclass(frozen=True)
class SceneTask:
    """A scene of a data set, and the range of its key frames to record.

    Attributes:
        root: folder of the data set.
        seed: of the data set.
        scene: "scene-NNNN".
        image_hw: height and width of the images.
        frame_count: key frames of the whole scene.
        frames: (first, stop), the key frames of this task.
        mounts: the cameras.
    """

    root: Path
    seed: int
    scene: str
    image_hw: Tuple[int, int]
    frame_count: int
    frames: Tuple[int, int]
    mounts: Tuple[CameraMount, ...] = NUSCENES_RIG


@dataclass(frozen=True)
class _Stage:
    world: World
    renderer: Renderer
    rig: SensorRig


@functools.lru_cache(maxsize=1)
def _stage(seed, scene, image_hw, frame_count, mounts):
    """The scene, ready to be recorded; cached, because a process records many of its frames."""
    world = build_world(scene, seed, (frame_count - 1) * KEY_FRAME_PERIOD_S)
    return _Stage(world, Renderer(world, seed), scene_rig(seed, scene, image_hw, mounts))


def scene_rig(
    seed: int,
    scene: str,
    image_hw: Tuple[int, int],
    mounts: Sequence[CameraMount] = NUSCENES_RIG,
) -> SensorRig:
    """The calibrated sensors of a scene."""
    return draw_rig(image_hw, scene_generator(seed, scene, "rig"), mounts)


def log_name(seed, scene):
    """Name of the log of a scene; each scene has its own."""
    return f"synthetic-{seed}-{scene}"


def first_timestamp_us(scene):
    """Time of the first key frame in microseconds; scenes are 1000 seconds apart."""
    return 1_600_000_000_000_000 + scene_number(scene) * 1_000_000_000


def record(task):
    """Record the key frames of a task; its first one also writes map mask and CAN bus of the scene.

    Returns:
        list of Frame.
    """
    stage = _stage(task.seed, task.scene, task.image_hw, task.frame_count, task.mounts)
    first, stop = task.frames
    if first == 0:
        # The devkit counts map rows from the top, along -y.
        mask = np.flipud(drivable_mask(stage.world))
        _write_image(task.root / "maps" / f"{log_name(task.seed, task.scene)}.png", mask)
        write_can_bus(task.root / "can_bus", stage.world, first_timestamp_us(task.scene))
    return [_record_frame(task, stage, index) for index in range(first, stop)]


def _record_frame(task, stage, index):
    rng = scene_generator(task.seed, task.scene, f"frame {index}")
    start_us = first_timestamp_us(task.scene)
    key_us = round(index * KEY_FRAME_PERIOD_S * 1e6)
    key_us += int(rng.integers(-_KEY_FRAME_JITTER_US, _KEY_FRAME_JITTER_US + 1)) if index else 0
    world, faces = stage.world, stage.renderer.faces
    prefix = log_name(task.seed, task.scene)

    shots = []
    seen = np.zeros(len(world.objects))
    unhidden = np.zeros(len(world.objects))
    for channel, camera in stage.rig.cameras.items():
        jitter_us = int(rng.integers(-_SHUTTER_JITTER_US, _SHUTTER_JITTER_US + 1))
        shot_us = key_us + round(camera.delay_s * 1e6) + jitter_us
        ego2global = world.ego_pose(shot_us / 1e6)
        picture = stage.renderer.render(
            camera.intrinsic,
            ego2global @ camera.camera2ego,
            world.object_poses(shot_us / 1e6),
            task.image_hw,
            rng,
        )
        filename = f"samples/{channel}/{prefix}__{channel}__{start_us + shot_us}.jpg"
        _write_image(task.root / filename, picture.rgb[..., ::-1])
        shots.append(Shot(channel, filename, start_us + shot_us, ego2global))
        seen += picture.seen
        unhidden += picture.unhidden

    ego2global = world.ego_pose(key_us / 1e6)
    poses = world.object_poses(key_us / 1e6)
    points, owner = scan(ego2global @ stage.rig.lidar2ego, poses, faces, rng)
    filename = f"samples/{LIDAR_CHANNEL}/{prefix}__{LIDAR_CHANNEL}__{start_us + key_us}.pcd.bin"
    points.tofile(task.root / filename)
    shots.append(Shot(LIDAR_CHANNEL, filename, start_us + key_us, ego2global))
    lidar_points = np.bincount(owner[owner >= 0], minlength=len(world.objects))
    observations = _observe(world, key_us / 1e6, ego2global, poses, lidar_points, seen, unhidden)
    return Frame(index, start_us + key_us, shots, observations)


def _observe(world, time_s, ego2global, poses, lidar_points, seen, unhidden):
    """Observations of all annotated objects around the ego vehicle, seen or not."""
    half = _SPEED_WINDOW_S / 2
    moved = world.object_poses(time_s + half) - world.object_poses(time_s - half)
    speed = np.linalg.norm(moved[:, :2, 3], axis=1) / _SPEED_WINDOW_S
    away = np.linalg.norm(poses[:, :2, 3] - ego2global[:2, 3], axis=1)
    observations = []
    for index, item in enumerate(world.objects):
        if not item.annotated or away[index] > ANNOTATION_RANGE_M:
            continue
        pose = poses[index]
        observations.append(
            Observation(
                object_index=index,
                kind=item.kind,
                size_lwh=item.size_lwh,
                x=float(pose[0, 3]),
                y=float(pose[1, 3]),
                yaw_rad=float(np.arctan2(pose[1, 0], pose[0, 0])),
                attribute=item.attribute(speed[index]),
                lidar_points=int(lidar_points[index]),
                pixels=float(seen[index]) / SUPERSAMPLING**2,
                visible_share=float(seen[index] / max(unhidden[index], 1.0)),
            )
        )
    return observations


def _write_image(path, image):
    """Write a grey or BGR image in the format of its extension."""
    options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY] if path.suffix == ".jpg" else []
    if not cv2.imwrite(str(path), np.ascontiguousarray(image), options):
        raise OSError(f"cannot write {path}: is the disk full, or the folder read-only?")

"""Write a whole data set: record the scenes in several processes, then write the tables."""

import functools
import multiprocessing
import os
import shutil
import signal
from pathlib import Path
from typing import Optional, Sequence, Tuple

import cv2
from tqdm import tqdm

from projects.synthetic_nuscenes.cameras import NUSCENES_RIG, CameraMount
from projects.synthetic_nuscenes.recording import LIDAR_CHANNEL, SceneTask, record, scene_rig
from projects.synthetic_nuscenes.schema import TableWriter
from projects.synthetic_nuscenes.tables_only import TablesTask, make_scene, write_tables

# The scenes of v1.0-mini, as the devkit's splits name them: mini_train, then mini_val.
MINI_TRAIN = ("scene-0061", "scene-0553", "scene-0655", "scene-0757",
              "scene-0796", "scene-1077", "scene-1094", "scene-1100")  # fmt: skip
MINI_VAL = ("scene-0103", "scene-0916")
VERSIONS = ("v1.0-mini", "v1.0-trainval")

_FRAMES_PER_TASK = 10
_VAL_EVERY = 5  # of a v1.0-trainval data set, every fifth scene is one of the val split


def scene_names(version, count=None):
    """Scenes of a version that are in the devkit's splits.

    Args:
        version: one of VERSIONS.
        count: how many; None for all 10 of v1.0-mini, and for 10 of v1.0-trainval. One in
            _VAL_EVERY comes from the val split, of two or more scenes at least one.

    Raises:
        ValueError: unknown version, or more scenes than it has.
    """
    if version not in VERSIONS:
        raise ValueError(f"version {version!r} is not one of {', '.join(VERSIONS)}")
    train, val = _splits(version)
    available = len(train) + len(val)
    count = 10 if count is None else count
    if not 1 <= count <= available:
        raise ValueError(f"num_scenes is {count}; {version} has 1 to {available} scenes")
    val_count = min(len(val), max(count // _VAL_EVERY, int(count > 1)))
    train_count = min(len(train), count - val_count)
    return tuple(train[:train_count]) + tuple(val[: count - train_count])


def scenes_of_splits(version, scenes):
    """{"train": names, "val": names} of the scenes that are in a split of the version."""
    splits = zip(("train", "val"), map(set, _splits(version)))
    return {split: [name for name in scenes if name in members] for split, members in splits}


def _splits(version):
    if version == "v1.0-mini":
        return MINI_TRAIN, MINI_VAL
    from nuscenes.utils import splits  # takes seconds to import

    return splits.train, splits.val


def create_data_set(
    out_dir,
    version: str = "v1.0-mini",
    seed: int = 0,
    image_hw: Tuple[int, int] = (450, 800),
    frames_per_scene: int = 40,
    scenes: Optional[Sequence[str]] = None,
    workers: Optional[int] = None,
    force: bool = False,
    show_progress: bool = True,
    cameras: Sequence[CameraMount] = NUSCENES_RIG,
) -> Path:
    """Write a synthetic data set in the nuScenes layout.

    The bytes depend only on the version, seed, image_hw, frames_per_scene, scenes and cameras; the
    content of a scene on its name, the seed, image_hw, frames_per_scene and cameras.

    Args:
        out_dir: data root; `out_dir/can_bus` holds the CAN bus.
        version: "v1.0-mini" or "v1.0-trainval".
        seed: 0 or more.
        image_hw: height and width of the images.
        frames_per_scene: key frames of each scene, half a second apart.
        scenes: names of the scenes; None for those of `scene_names(version)`.
        workers: processes; None for one per CPU core, 1 for none but this one.
        force: replace a data set that is in out_dir; other files are kept.
        show_progress: draw a progress bar of the key frames.
        cameras: the rig; `cameras.camera_ring` makes others than nuScenes' six.

    Returns:
        out_dir as a Path.

    Raises:
        ValueError: an argument is out of its range.
        FileExistsError: out_dir is not empty and force is False.
    """
    scenes = tuple(scene_names(version) if scenes is None else scenes)
    workers = (os.cpu_count() or 1) if workers is None else workers
    _check(version, seed, image_hw, frames_per_scene, scenes, workers)
    cameras = tuple(cameras)
    channels = [mount.channel for mount in cameras]
    if not channels or len(set(channels)) != len(channels):
        raise ValueError(f"cameras must have different names, at least one, got {channels}")
    root = _empty_folder(Path(out_dir), force)
    for channel in (*channels, LIDAR_CHANNEL):
        (root / "samples" / channel).mkdir(parents=True)
    for name in ("maps", "can_bus", version):
        (root / name).mkdir()

    tasks = [
        SceneTask(root, seed, scene, tuple(image_hw), frames_per_scene, (first, stop), cameras)
        for scene in scenes
        for first, stop in _portions(frames_per_scene)
    ]
    frames = {scene: [] for scene in scenes}
    with tqdm(total=len(scenes) * frames_per_scene, unit="frame", disable=not show_progress) as bar:
        for task, recorded in zip(tasks, _run(record, tasks, workers)):
            frames[task.scene] += recorded
            bar.update(len(recorded))

    tables = TableWriter(seed, image_hw, channels)
    for scene in scenes:
        rig = scene_rig(seed, scene, tuple(image_hw), cameras)
        tables.add_scene(scene, rig, frames[scene])
    tables.write(root / version)
    return root


def create_tables_only(
    out_dir,
    version: str = "v1.0-trainval",
    seed: int = 0,
    frames_per_scene: int = 40,
    scenes: Optional[Sequence[str]] = None,
    workers: Optional[int] = None,
    force: bool = False,
    show_progress: bool = True,
) -> Path:
    """Write the tables and the CAN bus poses of a data set without images and lidar files.

    For benchmarks of the tools at the size of the real data; see `tables_only`.

    Args, returns and raises: as `create_data_set`.
    """
    scenes = tuple(scene_names(version) if scenes is None else scenes)
    workers = (os.cpu_count() or 1) if workers is None else workers
    _check(version, seed, (900, 1600), frames_per_scene, scenes, workers)
    root = _empty_folder(Path(out_dir), force)
    for name in ("maps", "can_bus", version):
        (root / name).mkdir()
    tasks = [TablesTask(seed, scene, frames_per_scene) for scene in scenes]
    make = functools.partial(make_scene, can_bus_folder=root / "can_bus")
    scene_rows = _run(make, tasks, workers)
    bar = tqdm(scene_rows, total=len(tasks), unit="scene", disable=not show_progress)
    write_tables(root / version, seed, bar)
    return root


def _portions(frame_count):
    starts = range(0, frame_count, _FRAMES_PER_TASK)
    return [(start, min(start + _FRAMES_PER_TASK, frame_count)) for start in starts]


def _run(work, tasks, workers):
    """Results of all tasks, in order."""
    workers = min(workers, len(tasks))
    if workers == 1:
        yield from map(work, tasks)
        return
    # Spawn instead of fork: threads of the caller (torch, OpenMP) do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers, initializer=_start_worker) as pool:
        yield from pool.imap(work, tasks)


def _start_worker():
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C: the parent ends the pool


def _check(version, seed, image_hw, frames_per_scene, scenes, workers):
    if version not in VERSIONS:
        raise ValueError(f"version {version!r} is not one of {', '.join(VERSIONS)}")
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must be 0 or more")
    height, width = image_hw
    if not (32 <= height <= 4096 and 32 <= width <= 4096):
        raise ValueError(f"image size is {height}x{width}; both sides must be 32 to 4096 pixels")
    if not 1 <= frames_per_scene <= 80:
        raise ValueError(f"frames_per_scene is {frames_per_scene}; it must be 1 to 80")
    if workers < 1:
        raise ValueError(f"workers is {workers}; it must be 1 or more")
    if not scenes:
        raise ValueError("no scene is named")
    if len(set(scenes)) != len(scenes):
        raise ValueError(f"a scene is named twice: {' '.join(scenes)}")
    if version == "v1.0-mini":
        known = (*MINI_TRAIN, *MINI_VAL)
        strangers = [scene for scene in scenes if scene not in known]
        if strangers:
            raise ValueError(
                f"{', '.join(strangers)} not in the splits of v1.0-mini, so that the devkit would not "
                f"find them; choose from {' '.join(known)}"
            )


def _empty_folder(path, force):
    """Create `path`; with `force`, delete an older data set in it, but no other files."""
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} is a file; name a folder for the data set")
    if path.is_dir() and any(path.iterdir()):
        if not force:
            raise FileExistsError(
                f"{path} is not empty; name another folder, or pass --force to replace the data set in it"
            )
        for name in ("samples", "maps", "can_bus", *VERSIONS):
            shutil.rmtree(path / name, ignore_errors=True)
    path.mkdir(parents=True, exist_ok=True)
    return path

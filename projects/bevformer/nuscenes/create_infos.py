"""nuScenes tables and CAN bus -> info files; docs/data_format.md describes their content."""

from __future__ import annotations

import multiprocessing
import os
import os.path as osp
import pickle
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Callable, Iterable, Iterator, Sequence

from projects.bevformer.files.writing import atomic_write
from projects.bevformer.geometry.boxes import BOX_CONVENTION_NEW, BOX_CONVENTION_OLD
from projects.bevformer.interruption import kill_children, leave_to_parent
from projects.bevformer.nuscenes.can_bus import find_can_bus_folder, load_can_bus
from projects.bevformer.nuscenes.official_format import to_official
from projects.bevformer.nuscenes.scene_infos import scene_infos
from projects.bevformer.nuscenes.spec import (
    SPLITS,
    TABLE_FOLDERS,
    split_of_scene,
)
from projects.bevformer.nuscenes.tables import NuScenesTables

_PICKLE_PROTOCOL = 4  # the same on every Python


@dataclass
class InfoSummary:
    """What `create_nuscenes_infos` wrote and what it left out."""

    frames: dict[str, int] = field(default_factory=dict)  # info file -> number of frames
    scenes_without_can_bus: list[str] = field(default_factory=list)  # can_bus is zeros
    scenes_without_images: list[str] = field(default_factory=list)  # left out
    scenes_in_no_split: list[str] = field(default_factory=list)  # left out


def create_nuscenes_infos(
    root_path: str,
    out_dir: str,
    extra_tag: str,
    version: str,
    canbus: str,
    max_sweeps: int = 0,
    workers: int = 1,
    need_images: bool = True,
    official: bool = False,
    progress: Callable[[Iterable, int], Iterable] = lambda scenes, total: scenes,
) -> InfoSummary:
    """Write `{extra_tag}_infos_temporal_{train,val,test}.pkl`.

    Images and lidar files are not opened. Scenes without any camera image (a part of the download) are
    left out and counted; lidar files need not exist. The content of the files depends only on the data and
    on `max_sweeps`. Files are written atomically.

    Args:
        root_path: nuScenes root, which contains `samples` and the table folders.
        out_dir: folder for the info files; created if needed.
        extra_tag: first part of the file names.
        version: a key of `TABLE_FOLDERS`; "v1.0" is trainval and test.
        canbus: the folder `can_bus`, or the one it lies in.
        max_sweeps: lidar sweeps before the key frame to list in each info.
        workers: processes; 1 uses only this one.
        need_images: leave out scenes without images.
        official: write records as the original BEVFormer reads them, see `official_format`.
        progress: wraps the iterator of scenes, for a progress bar.

    Returns:
        `InfoSummary`.

    Raises:
        FileNotFoundError: no tables, no CAN bus folder, or no pose file for a scene that should have one.
        ValueError: unknown version, unreadable tables, or no scene with images.
    """
    if version not in TABLE_FOLDERS:
        raise ValueError(f"version {version!r} is not one of {', '.join(TABLE_FOLDERS)}")
    if workers < 1:
        raise ValueError(f"workers is {workers}; it must be 1 or more")
    for folder in TABLE_FOLDERS[version]:
        if not osp.isdir(osp.join(root_path, folder)):
            raise FileNotFoundError(
                f"no nuScenes tables at {osp.join(root_path, folder)}: unpack the metadata there, "
                "or check --root-path and --version"
            )
    can_bus_folder = find_can_bus_folder(canbus)
    os.makedirs(out_dir, exist_ok=True)

    summary = InfoSummary()
    for folder in TABLE_FOLDERS[version]:
        tables = NuScenesTables(root_path, folder, with_sweeps=max_sweeps > 0)
        samples_in_split = dict.fromkeys(SPLITS[folder], 0)  # also of scenes that are left out
        jobs = _jobs(tables, folder, root_path, need_images, samples_in_split, summary)
        infos = {split: [] for split in SPLITS[folder]}
        read = partial(_read_scene, tables, can_bus_folder, max_sweeps)
        results = progress(run_jobs(read, jobs, workers), len(jobs))
        for (of_scene, has_can_bus), (scene, split) in zip(results, jobs):
            infos[split] += [to_official(i, root_path) for i in of_scene] if official else of_scene
            if not has_can_bus:
                summary.scenes_without_can_bus.append(scene["name"])
        for split, of_split in infos.items():
            path = osp.join(out_dir, f"{extra_tag}_infos_temporal_{split}")
            metadata = {
                "version": folder,
                "split": split,
                "box_convention": BOX_CONVENTION_OLD if official else BOX_CONVENTION_NEW,
                "cameras": list(tables.cameras),
                "samples_in_split": samples_in_split[split],
            }
            with atomic_write(f"{path}.pkl", "wb") as file:
                content = {"infos": of_split, "metadata": metadata}
                pickle.dump(content, file, protocol=_PICKLE_PROTOCOL)
            summary.frames[f"{path}.pkl"] = len(of_split)
    return summary


def _jobs(tables, folder, root_path, need_images, samples_in_split, summary):
    """(scene, split) of the scenes to read, in time order; counts samples and what is left out.

    Raises:
        ValueError: no scene is left.
    """
    split_of = split_of_scene(folder)
    jobs = []
    for scene in sorted(tables.scenes, key=lambda scene: _times_us(tables, scene)[0]):
        split = split_of.get(scene["name"])
        if split is None:
            summary.scenes_in_no_split.append(scene["name"])
            continue
        samples_in_split[split] += len(tables.samples_of[scene["token"]])
        if need_images and not _has_images(tables, scene, root_path):
            summary.scenes_without_images.append(scene["name"])
        else:
            jobs.append((scene, split))
    if not jobs:
        raise ValueError(
            f"no scene of {folder} can be used: of {len(tables.scenes)} scenes, "
            f"{len(summary.scenes_without_images)} have no camera images under "
            f"{osp.join(root_path, 'samples')} and {len(summary.scenes_in_no_split)} belong to no split"
        )
    return jobs


def _read_scene(tables, can_bus_folder, max_sweeps, job):
    """Infos of a scene, and whether it has a CAN bus."""
    scene, split = job
    can_bus = load_can_bus(can_bus_folder, scene["name"], split, _times_us(tables, scene))
    return scene_infos(tables, scene, can_bus, max_sweeps), can_bus is not None


def run_jobs(work: Callable[[Any], Any], jobs: Sequence[Any], workers: int) -> Iterator[Any]:
    """Results of `work` for all jobs, in order, computed by forked processes.

    Raises:
        ValueError: a process was killed.
    """
    workers = min(workers, len(jobs))
    if workers <= 1:
        yield from map(work, jobs)
        return
    # Forked, so that the tables are shared and not sent. An executor, unlike a Pool, notices a worker
    # that was killed for its memory.
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, fork, _set_work, (work,)) as executor:
        try:
            yield from executor.map(_do, jobs)
        except BrokenProcessPool as error:
            raise ValueError(
                "a worker process was killed, most likely because memory ran out: fewer --workers need less"
            ) from error
        except BaseException:
            kill_children()  # otherwise the executor waits for all jobs
            raise


_work = None


def _set_work(work):
    global _work
    _work = work
    leave_to_parent()


def _do(job):
    return _work(job)


def _times_us(tables, scene):
    """Times of the scene's key frames."""
    return [sample["timestamp"] for sample in tables.samples_of[scene["token"]]]


def _has_images(tables, scene, root_path):
    """Whether the first key frame's images exist; the archives hold whole scenes."""
    data = tables.sample_data[scene["first_sample_token"]]
    return any(osp.isfile(osp.join(root_path, data[name].filename)) for name in tables.cameras)

"""A data set: its tables, images and CAN bus."""

import functools
import os
import os.path as osp
from collections import defaultdict
from dataclasses import dataclass
from typing import Callable, Dict, FrozenSet, Iterator, List, Optional, Sequence

from projects.bevformer.doctor.findings import Finding, broken, error_line, ok, warning
from projects.bevformer.doctor.images import Image, Progress, check_images


@dataclass(frozen=True)
class _Scene:
    """Key frames of one scene.

    Attributes:
        name: such as "scene-0103".
        split: of the info files, or None.
        times_us: time of each key frame.
        images: of all cameras.
    """

    name: str
    split: Optional[str]
    times_us: List[int]
    images: List[Image]


def check_data_set(
    data_root: str,
    canbus: Optional[str] = None,
    deep: bool = False,
    workers: int = 1,
    progress: Progress = lambda images, total: images,
    info_files: Sequence[str] = (),
) -> List[Finding]:
    """Check tables, images and CAN bus.

    Args:
        data_root: nuScenes root.
        canbus: the folder `can_bus` or its parent; None to look in data_root and next to it.
        deep: decode every image, not only a few.
        workers: processes that decode.
        progress: wraps the iterator of images; gets their number too.
        info_files: paths; a root without tables is right where all of them are of other data sets.
    """
    from projects.bevformer.nuscenes.spec import SPLITS

    if not osp.isdir(data_root):
        return [broken(data_root, "is not a folder", "unpack nuScenes there, or pass --data-root")]
    versions = [version for version in SPLITS if osp.isdir(osp.join(data_root, version))]
    own = _own_images(info_files, data_root) if not versions else []
    if own:
        text = "no nuScenes tables and none needed: the info files are of another data set"
        return [ok(data_root, text), *check_images(data_root, own, deep, workers, progress)]
    if not versions:
        remedy = "unpack the metadata there, or pass --data-root; make demo writes a synthetic one"
        return [broken(data_root, f"holds none of {', '.join(SPLITS)}", remedy)]
    has_file = _file_listing(data_root)
    findings = []
    for version in versions:
        folder = osp.join(data_root, version)
        try:
            scenes = _read_scenes(folder)
        except (ValueError, OSError) as error:
            findings.append(broken(folder, error_line(error), "until then nothing else is checked"))
            continue
        frames = sum(len(scene.times_us) for scene in scenes)
        findings.append(ok(folder, f"{len(scenes)} scenes, {frames} key frames, tables whole"))
        if all(scene.split is None for scene in scenes):
            text = f"none of its scenes, such as {scenes[0].name}, is in a split of the devkit"
            findings.append(broken(folder, text, "check which version the tables are of"))
            continue
        findings += _check_presence(version, scenes, osp.join(data_root, "samples"), has_file)
        findings += _check_can_bus(data_root, canbus, scenes)
        images = [image for scene in scenes if scene.split for image in scene.images]
        present = [image for image in images if has_file(image[0])]
        findings += check_images(data_root, present, deep, workers, progress)
    return findings


def _own_images(info_files: Sequence[str], data_root: str) -> List[Image]:
    """The images of info files that can be read, if none of them is of nuScenes."""
    from projects.bevformer.files.data_files import join_root
    from projects.bevformer.nuscenes.infos import load_infos
    from projects.bevformer.nuscenes.spec import SPLITS

    paths = set()
    for info_file in info_files:
        try:
            infos, metadata = load_infos(info_file)
        except (ValueError, OSError):
            continue  # a finding of its own
        if metadata["version"] in SPLITS:
            return []
        cameras = (camera for info in infos for camera in info["cams"].values())
        paths.update(join_root(data_root, camera["data_path"]) for camera in cameras)
    there = sorted(path for path in paths if osp.isfile(path))
    return [(osp.relpath(path, data_root), (None, None)) for path in there]


def _read_scenes(folder: str) -> List[_Scene]:
    """Read the scenes of a table folder; raises as NuScenesTables."""
    from projects.bevformer.nuscenes.spec import split_of_scene
    from projects.bevformer.nuscenes.tables import NuScenesTables

    root, version = osp.split(folder)
    tables = NuScenesTables(root, version, check_all=True)
    split_of = split_of_scene(version)
    scenes = []
    for scene in tables.scenes:
        own = tables.samples_of[scene["token"]]
        frames = [tables.sample_data[sample["token"]] for sample in own]
        data = [frame[name] for frame in frames for name in tables.cameras]
        images = [(shot.filename, shot.image_size[::-1]) for shot in data]
        times_us = [sample["timestamp"] for sample in own]
        scenes.append(_Scene(scene["name"], split_of.get(scene["name"]), times_us, images))
    return scenes


def _file_listing(root: str) -> Callable[[str], bool]:
    """Whether a file exists below root; lists whole folders, as 200 000 single requests are slow."""

    @functools.lru_cache(maxsize=None)
    def names(folder: str) -> FrozenSet[str]:
        path = osp.join(root, folder)
        return frozenset(os.listdir(path)) if osp.isdir(path) else frozenset()

    return lambda path: osp.basename(path) in names(osp.dirname(path))


def _check_presence(
    version: str, scenes: Sequence[_Scene], folder: str, has_file: Callable[[str], bool]
) -> Iterator[Finding]:
    """Which images exist, by split."""
    by_split: Dict[Optional[str], List[_Scene]] = defaultdict(list)
    for scene in scenes:
        by_split[scene.split].append(scene)
    for split, members in by_split.items():
        where, remedy = f"{version} {split or 'no split'}", "tools/create_data.py leaves them out"
        if split is None:
            names = ", ".join(scene.name for scene in members[:5])
            text = f"{len(members)} scenes ({names}) are in no split of the devkit"
            yield warning(where, text, remedy)
            continue
        missing = [[path for path, _ in scene.images if not has_file(path)] for scene in members]
        pairs = list(zip(members, missing))
        absent = [scene.name for scene, paths in pairs if len(paths) == len(scene.images)]
        partial = [pair for pair in pairs if 0 < len(pair[1]) < len(pair[0].images)]
        if len(absent) == len(members):
            text = f"none of the images of its {len(members)} scenes is under {folder}"
            yield broken(where, text, "unpack the image archives there")
            continue
        for scene, paths in partial:
            text = f"{scene.name} lacks {len(paths)} of {len(scene.images)} images, the first is {paths[0]}"
            yield broken(where, text, "unpack that archive again")
        if absent:
            text = (
                f"{len(absent)} of {len(members)} scenes have no images ({', '.join(absent[:5])})"
            )
            yield warning(where, text, f"{remedy}; evaluation needs all scenes of its split")
        if not absent and not partial:
            frames = sum(len(scene.times_us) for scene in members)
            images = sum(len(scene.images) for scene in members)
            text = f"{len(members)} scenes, {frames} key frames, all {images} images exist"
            yield ok(where, text)


def _check_can_bus(
    data_root: str, canbus: Optional[str], scenes: Sequence[_Scene]
) -> List[Finding]:
    from projects.bevformer.nuscenes import can_bus

    if canbus is None:
        beside = osp.dirname(osp.abspath(data_root))
        folders = (f for f in (data_root, beside) if osp.isdir(osp.join(f, "can_bus")))
        canbus = next(folders, data_root)
    try:
        folder = can_bus.find_can_bus_folder(canbus)
    except OSError as error:
        return [broken("CAN bus", error_line(error), "")]
    findings = []
    good, without, absent = 0, 0, 0
    for scene in scenes:
        try:
            found = can_bus.load_can_bus(folder, scene.name, scene.split, scene.times_us)
        except (ValueError, OSError) as error:
            findings.append(broken("CAN bus", error_line(error), ""))
            continue
        is_without = found is None and scene.name in can_bus.SCENES_WITHOUT_CAN_BUS
        good, without = good + (found is not None), without + is_without
        absent += found is None and not is_without
    if not findings:
        text = f"{good} scenes have theirs in {folder}"
        if without:
            text += f"; {without} were recorded without"
        if absent:
            text += f"; {absent} of the test split or of no split have no file and will get zeros"
        findings.append(ok("CAN bus", text))
    return findings

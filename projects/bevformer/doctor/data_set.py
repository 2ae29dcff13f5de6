"""The data set: tables, images, CAN bus and info files."""

import multiprocessing
import os
import os.path as osp
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from typing import List

from projects.bevformer.doctor.findings import broken, error_line, ok, warning
from projects.bevformer.io import join_root, jpeg_damage
from projects.bevformer.nuscenes.spec import CAMERAS

_MAX_NAMED = 10  # damaged images that get a line of their own


@dataclass
class _Scene:
    """Key frames of one scene.

    Attributes:
        name: such as "scene-0103".
        times_us: time of each key frame.
        images: (path below the data root, (height, width)) of all camera images.
    """

    name: str
    times_us: List[int]
    images: List[tuple]


def check_data_set(
    data_root, canbus=None, deep=False, workers=1, progress=lambda images, total: images
):
    """Check tables, images and CAN bus.

    Args:
        data_root: nuScenes root.
        canbus: the folder `can_bus` or the one it lies in; looked for in and beside data_root if None.
        deep: decode every image, not only a few.
        workers: processes that decode.
        progress: wraps the iterator of images; told their number too.

    Returns:
        list of Finding.
    """
    from projects.bevformer.nuscenes.infos import SPLITS_OF_VERSION

    if not osp.isdir(data_root):
        return [broken(data_root, "is not a folder", "unpack nuScenes there, or pass --data-root")]
    versions = [v for v in SPLITS_OF_VERSION if osp.isdir(osp.join(data_root, v))]
    if not versions:
        return [
            broken(
                data_root,
                f"holds none of {', '.join(SPLITS_OF_VERSION)}",
                "unpack the metadata there, or pass --data-root; make demo makes a synthetic data set",
            )
        ]
    findings = []
    for version in versions:
        folder = osp.join(data_root, version)
        try:
            tables = _read(folder)
        except (ValueError, OSError) as error:
            findings.append(broken(folder, error_line(error), "until then nothing else is checked"))
            continue
        findings.append(
            ok(
                folder,
                f"{len(tables['scene'])} scenes, {len(tables['sample'])} key frames, tables whole",
            )
        )
        splits = _scenes_of_splits(tables, version)
        if set(splits) == {"no split"}:
            findings.append(
                broken(
                    folder,
                    f"none of its scenes, such as {tables['scene'][0]['name']}, is in a split of the devkit",
                    "check which version the tables are of",
                )
            )
            continue
        present = []
        for split, scenes in splits.items():
            found, images = _check_presence(data_root, version, split, scenes)
            findings += found
            present += images
        findings += _check_can_bus(data_root, canbus, splits)
        findings += check_images(data_root, present, deep, workers, progress)
    return findings


def _read(folder):
    from projects.bevformer.nuscenes.table_checks import check_tables, read_tables

    tables = read_tables(folder)
    check_tables(tables, folder)
    return tables


def _scenes_of_splits(tables, version):
    """Split -> its scenes that the tables hold; "no split" for the rest."""
    from nuscenes.utils.splits import create_splits_scenes

    from projects.bevformer.nuscenes.create_infos import SPLITS

    devkit_splits = create_splits_scenes()
    split_of = {
        name: split for split, devkit in SPLITS[version].items() for name in devkit_splits[devkit]
    }
    channels = {row["token"]: row["channel"] for row in tables["sensor"]}
    cameras = {
        row["token"]
        for row in tables["calibrated_sensor"]
        if channels[row["sensor_token"]] in CAMERAS
    }
    images = defaultdict(list)
    for row in tables["sample_data"]:
        if row["is_key_frame"] and row["calibrated_sensor_token"] in cameras:
            size = (row.get("height"), row.get("width"))
            images[row["sample_token"]].append((row["filename"], size))
    samples = defaultdict(list)
    for sample in sorted(tables["sample"], key=lambda sample: sample["timestamp"]):
        samples[sample["scene_token"]].append(sample)

    splits = defaultdict(list)
    for scene in tables["scene"]:
        own = samples[scene["token"]]
        splits[split_of.get(scene["name"], "no split")].append(
            _Scene(
                scene["name"],
                [sample["timestamp"] for sample in own],
                [image for sample in own for image in images[sample["token"]]],
            )
        )
    return dict(splits)


def _check_presence(data_root, version, split, scenes):
    """Which images are there; findings, and the images."""
    where = f"{version} {split}"
    if split == "no split":
        names = ", ".join(scene.name for scene in scenes[:5])
        return [
            warning(where, f"{len(scenes)} scenes ({names}) are in no split of the devkit",
                    "tools/create_data.py leaves them out")
        ], []  # fmt: skip
    files = _FolderListing(data_root)
    absent, partial, present = [], [], []
    for scene in scenes:
        missing = [path for path, _ in scene.images if path not in files]
        if len(missing) == len(scene.images):
            absent.append(scene.name)
            continue
        if missing:
            partial.append((scene, missing))
        present += [image for image in scene.images if image[0] in files]
    frames = sum(len(scene.times_us) for scene in scenes)
    if len(absent) == len(scenes):
        return [
            broken(
                where,
                f"none of the images of its {len(scenes)} scenes is under {osp.join(data_root, 'samples')}",
                "unpack the image archives there",
            )
        ], []
    findings = []
    for scene, missing in partial:
        findings.append(
            broken(
                where,
                f"{scene.name} lacks {len(missing)} of {len(scene.images)} images, the first is {missing[0]}",
                "unpack that archive again",
            )
        )
    if absent:
        findings.append(
            warning(
                where,
                f"{len(absent)} of {len(scenes)} scenes have no images ({', '.join(absent[:5])})",
                "tools/create_data.py leaves them out; evaluation needs all scenes of its split",
            )
        )
    if not findings:
        findings.append(
            ok(
                where,
                f"{len(scenes)} scenes, {frames} key frames, all {len(present)} images are there",
            )
        )
    return findings, present


class _FolderListing:
    """Membership of files, a folder at a time: asking for 200 000 files one by one is slow."""

    def __init__(self, root):
        self._root = root
        self._names = {}

    def __contains__(self, path):
        folder, name = osp.split(path)
        if folder not in self._names:
            full = osp.join(self._root, folder)
            self._names[folder] = set(os.listdir(full)) if osp.isdir(full) else set()
        return name in self._names[folder]


def _check_can_bus(data_root, canbus, splits):
    from projects.bevformer.nuscenes.can_bus import (
        SCENES_WITHOUT_CAN_BUS,
        SceneCanBus,
        find_can_bus_folder,
    )

    if canbus is None:
        beside = osp.dirname(osp.abspath(data_root))
        canbus = next(
            (d for d in (data_root, beside) if osp.isdir(osp.join(d, "can_bus"))), data_root
        )
    try:
        folder = find_can_bus_folder(canbus)
    except OSError as error:
        return [broken("CAN bus", error_line(error), "")]
    findings = []
    good, blacklisted, untold = 0, 0, 0
    for split, scenes in splits.items():
        for scene in scenes:
            if scene.name in SCENES_WITHOUT_CAN_BUS:
                blacklisted += 1
                continue
            there = osp.isfile(osp.join(folder, f"{scene.name}_pose.json"))
            if split in ("test", "no split") and not there:
                untold += 1
                continue
            try:
                SceneCanBus(folder, scene.name).check_overlap(scene.times_us[0], scene.times_us[-1])
                good += 1
            except (ValueError, OSError) as error:
                findings.append(broken("CAN bus", error_line(error), ""))
    if not findings:
        text = f"{good} scenes have theirs in {folder}"
        if blacklisted:
            text += f"; {blacklisted} were recorded without"
        if untold:
            text += f"; {untold} of the test split or of none have no file, theirs will be zeros"
        findings.append(ok("CAN bus", text))
    return findings


def check_images(data_root, images, deep=False, workers=1, progress=lambda images, total: images):
    """Decode images and compare their size with the tables'.

    Args:
        data_root: nuScenes root.
        images: list of (path below it, (height, width) or (None, None)).
        deep: all of them, else a dozen from the first and the last key frames.
        workers: processes.
        progress: as in `check_data_set`.

    Returns:
        list of Finding.
    """
    if not images:
        return []
    chosen = images if deep or len(images) <= 12 else images[:6] + images[-6:]
    jobs = [(osp.join(data_root, path), size) for path, size in chosen]
    if workers > 1:
        with multiprocessing.Pool(workers) as pool:
            done = pool.imap(_image_damage, jobs, chunksize=16)
            damages = list(progress(done, len(jobs)))
    else:
        damages = list(progress(map(_image_damage, jobs), len(jobs)))
    damaged = [(path, what) for (path, _), what in zip(jobs, damages) if what]
    if not damaged:
        more = "" if len(chosen) == len(images) else "; --deep decodes all"
        return [ok("images", f"{len(chosen)} of {len(images)} decoded, all whole{more}")]
    findings = [
        broken(path, what, "unpack or download it again") for path, what in damaged[:_MAX_NAMED]
    ]
    if len(damaged) > _MAX_NAMED:
        findings.append(
            broken(
                "images",
                f"{len(damaged) - _MAX_NAMED} more are damaged",
                "unpack the archives again",
            )
        )
    return findings


def _image_damage(job):
    """What is wrong with an image file; empty where nothing is. Takes one argument, for a pool."""
    import cv2
    import numpy as np

    path, size = job
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        return error_line(error)
    damage = jpeg_damage(content)
    if damage:
        return damage
    image, complaint = _with_stderr(
        lambda: cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    )
    if image is None:
        return "cannot be decoded"
    if complaint:
        return f"is damaged: {complaint}"
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        return f"is {image.shape} {image.dtype}, not (height, width, 3) uint8"
    if None not in size and image.shape[:2] != tuple(size):
        return f"is {image.shape[1]} x {image.shape[0]}, the tables say {size[1]} x {size[0]}"
    return ""


def _with_stderr(function):
    """Result of a call, and what C code under it wrote to stderr: libjpeg's only way to warn."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            result = function()
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        file.seek(0)
        return result, " ".join(file.read().decode(errors="replace").split())


def check_info_files(info_files, data_root):
    """Check info files against each other's format, the tables and the images.

    Args:
        info_files: label, such as "data.train" or "info file" and a name -> path.
        data_root: nuScenes root.

    Returns:
        list of Finding.
    """
    findings = []
    for label, path in info_files.items():
        try:
            findings += _check_info_file(label, path, data_root)
        except (ValueError, OSError) as error:
            findings.append(broken(label, error_line(error), ""))
    return findings


def _check_info_file(label, path, data_root):
    from projects.bevformer.io import load_pickle_restricted
    from projects.bevformer.nuscenes.evaluation.ground_truth import has_ground_truth
    from projects.bevformer.nuscenes.infos import load_infos

    infos, metadata = load_infos(path)
    stamp = load_pickle_restricted(path, "an info file", "")["metadata"].get("box_convention")
    version, split = metadata["version"], metadata.get("split")
    if not infos:
        return [
            broken(
                label,
                f"{path} holds no frames",
                "no scene of that split was in the tables; see above",
            )
        ]
    findings = []
    if stamp is None:
        findings.append(
            warning(
                label,
                f"{path} does not say its box convention; its cars tell, and it is converted if needed",
                "write it again with tools/create_data.py, or stamp it (docs/data_format.md)",
            )
        )
    elif stamp != metadata["box_convention"]:
        findings.append(ok(label, f"boxes are {stamp} and are converted when they are read"))
    used_as = label.rpartition(".")[2]
    if used_as in ("train", "val") and split not in (None, used_as):
        findings.append(
            warning(label, f"{path} is of the split {split}", "check data.*.ann_file of the config")
        )
    if "can_bus_motion_after" not in infos[0]:
        findings.append(
            warning(
                label,
                f"{path} was not written by this project: its can_bus mixes two messages",
                'tools/create_data.py writes both; the official recipes want can_bus_message="official"',
            )
        )
    if "gt_boxes" in infos[0] and not (
        has_ground_truth(infos) and metadata.get("samples_in_split") is not None
    ):
        findings.append(
            warning(
                label,
                f"{path} does not hold all that is scored against: evaluation reads the tables, slowly",
                "write it again with tools/create_data.py",
            )
        )
    findings += _check_tokens(label, path, infos, version, data_root)
    findings += _check_stale_paths(label, path, infos, data_root)
    if not any(finding.level == "broken" for finding in findings):
        findings.insert(0, ok(label, f"{path}: {len(infos)} frames of {version} {split or ''}"))
    return findings


def _check_tokens(label, path, infos, version, data_root):
    """Whether the tables know the samples; evaluation needs them."""
    from projects.bevformer.nuscenes.table_checks import read_tables

    folder = osp.join(data_root, version)
    if not osp.isdir(folder):
        return [
            broken(
                label,
                f"{path} is of {version}, but there is no {folder}",
                "unpack those tables, or check data_root and ann_file",
            )
        ]
    try:
        known = {sample["token"] for sample in read_tables(folder)["sample"]}
    except (ValueError, OSError, LookupError, TypeError):
        return []  # already a finding
    unknown = sum(info["token"] not in known for info in infos)
    if unknown:
        return [
            broken(
                label,
                f"{path}: {unknown} of {len(infos)} samples are not in {folder}",
                "write it again with tools/create_data.py",
            )
        ]
    return []


def _check_stale_paths(label, path, infos, data_root):
    """Whether the images are where the info file, and then data_root, says."""
    from projects.bevformer.nuscenes.infos import path_below_root

    named = [camera["data_path"] for info in infos for camera in info["cams"].values()]
    missing = [name for name in named if not osp.isfile(join_root(data_root, name))]
    if not missing:
        return []
    below = [path_below_root(name) for name in named]
    moved = [name is None or not osp.isfile(osp.join(data_root, name)) for name in below]
    if len(missing) == len(named) and not any(moved):
        return [
            warning(
                label,
                f"{path} names files of another machine ({missing[0]}); they are found below {data_root}",
                "tools/create_data.py writes relative paths",
            )
        ]
    return [
        broken(
            label,
            f"{path}: {len(missing)} of {len(named)} images are not there, the first is "
            f"{join_root(data_root, missing[0])}",
            "check data_root, or unpack the images again",
        )
    ]

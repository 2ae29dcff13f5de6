"""The image files of a data set: whether they decode, and have the size that the tables say."""

import multiprocessing
import os
import os.path as osp
import tempfile
from typing import Callable, Iterable, List, Optional, Sequence, Tuple

from projects.bevformer.doctor.findings import Finding, broken, error_line, ok
from projects.bevformer.interruption import leave_to_parent

# Path below the data root, and height and width if the tables have them.
Image = Tuple[str, Tuple[Optional[int], Optional[int]]]
# Wraps an iterable of that many images, to show progress.
Progress = Callable[[Iterable, int], Iterable]

_FEW = 12
_MAX_NAMED = 10  # damaged images that get a line of their own


def check_images(
    data_root: str,
    images: Sequence[Image],
    deep: bool = False,
    workers: int = 1,
    progress: Progress = lambda images, total: images,
) -> List[Finding]:
    """Decode images and compare their size with the tables.

    Args:
        data_root: nuScenes root.
        images: to check.
        deep: check all of them, not only a dozen of the first and the last key frames.
        workers: processes.
        progress: wraps the iterator of images.
    """
    if not images:
        return []
    few = deep or len(images) <= _FEW
    chosen = images if few else [*images[: _FEW // 2], *images[-_FEW // 2 :]]
    jobs = [(osp.join(data_root, path), size) for path, size in chosen]
    with multiprocessing.Pool(workers, _keep_stderr) as pool:
        done = pool.imap(_image_damage, jobs, chunksize=16)
        damaged = [
            (path, damage) for (path, _), damage in zip(jobs, progress(done, len(jobs))) if damage
        ]
    if not damaged:
        more = "" if len(chosen) == len(images) else "; --deep decodes all"
        return [ok("images", f"{len(chosen)} of {len(images)} decoded, all whole{more}")]
    findings = [
        broken(path, damage, "unpack or download it again") for path, damage in damaged[:_MAX_NAMED]
    ]
    if len(damaged) > _MAX_NAMED:
        text = f"{len(damaged) - _MAX_NAMED} more are damaged"
        findings.append(broken("images", text, "unpack the archives again"))
    return findings


def _keep_stderr() -> None:
    """Make stderr a temporary file, in a process that only decodes: libjpeg warns nowhere else."""
    leave_to_parent()
    file, path = tempfile.mkstemp()
    os.unlink(path)
    os.dup2(file, 2)


def _take_warnings() -> str:
    """What was written to stderr since the last call, on one line."""
    text = os.pread(2, os.lseek(2, 0, os.SEEK_CUR), 0).decode(errors="replace")
    os.ftruncate(2, 0)
    os.lseek(2, 0, os.SEEK_SET)
    return " ".join(text.split())


def _image_damage(job: Image) -> str:
    """What is wrong with an image file, or ""."""
    from projects.bevformer.files.data_files import decode_image

    path, size = job
    try:
        with open(path, "rb") as file:
            image = decode_image(file.read())
    except (ValueError, OSError) as error:
        _take_warnings()
        return error_line(error)
    warnings = _take_warnings()
    if warnings:
        return f"is damaged: {warnings}"
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != "uint8":
        return f"is {image.shape} {image.dtype}, not (height, width, 3) uint8"
    if None not in size and image.shape[:2] != tuple(size):
        return f"is {image.shape[1]} x {image.shape[0]}, the tables say {size[1]} x {size[0]}"
    return ""

"""Which checkpoint a run resumes, and reading it where not every process has the file."""

from __future__ import annotations

import logging
import os
import re
import socket
import time
from pathlib import Path
from typing import Any, Callable

import torch.distributed as dist
from mmcv import Config

from projects.bevformer.engine.checkpoint import load_checkpoint
from projects.bevformer.engine.distributed import (
    all_gather,
    broadcast,
    get_rank,
    on_first_rank,
)
from projects.bevformer.files.writing import followed


def find_latest_checkpoint(
    work_dir: str | Path,
    logger: logging.Logger,
    counts_epochs: bool = True,
    links_latest: bool = True,
    interrupted: str | Path | None = None,
    template: str | None = None,
) -> Path | None:
    """Newest checkpoint that loads, of a training run that counts epochs (or iterations).

    What `latest.pth` names comes first, then `epoch_N.pth` (or `iter_N.pth`) by falling number;
    numbers above that of `latest.pth` are of an earlier run and come after the others. The checkpoint
    of an interrupted run replaces them where it is ahead of them in the same run, or of a later run.

    Args:
        work_dir: folder of the checkpoints.
        logger: receives a warning about each broken file, which is skipped, and a line with the
            files that are passed over.
        counts_epochs: the kind of run.
        links_latest: whether the runs keep `latest.pth` up to date.
        interrupted: the checkpoint of an interrupted run; `interrupted.pth` in `work_dir` by default.
        template: of the names, where they are others than `epoch_{}.pth` (or `iter_{}.pth`).

    Returns:
        its path, or None.
    """
    kind, other = ("epoch", "iter") if counts_epochs else ("iter", "epoch")

    def meta_of(path: Path) -> dict | None:
        try:
            return load_checkpoint(path)["meta"]
        except (ValueError, OSError) as error:
            logger.warning("--auto-resume skips %s: %s", path.name, error)
            return None

    numbered = checkpoint_numbers(work_dir, template or f"{kind}_{{}}.pth")
    others = checkpoint_numbers(work_dir, f"{other}_{{}}.pth")
    latest = Path(work_dir, "latest.pth")
    named = None
    if links_latest:
        named = Path(work_dir, os.readlink(latest)) if latest.is_symlink() else followed(latest)
    newest = numbered.get(named, max(numbered.values(), default=0))
    order = sorted(numbered, key=lambda path: (numbered[path] <= newest, numbered[path]))[::-1]
    order += sorted(others, key=others.get, reverse=True)  # an epoch's middle is called iter_N too
    if named is not None and named.exists():
        order = [named, *(path for path in order if path != named)]
    elif latest.is_file() and not latest.is_symlink():
        order.append(latest)
    found, found_meta, passed = None, {}, []
    for path in order:
        if found is not None:
            is_of_another = path in others and found not in others
            passed += [path] * (is_of_another or numbered.get(path, 0) > newest)
            continue
        meta = meta_of(path)
        if meta is None:
            continue
        if meta.get("counted_in", path.name.partition("_")[0]) == other:
            passed.append(path)
        else:
            found, found_meta = path, meta
    interrupted = Path(interrupted or Path(work_dir, "interrupted.pth"))
    meta = meta_of(interrupted) if os.path.lexists(interrupted) else None
    if meta is not None:
        is_of_kind, of_one_run = meta.get("counted_in") != other, _of_one_run(meta, found_meta)
        is_next = is_of_kind and (found is None or _is_ahead(meta, found_meta))
        left_out = found if is_next else interrupted
        if left_out is not None and not (is_of_kind and of_one_run):
            passed.append(left_out)
        found = interrupted if is_next else found
    if passed:
        logger.info(
            "--auto-resume passes over %s: of another run than %s",
            ", ".join(sorted(path.name for path in passed)),
            "this one" if found is None else found.name,
        )
    return found


def _of_one_run(meta: dict, other: dict) -> bool:
    return meta.get("run") is not None and meta.get("run") == other.get("run")


def _is_ahead(meta: dict, other: dict) -> bool:
    """Whether a checkpoint is ahead of another of its run, or of a later run."""
    if _of_one_run(meta, other):
        return meta.get("iter", 0) > other.get("iter", 0)
    return _saved_at(meta) > _saved_at(other)


def _saved_at(meta: dict) -> float:
    try:
        return time.mktime(time.strptime(meta.get("time") or ""))
    except (ValueError, OverflowError):
        return 0.0


def checkpoint_numbers(folder: str | Path, template: str) -> dict[Path, int]:
    """The files of a folder whose names are made of a template such as `epoch_{}.pth`: path -> number."""
    pattern = re.sub(r"\\\{.*?\\\}", r"(\\d+)", re.escape(template), count=1)
    matches = {path: re.fullmatch(pattern, path.name) for path in Path(folder).glob("*")}
    return {path: int(match[1]) for path, match in matches.items() if match and match.groups()}


def checkpoint_to_resume(
    cfg: Config, auto_resume: bool, logger: logging.Logger, counts_epochs: bool
) -> str | None:
    """Checkpoint to resume, the same on all ranks, or None.

    Args:
        cfg: with `work_dir` set; its `resume_from` comes before `auto_resume`.
        auto_resume: look for the newest checkpoint of the run.
        logger: receives which files are passed over, and why.
        counts_epochs: whether the run counts epochs or iterations.

    Raises:
        ValueError: only another process than the first has the newest checkpoint.
    """
    if cfg.get("resume_from"):
        if auto_resume:
            logger.info("--auto-resume changes nothing: resume_from names %s", cfg.resume_from)
        return cfg.resume_from
    if not auto_resume:
        return None
    options = cfg.get("checkpoint_config") or {}
    folder = Path(cfg.work_dir)
    if options.get("out_dir"):  # as mmcv's CheckpointHook does
        folder = Path(options["out_dir"], folder.name)
    links_latest = options.get("create_symlink", True)
    template = options.get("filename_tmpl")
    interrupted = Path(cfg.work_dir, "interrupted.pth")
    found = broadcast(
        find_latest_checkpoint(folder, logger, counts_epochs, links_latest, interrupted, template)
        if get_rank() == 0
        else None
    )
    template = template or f"{'epoch' if counts_epochs else 'iter'}_{{}}.pth"
    _refuse_newer_elsewhere(folder, template, found)
    if found is None:
        logger.info("--auto-resume: no checkpoint in %s, training starts anew", folder)
        return None
    return str(found)


def _refuse_newer_elsewhere(folder: Path, template: str, found: Path | None) -> None:
    """Raise ValueError if another process sees a newer checkpoint than the first resumes."""
    numbers = checkpoint_numbers(folder, template)
    here = max(numbers, key=numbers.get, default=None)
    newest = all_gather((numbers.get(here, 0), here, socket.gethostname()))
    _, _, first_host = newest[0]
    for rank, (number, path, host) in enumerate(newest):
        if number > newest[0][0]:
            raise ValueError(
                f"--auto-resume: rank {rank} on {host} has {path}, and rank 0 on {first_host} has "
                f"{found.name if found else 'no checkpoint'} in {folder}: work dirs that are not "
                "shared are read by rank 0 only; copy the file there, or start the nodes in the "
                "order of the run before"
            )


def read_on_all_ranks(read: Callable[[str], Any], path: str | Path, logger: logging.Logger) -> Any:
    """`read(path)` on every rank; ranks without the file of rank 0 get its content from there.

    Args:
        read: of a file's path.
        path: its file.
        logger: receives a line with the machines that get the content.

    Raises:
        FileNotFoundError: no process has the file.
        ValueError: rank 0 does not have it and others do; or what `read` raises, on all ranks.
    """
    places = all_gather((_identity(path), socket.gethostname()))
    (first, first_host), others = places[0], places[1:]
    if first is None and any(identity for identity, _ in others):
        hosts = sorted({host for identity, host in others if identity})
        raise ValueError(
            f"{path} is on {', '.join(hosts)} and not on {first_host}, where rank 0 runs: copy it "
            "there, or start the nodes in another order"
        )
    lacking = sorted({host for identity, host in others if identity != first})
    if not lacking:
        return read(str(path))
    logger.info("%s is not (the same) on %s: sent from %s", path, ", ".join(lacking), first_host)
    box: list[Any] = [None]
    on_first_rank(lambda: box.__setitem__(0, read(str(path))))
    dist.broadcast_object_list(box, src=0)  # gathering would send it from every rank
    return box[0]


def _identity(path: str | Path) -> tuple[int, int] | None:
    """Size and time of a file: the same on all nodes that share it; None where there is none."""
    try:
        status = os.stat(followed(path))
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns

"""Which checkpoint a run resumes, and reading it where not every process has the file."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path
from typing import Any, Callable

import torch.distributed as dist
from mmcv import Config

from projects.bevformer.engine.checkpoint import checkpoint_numbers, find_latest_checkpoint
from projects.bevformer.engine.distributed import all_gather, broadcast, get_rank


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
    found = broadcast(
        find_latest_checkpoint(folder, logger, counts_epochs, links_latest)
        if get_rank() == 0
        else None
    )
    _refuse_newer_elsewhere(folder, "epoch" if counts_epochs else "iter", found)
    if found is None:
        logger.info("--auto-resume: no checkpoint in %s, training starts anew", folder)
        return None
    return str(found)


def _refuse_newer_elsewhere(folder: Path, kind: str, found: Path | None) -> None:
    """Raise ValueError if another process sees a newer checkpoint than the first resumes."""
    numbers = checkpoint_numbers(folder, kind)
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
    content, error = None, None
    if get_rank() == 0:
        try:
            content = read(str(path))
        except (ValueError, OSError) as caught:
            error = caught
    box = [(content, error)]
    dist.broadcast_object_list(box, src=0)
    content, error = box[0]
    if error is not None:
        raise error
    return content


def _identity(path: str | Path) -> tuple[int, int] | None:
    """Size and time of a file: the same on all nodes that share it; None where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns

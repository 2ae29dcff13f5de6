"""The logger and progress bars of a run."""

import logging
import sys

from mmcv.utils import get_logger
from tqdm import tqdm

from projects.bevformer.engine.distributed import get_rank


def get_run_logger(log_file=None, level="INFO"):
    """The root logger of the OpenMMLab 3D stack; ranks above 0 only report errors.

    Args:
        log_file: also write there.
        level: name of the least level shown.
    """
    logger = get_logger("mmdet3d", str(log_file) if log_file else None, level)
    logger.propagate = False  # torch 1.10's DDP gives the root logger a second handler
    # What ops has to say belongs into the same log; it knows nothing of OpenMMLab's loggers.
    ops_logger = logging.getLogger("projects.bevformer.ops")
    ops_logger.handlers, ops_logger.propagate = logger.handlers, False
    ops_logger.setLevel(logger.level)
    return logger


def progress_bar(items, description, unit):
    """Iterate with a progress bar on rank 0; in a log file instead of a terminal, a line now and then."""
    return tqdm(
        items,
        desc=description,
        unit=unit,
        disable=get_rank() != 0,
        mininterval=0.1 if sys.stderr.isatty() else 10,
    )

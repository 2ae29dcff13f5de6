"""The logger, log files and progress bars of a run."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from pathlib import Path
from typing import Callable, Iterable

from mmcv.runner import HOOKS, BaseRunner, LoggerHook
from mmcv.runner import TensorboardLoggerHook as MmcvTensorboardLoggerHook
from mmcv.runner import TextLoggerHook as MmcvTextLoggerHook
from mmcv.utils import get_logger
from tqdm import tqdm

from projects.bevformer.engine.distributed import get_rank
from projects.bevformer.files.writing import write_error
from projects.bevformer.messages import printable

_FILE_ONLY = {"file_only": True}
_MMCV_LISTS = "Hooks will be executed"  # a list of forty lines
_OTHERS = ("projects.bevformer.ops", "projects.bevformer.files")  # import no logger of OpenMMLab


class _GoesOn:
    """A writer of logs that fails: one warning, and the run goes on without it."""

    has_failed = False

    def _warn(self, logger: logging.Logger, error: OSError, path: str, text: str) -> None:
        if not self.has_failed:
            self.has_failed = True
            explained = write_error(error, path, len(text))
            logger.warning(f"{explained}; the run goes on, without this file")


class _LogFile(_GoesOn, logging.FileHandler):
    """A log file; its warning goes where the messages still arrive."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        else:
            logger = logging.getLogger(record.name)
            self._warn(logger, error, self.baseFilename, record.getMessage())

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


@HOOKS.register_module(force=True)
class TextLoggerHook(_GoesOn, MmcvTextLoggerHook):
    """mmcv's, which ends a run when its `.log.json` cannot be written; here that is a warning."""

    def _dump_log(self, log_dict: dict, runner: BaseRunner) -> None:
        try:
            super()._dump_log(log_dict, runner)
        except OSError as error:
            self._warn(runner.logger, error, self.json_log_path, str(log_dict))


@HOOKS.register_module(force=True)
class TensorboardLoggerHook(_GoesOn, MmcvTensorboardLoggerHook):
    """mmcv's, which ends a run when its folder cannot be written; here that is a warning."""

    def _try(self, stage: Callable[[BaseRunner], None], runner: BaseRunner) -> None:
        if self.has_failed:
            return
        try:
            stage(runner)
        except OSError as error:
            folder = self.log_dir or str(Path(runner.work_dir, "tf_logs"))
            self._warn(runner.logger, error, folder, str(runner.log_buffer.output))

    def before_run(self, runner: BaseRunner) -> None:
        self._shown, threading.excepthook = threading.excepthook, self._show_error
        self._try(super().before_run, runner)

    def log(self, runner: BaseRunner) -> None:
        self._try(super().log, runner)

    def after_run(self, runner: BaseRunner) -> None:
        self._try(super().after_run, runner)
        threading.excepthook = self._shown

    def _show_error(self, failed: threading.ExceptHookArgs) -> None:
        """Show no traceback of tensorboard's thread, whose error the next call of `log` meets."""
        written_by = type(failed.thread).__module__
        if not (written_by.startswith("tensorboard") and issubclass(failed.exc_type, OSError)):
            self._shown(failed)


def get_run_logger(log_file: str | Path | None = None, level: str = "INFO") -> logging.Logger:
    """The root logger of the OpenMMLab 3D stack; ranks above 0 only report errors.

    Args:
        log_file: also write there; the file of an earlier run in this process is closed.
        level: name of the least level shown.
    """
    logger = get_logger("mmdet3d", None, level)
    for handler in list(logger.handlers):
        if isinstance(handler, logging.FileHandler):
            logger.removeHandler(handler)
            handler.close()
    console = next(h for h in logger.handlers if type(h) is logging.StreamHandler)
    console.addFilter(_is_for_console)
    console.setLevel(level)
    console.setFormatter(_Printable(console.formatter._fmt))
    if log_file is not None and get_rank() == 0:
        try:
            file_handler = _LogFile(str(log_file), "w")
        except OSError as error:
            raise write_error(error, log_file) from error
        file_handler.setFormatter(console.formatter)
        file_handler.setLevel(level)
        logger.addHandler(file_handler)
    logger.setLevel(level if get_rank() == 0 else "ERROR")
    logger.propagate = False  # torch 1.10's DDP gives the root logger a second handler
    for name in _OTHERS:  # their messages belong in the same log
        other = logging.getLogger(name)
        other.handlers, other.propagate = logger.handlers, False
        other.setLevel(logger.level)
    return logger


class _Printable(logging.Formatter):
    """Escapes control characters, which names in files may have; line ends stay."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), keep="\n\t")


def write_logs(runner: BaseRunner) -> None:
    """Let the loggers write the losses of this iteration: their hooks come last."""
    for hook in runner.hooks:
        if isinstance(hook, LoggerHook):
            hook.after_train_iter(runner)


def log_to_file(logger: logging.Logger, message: str, *args: object) -> None:
    """Log what is too long for the console, to the log file only."""
    logger.info(message, *args, extra=_FILE_ONLY)


def _is_for_console(record: logging.LogRecord) -> bool:
    return not getattr(record, "file_only", False) and not str(record.msg).startswith(_MMCV_LISTS)


def progress_bar(items: Iterable, description: str, unit: str) -> tqdm:
    """Iterate with a progress bar on rank 0; without a terminal, a line every ten seconds."""
    return tqdm(
        items,
        desc=description,
        unit=unit,
        disable=get_rank() != 0,
        mininterval=0.1 if sys.stderr.isatty() else 10,
    )

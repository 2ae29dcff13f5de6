"""Writing files: atomically, on any file system, and with errors that say what to do.

Imports the standard library only.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import os.path as osp
import re
import shutil
import socket
import tempfile
import time
from pathlib import Path
from typing import IO, Any, Iterable, Iterator

_logger = logging.getLogger(__name__)

# What file systems answer that lack a call: FUSE, CIFS, exFAT, some network file systems.
_LACKING = {
    *(errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EBADF),
    *(errno.EPERM, errno.EACCES, errno.ENOTTY),
}
_FULL = {errno.ENOSPC, errno.EDQUOT}
_REMEDIES = {
    errno.EROFS: "write to another folder",
    errno.EACCES: "write to another folder, or change the permissions of this one",
    errno.EPERM: "write to another folder, or change the permissions of this one",
    errno.EISDIR: "a folder has this name, rename it",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOENT: "make the folder first",
    errno.EFBIG: "the file system or `ulimit -f` allows no file of this size",
}
# `.NAME@HOST.PID.tmp`; earlier versions had no host.
_TEMPORARY = re.compile(r"\..+?(?:@(?P<host>[^@]+))?\.(?P<pid>\d+)\.tmp", re.DOTALL)
_DAY_S = 24 * 3600
_cleaned: set[str] = set()  # folders in which this process has looked for left-over files
_said: set[str] = set()


def _host() -> str:
    """The machine, and its process numbers: containers have their own."""
    try:
        space = re.sub(r"\D", "", os.readlink("/proc/self/ns/pid"))
    except OSError:
        space = ""
    return re.sub(r"[^\w-]", "-", f"{socket.gethostname()}-{space}")


def temporary_name(path: str | Path) -> str:
    """Name of the temporary file that takes the place of `path` once it is complete."""
    folder, name = osp.split(str(path))
    return osp.join(folder, f".{name[:100]}@{_host()}.{os.getpid()}.tmp")


def _is_left_over(entry: os.DirEntry[str]) -> bool:
    """Whether the process that wrote a temporary file is gone.

    Processes of other machines cannot be asked; their files count a day after the last change.
    """
    found = _TEMPORARY.fullmatch(entry.name)
    if found is None or entry.is_dir(follow_symlinks=False):
        return False
    if found["host"] not in (None, _host()):
        return time.time() - entry.stat(follow_symlinks=False).st_mtime > _DAY_S
    try:
        os.kill(int(found["pid"]), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass
    return False


def remove_left_over(folder: str | Path) -> None:
    """Remove the temporary files that killed processes left in a folder; a folder is searched once."""
    place = osp.abspath(str(folder) or ".")
    if place in _cleaned:
        return
    _cleaned.add(place)
    sizes = []
    with contextlib.suppress(OSError), os.scandir(place) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if _is_left_over(entry):
                    size = entry.stat(follow_symlinks=False).st_size
                    os.remove(entry.path)
                    sizes.append(size)
    if sizes:
        _logger.info(
            "%s: removed %d temporary file(s) of killed runs, %s",
            folder,
            len(sizes),
            mib(sum(sizes)),
        )


def mib(size_bytes: float) -> str:
    """A size for messages, such as `12.3 MiB` or `512 bytes`."""
    return f"{size_bytes / 2**20:.1f} MiB" if size_bytes >= 2**16 else f"{size_bytes:.0f} bytes"


def free_bytes(folder: str | Path) -> int | None:
    """Free space of the disk of a folder; None where the file system does not say."""
    try:
        return shutil.disk_usage(str(folder) or ".").free
    except OSError:
        return None


def write_error(error: OSError, path: str | Path, size_bytes: int | None = None) -> OSError:
    """The error of the same kind whose message names the file, the reason and the remedy.

    Args:
        error: raised while `path` was written.
        path: the file.
        size_bytes: size that the file would have had, where it is known.
    """
    folder = osp.dirname(osp.abspath(str(path)))
    if error.errno in _FULL:
        free = free_bytes(folder)
        needs = "" if not size_bytes else f"the file needs {mib(size_bytes)} or more, "
        left = "unknown" if free is None else mib(free)
        text = f"{needs}free in {folder}: {left}; make room there, or write to another disk"
    else:
        text = _REMEDIES.get(error.errno or 0, "see whether the file system is in order")
    explained = type(error)(f"{path} cannot be written ({error.strerror or error}): {text}")
    explained.errno = error.errno
    return explained


def _sync(handle: int, what: str) -> None:
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _LACKING:
            raise
        _say_once(
            "%s: this file system does not sync (%s): after a power failure the newest files may be gone",
            what,
            error.strerror,
        )


def _say_once(text: str, *values: object) -> None:
    if text not in _said:
        _said.add(text)
        _logger.info(text, *values)


def _sync_folder(folder: str) -> None:
    """Let a rename survive a power failure."""
    try:
        handle = os.open(folder or ".", os.O_RDONLY)
    except OSError:  # a folder may be writable and not readable
        return
    try:
        _sync(handle, folder or ".")
    finally:
        os.close(handle)


def _put_in_place(temporary: str, path: str) -> None:
    """Rename, also on file systems that do not rename to an existing name."""
    try:
        os.replace(temporary, path)
        return
    except OSError as error:
        if error.errno not in {*_LACKING, errno.EEXIST} or osp.isdir(path):
            raise
    aside = f"{path}.old"
    moved = osp.lexists(path)
    if moved:
        os.rename(path, aside)
    try:
        os.rename(temporary, path)
    except OSError:
        if moved:
            os.rename(aside, path)
        raise
    if moved:
        os.remove(aside)


@contextlib.contextmanager
def atomic_write(
    path: str | Path, mode: str = "w", size_bytes: int | None = None
) -> Iterator[IO[Any]]:
    """Write to a temporary file in the same folder and rename it to `path` on success.

    After an error `path` is as it was before, and no temporary file is left. Those of killed processes
    are removed from the folder.

    Args:
        path: the file; its folder exists.
        mode: of `open`.
        size_bytes: expected size, for the message of a full disk; what was written when it is None.

    Raises:
        OSError: with `path`, the reason and the remedy.
    """
    path = str(path)
    folder = osp.dirname(path)
    remove_left_over(folder)
    temporary = temporary_name(path)
    try:
        with open(temporary, mode) as file:
            yield file
            file.flush()
            _sync(file.fileno(), folder or ".")
        _put_in_place(temporary, path)
    except BaseException as error:
        if size_bytes is None:
            with contextlib.suppress(OSError):
                size_bytes = osp.getsize(temporary)
        with contextlib.suppress(OSError):
            os.remove(temporary)
        if isinstance(error, OSError) and error.errno and error.filename in (None, temporary, path):
            raise write_error(error, path, size_bytes) from error
        raise
    _sync_folder(folder)


def link_to(path: str | Path, link: str | Path) -> None:
    """Let `link` be a symbolic link to a file of the same folder.

    Where there are none it becomes a text file with the name, which `followed` resolves.

    Raises:
        OSError: see `atomic_write`.
    """
    name, link = osp.basename(str(path)), str(link)
    temporary = temporary_name(link)
    with contextlib.suppress(OSError):
        os.remove(temporary)
    try:
        os.symlink(name, temporary)
    except OSError as error:
        with atomic_write(link) as file:
            file.write(f"{name}\n")
        _say_once(
            "%s: this file system has no symbolic links (%s): a text file with the name takes its place",
            link,
            error.strerror,
        )
        return
    try:
        _put_in_place(temporary, link)
    except OSError as error:
        os.remove(temporary)
        raise write_error(error, link) from error


def followed(path: str | Path) -> Path:
    """The file that a text file of `link_to` names; any other path itself, with `~` resolved."""
    path = Path(path).expanduser()
    try:
        if not path.is_file() or path.stat().st_size > 300:
            return path
        name = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return path
    is_name = name != path.name and not re.search(r"[/\\\0\n]", name)
    same_kind = path.suffix != "" and Path(name).suffix == path.suffix
    return path.with_name(name) if is_name and same_kind else path


def make_folder(path: str | Path, flag: str) -> Path:
    """Make a folder for results, before they are computed.

    Args:
        path: of the folder; those above it are made, too.
        flag: that names it, for messages.

    Raises:
        OSError: it cannot be made or written.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise OSError(
            f"{flag} {path} cannot be written ({error}): choose another folder"
        ) from error
    return Path(path)


def check_output(path: str | Path, flag: str, inputs: Iterable[str | Path | None] = ()) -> None:
    """Refuse a file for results that cannot be written, before they are computed.

    Args:
        path: of the file; its folder is made.
        flag: that names it, for messages.
        inputs: files that the results are made of; None for those that are not given.

    Raises:
        OSError: its folder cannot be written, or a folder has its name.
        ValueError: it is one of the inputs.
    """
    make_folder(Path(path).parent, f"folder of {flag}")
    if osp.isdir(path):
        raise OSError(f"{flag} {path} is a folder: name a file")
    for used in inputs:
        if used is not None and osp.exists(path) and osp.exists(used) and osp.samefile(path, used):
            raise ValueError(f"{flag} {path} would overwrite {used}, which is read: choose another")

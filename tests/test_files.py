import errno
import logging
import os
import subprocess
import sys
import time

import pytest

from projects.bevformer.files import writing
from projects.bevformer.files.writing import (
    atomic_write,
    followed,
    link_to,
    remove_left_over,
    temporary_name,
    write_error,
)

LOG = "projects.bevformer.files"


@pytest.fixture(autouse=True)
def fresh(monkeypatch, caplog):
    monkeypatch.setattr(writing, "_cleaned", set())
    monkeypatch.setattr(writing, "_said", set())
    monkeypatch.setattr(logging.getLogger(LOG), "propagate", True)  # runs set it to False
    caplog.set_level(logging.INFO, LOG)


def failing(number, calls=()):
    """A system call that fails; the first argument of each call goes into `calls`."""

    def call(first, *arguments, **options):
        if isinstance(calls, list):
            calls.append(first)
        raise OSError(number, os.strerror(number))

    return call


def write(path, text, interrupt=False):
    with atomic_write(path) as file:
        file.write(text)
        if interrupt:
            raise KeyboardInterrupt


def test_atomic_write_replaces_only_on_success(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        write(str(path), "half", interrupt=True)
    assert path.read_text() == "old"
    write(str(path), "new")
    assert path.read_text() == "new"
    assert [found.name for found in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF])
def test_file_systems_without_fsync_are_written(tmp_path, monkeypatch, caplog, number):
    monkeypatch.setattr(os, "fsync", failing(number))
    for name in ("a.json", "b.json"):
        write(tmp_path / name, "new")
    assert (tmp_path / "b.json").read_text() == "new"
    assert caplog.text.count("does not sync") == 1


def test_an_error_of_the_disk_while_syncing_is_not_swallowed(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(OSError, match=r"a\.json cannot be written \(Input/output error\)"):
        write(tmp_path / "a.json", "new")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EEXIST, errno.EPERM, errno.ENOSYS])
def test_file_systems_that_do_not_rename_to_existing_names(tmp_path, monkeypatch, number):
    path = tmp_path / "a.json"
    monkeypatch.setattr(os, "replace", failing(number))
    for text in ("first", "second"):
        write(path, text)
        assert path.read_text() == text
    for _ in range(2):
        link_to(path, tmp_path / "latest.json")
    assert os.readlink(tmp_path / "latest.json") == "a.json"
    assert sorted(found.name for found in tmp_path.iterdir()) == ["a.json", "latest.json"]


def test_the_earlier_file_comes_back_if_no_rename_works(tmp_path, monkeypatch):
    path, rename = tmp_path / "a.json", os.rename
    path.write_text("old")
    monkeypatch.setattr(os, "replace", failing(errno.EPERM))
    no_rename = failing(errno.EPERM)
    monkeypatch.setattr(
        os, "rename", lambda old, new: (no_rename if old.endswith(".tmp") else rename)(old, new)
    )
    with pytest.raises(PermissionError, match="cannot be written"):
        write(path, "new")
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_symbolic_links_latest_is_a_text_file(tmp_path, monkeypatch, caplog, number):
    latest, target = tmp_path / "latest.pth", tmp_path / "epoch_2.pth"
    latest.symlink_to("epoch_1.pth")
    monkeypatch.setattr(os, "symlink", failing(number))
    for _ in range(2):
        link_to(target, latest)
    assert latest.read_text() == "epoch_2.pth\n"
    assert followed(latest) == target
    assert caplog.text.count("has no symbolic links") == 1


@pytest.mark.parametrize(
    "content", ["../a.pth", "/etc/a.pth", "a.txt", "a.pth\nb.pth", "", "\0.pth"]
)
def test_other_text_files_name_no_checkpoint(tmp_path, content):
    path = tmp_path / "latest.pth"
    path.write_text(content)
    assert followed(path) == path


def test_following_leaves_other_files_alone(tmp_path):
    path = tmp_path / "latest.pth"
    assert followed(path) == path
    path.write_bytes(b"\xff" * 20)
    assert followed(path) == path
    path.write_text("latest.pth")
    assert followed(path) == path


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (
            errno.ENOSPC,
            r"\(No space left on device\): the file needs 3\.0 MiB or more, free in .*: \d",
        ),
        (errno.EDQUOT, r"\(Disk quota exceeded\): the file needs 3\.0 MiB or more"),
        (errno.EROFS, r"\(Read-only file system\): write to another folder"),
        (errno.EACCES, r"\(Permission denied\): .* change the permissions"),
        (errno.ENAMETOOLONG, r"\(File name too long\): choose a shorter name"),
        (errno.EIO, r"\(Input/output error\): see whether the file system is in order"),
    ],
)
def test_what_cannot_be_written_is_named_with_a_remedy(tmp_path, number, message):
    error = OSError(number, os.strerror(number))
    explained = write_error(error, tmp_path / "a.pth", 3 * 2**20)
    assert type(explained) is type(error)
    assert explained.errno == number
    with pytest.raises(OSError, match=rf"a\.pth cannot be written {message}"):
        raise explained


def full_disk(monkeypatch, after=100):
    """Files take `after` bytes, then No space left on device."""
    opened = open

    class Full:
        def __init__(self, *arguments):
            self.file, self.size = opened(*arguments), 0

        def write(self, content):
            self.size += len(content)
            if self.size > after:
                failing(errno.ENOSPC)(content)
            return self.file.write(content)

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *reason):
            self.file.close()

    monkeypatch.setattr(writing, "open", Full, raising=False)


def test_a_full_disk_is_named_and_keeps_the_earlier_file(tmp_path, monkeypatch):
    path = tmp_path / "a.pth"
    path.write_text("old")
    full_disk(monkeypatch)
    with pytest.raises(
        OSError, match=r"a\.pth cannot be written \(No space left on device\)"
    ) as caught:
        write(path, "x" * 1000)
    assert caught.value.errno == errno.ENOSPC
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["a.pth"]


def test_other_errors_within_the_block_stay_as_they_are(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, atomic_write(tmp_path / "a.txt"):
        os.stat(tmp_path / "other.txt")
    assert "cannot be written" not in str(caught.value)


def test_a_long_name_is_written(tmp_path):
    write(tmp_path / ("a" * 250), "text")
    with pytest.raises(OSError, match="File name too long"):
        write(tmp_path / ("a" * 300), "text")


def test_temporary_files_of_killed_processes_are_removed(tmp_path, caplog):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    here, day = writing._host(), time.time() - 25 * 3600

    def make(name, old=False):
        path = tmp_path / name
        path.write_text("half a file")
        if old:
            os.utime(path, (day, day))

    gone = [f".a.pth@{here}.{dead.pid}.tmp", f".a.json.{dead.pid}.tmp", ".b.pth@elsewhere.1.tmp"]
    kept = [f".c.pth@{here}.{os.getppid()}.tmp", ".d.pth@elsewhere.1.tmp", ".e.tmp", "a.pth.1.tmp"]
    for name in (*gone, *kept):
        make(name, old=name in (gone[2], kept[0], *kept[2:]))
    os.symlink("nowhere", tmp_path / f".latest.pth@{here}.{dead.pid}.tmp")
    (tmp_path / f".folder.{dead.pid}.tmp").mkdir()
    with atomic_write(tmp_path / "a.pth") as file:
        file.write("text")
        assert temporary_name(tmp_path / "a.pth") == file.name
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"a.pth", f".folder.{dead.pid}.tmp", *kept}
    assert "removed 4 temporary file(s) of killed runs" in caplog.text


def test_a_folder_is_searched_once(tmp_path):
    remove_left_over(tmp_path)
    path = tmp_path / ".a.pth.999999999.tmp"
    path.touch()
    remove_left_over(tmp_path)
    assert path.exists()

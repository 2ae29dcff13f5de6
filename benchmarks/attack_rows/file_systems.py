"""File systems that lack something, are full or change under a run."""

import contextlib
import os
import shutil
import subprocess
import time

from attack_rows.table import NotHere, end_of, expect, expect_refusal, expect_success, row
from attack_rows.world import checkpoints, digest, load, losses, train_words

_LACKING = {
    "symbolic_links": "symlink",
    "fsync_of_folders": "fsync_of_folders",
    "all": "symlink,link,chmod,fsync_of_folders",
}


@contextlib.contextmanager
def small_disk(world, size):
    """A folder on a file system of its own, of a size such as "4m"."""
    folder = world.new("disk")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True
    )
    if mounted.returncode != 0:
        raise NotHere("the right to mount a tmpfs")
    try:
        yield folder
    finally:
        world.clean_up()
        subprocess.run(["umount", "-l", folder], check=True)


def _broken(world, config, work, names, *flags, seconds=60, **options):
    words = train_words(config, work, *flags, **options)
    return world.call(*words, seconds=seconds, ATTACKS_BREAK=names)


@row(
    "files",
    "without {case}: the run ends well, latest.pth is a copy or a text file, and goes on",
    cases=_LACKING,
    quick=("all",),
)
def lacking(world, names):
    work, config = world.new(), world.recipe()
    options = {"checkpoint_config.interval": 1, "checkpoint_config.max_keep_ckpts": 2}
    result = _broken(world, config, work, names, "--max-iters", 4, **options)
    expect_success(result)
    newest = [path.name for path in checkpoints(work)]
    expect(newest == ["iter_3.pth", "iter_4.pth"], f"checkpoints {newest}")
    result = _broken(world, config, work, names, "--auto-resume", "--max-iters", 6, **options)
    expect_success(result, "the resume")
    expect([one[1] for one in losses(work)] == [1, 2, 3, 4, 5, 6], "not resumed at iteration 4")


@row("files", "latest.pth of a file system without symbolic links: every tool reads it")
def latest_as_a_copy(world):
    work, config = world.new(), world.recipe()
    expect_success(
        _broken(
            world, config, work, "symlink", "--max-iters", 3, **{"checkpoint_config.interval": 1}
        )
    )
    latest = work / "latest.pth"
    expect(not latest.is_symlink(), "the row's own symlink call did not fail")
    if not latest.exists():
        expect(
            [p for p in work.iterdir() if "latest" in p.name], "nothing says which is the latest"
        )
        return
    result = world.train(config, world.new(), "--resume-from", latest, "--max-iters", 4)
    expect_success(result, "--resume-from latest.pth")
    target = world.new() / "out.pth"
    expect_success(world.call("tools/inspect_checkpoint.py", latest), "inspect_checkpoint")
    expect_success(world.call("tools/publish_model.py", latest, target), "publish_model")


@row("files", "two processes without symbolic links and fsync of folders: the run ends well")
def lacking_in_two_processes(world):
    work = world.new()
    started = world.start(
        *train_words(world.recipe(), work), processes=2, ATTACKS_BREAK="symlink,fsync_of_folders"
    )
    result = started.finish(120)
    expect_success(result)
    expect(checkpoints(work), "no checkpoint")


_FULL = {"model.ballast": 300_000, "checkpoint_config.interval": 1}  # 3.6 MB each
_SPACE = (r"iter_\d+\.pth", r"space|full", r"\d\s?[KMG]i?B|bytes")


@row(
    "files",
    "disk full while saving: one line with file, space needed and space left; the others are whole",
)
def full_while_saving(world):
    with small_disk(world, "9m") as work:
        result = world.train(world.recipe(), work, **_FULL)
        expect_refusal(result, *_SPACE)
        expect(checkpoints(work), "no checkpoint is left")
        for path in [*checkpoints(work), work / "latest.pth"]:
            load(path)
        left = [path.name for path in work.iterdir() if ".tmp" in path.name]
        expect(not left, f"temporary files are left: {left}")


@row("files", "the same in two processes, without a traceback of ours")
def full_in_two_processes(world):
    with small_disk(world, "9m") as work:
        result = world.train(world.recipe(), work, processes=2, seconds=120, **_FULL)
        expect(result.code not in (0, None), f"ended with {result.code}")
        said = [line for line in result.lines if "iter_" in line and "space" in line.lower()]
        expect(said, f"no line with file and space: {end_of(result, 6)}")
        ours = [line for line in result.lines if 'File "' in line and "projects/bevformer" in line]
        expect(not ours, f"a traceback of ours: {ours[:1]}")
        for path in checkpoints(work):
            load(path)


@row(
    "files",
    "told to go on without saving: ends with 0 and a warning for each checkpoint",
    cases={"one_process": 1, "two_processes": 2},
)
def full_and_going_on(world, processes):
    with small_disk(world, "9m") as work:
        options = {**_FULL, "checkpoint_config.on_error": "continue"}
        result = world.train(world.recipe(), work, processes=processes, seconds=120, **options)
        expect_success(result)
        warned = [line for line in result.lines if "WARNING" in line and "iter_" in line]
        missing = 10 // processes + processes - 1 - len(checkpoints(work))
        expect(len(warned) >= missing, f"{len(warned)} warnings, {missing} checkpoints do not fit")
        for path in checkpoints(work):
            load(path)


@row(
    "files",
    "disk full while only logs are written: one line that names the log and the space, the end or a warning",
    cases={"from_the_start": 0, "soon": 40},
)
def full_of_logs(world, kilobytes):
    with small_disk(world, "400k") as work:
        out = world.new("out")
        filler = work / "filler"
        if kilobytes == 0:
            with contextlib.suppress(OSError):
                filler.write_bytes(b"0" * 2**20)
        else:
            filler.write_bytes(b"0" * (400 - kilobytes) * 1024)
        options = {
            "checkpoint_config": {"interval": 1000, "out_dir": str(out), "by_epoch": False},
            "runner.max_epochs": 60,
        }
        result = world.train(world.recipe(), work, **options)
        expect("Logging error" not in result.text, "Python's own report of a logging error")
        expect("Traceback" not in result.text, f"traceback: {end_of(result)}")
        if result.code != 0:
            expect_refusal(result, r"space|full", r"\.log|work|disk")
            return
        said = [line for line in result.lines if "space" in line and ".log" in line]
        expect(said, "goes on without its log, and without a word")


@row("files", "refused in one line", cases={"read_only": "ro"})
def read_only_work_dir(world, option):
    with small_disk(world, "1m") as work:
        subprocess.run(["mount", "-o", f"remount,{option}", work], check=True)
        expect_refusal(world.train(world.recipe(), work), "work")


@row(
    "files",
    "a folder in the place of {case}: refused before the first iteration",
    cases={"iter_3.pth": "iter_3.pth", "latest.pth": "latest.pth"},
)
def folder_in_the_way(world, name):
    work = world.new()
    (work / name).mkdir()
    (work / name / "content").touch()
    result = world.train(
        world.recipe(), work, "--max-iters", 5, **{"checkpoint_config.interval": 1}
    )
    if result.code == 0:  # it may also keep out of the way, without a loss
        expect(len(checkpoints(work)) == 5, f"saved {[p.name for p in checkpoints(work)]}")
        return
    expect_refusal(result, name.replace(".", r"\."))
    expect(not losses(work), f"after {len(losses(work))} iterations")


@row(
    "files",
    "a work dir that is a file, or lies below one: refused in one line",
    cases={"file": "", "below": "below"},
    quick=True,
)
def work_dir_is_a_file(world, below):
    path = world.file("a_file", "text")
    expect_refusal(world.train(world.recipe(), path / below if below else path), "a_file")


@row("files", "a work dir that is deleted while training: goes on or ends in one line")
def deleted_work_dir(world):
    work = world.new() / "inner"
    options = {"model.seconds": 0.2, "checkpoint_config.interval": 1}
    started = world.fork(*train_words(world.recipe(), work, **options))
    limit = time.monotonic() + 30
    while not (work / "iter_2.pth").exists() and time.monotonic() < limit:
        time.sleep(0.02)
    shutil.rmtree(work, ignore_errors=True)
    result = started.finish(60)
    if result.code == 0:
        expect(checkpoints(work), "ended with 0 and without a checkpoint")
    else:
        expect_refusal(result, "inner")


@row(
    "files",
    "an info file that is read only and a work dir elsewhere: nothing is written next to it",
)
def nothing_beside_the_data(world):
    config, path = world.small_trained()
    before = sorted(world.infos().rglob("*")) + sorted(world.data_root().rglob("*"))
    words = ("--device", "cpu", "--work-dir", world.new())
    expect_success(world.call("tools/eval.py", config, path, *words))
    after = sorted(world.infos().rglob("*")) + sorted(world.data_root().rglob("*"))
    expect(before == after, f"new: {set(after) - set(before)}")


@row(
    "files",
    "a checkpoint that changes while the run writes over it stays whole: readers never see a half",
    quick=True,
)
def hard_link_of_a_checkpoint(world):
    """Whoever has linked a checkpoint elsewhere keeps its content when the run saves again."""
    work = world.new()
    expect_success(
        world.train(world.recipe(), work, "--max-iters", 2, **{"checkpoint_config.interval": 1})
    )
    kept = world.new("kept") / "kept.pth"
    os.link(work / "iter_2.pth", kept)
    before = digest(kept)
    expect_success(
        world.train(
            world.recipe(), work, "--max-iters", 2, "--seed", 5, **{"checkpoint_config.interval": 1}
        )
    )
    expect(digest(kept) == before, "the content of the linked file changed")

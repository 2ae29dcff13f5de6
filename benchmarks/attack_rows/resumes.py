"""Resumed runs equal undisturbed ones bit for bit: weights, optimizer, losses and rates."""

import os

import kills

from attack_rows.table import end_of, expect, expect_refusal, expect_success, row
from attack_rows.world import checkpoints, digest, losses, temporary_files

EQUAL = "resumed at any iteration, equal bit for bit to the undisturbed run"
_NUMBERED = "by iteration inside an epoch (iter_N.pth); a resume goes on inside it"


def compare_resumed(world, config, flags=(), processes=1, stop=None, **options):
    """Train undisturbed, resume from the checkpoint after `stop` iterations, compare the ends."""
    whole, resumed = world.new("whole"), world.new("resumed")
    common = dict(processes=processes, seconds=120)
    expect_success(world.train(config, whole, *flags, **common, **options), "the whole run")
    saved = [path for path in checkpoints(whole) if path.name.startswith(("iter_", "epoch_"))]
    expect(len(saved) > 1, f"the run saved only {[path.name for path in saved]}")
    start = whole / f"iter_{stop}.pth" if stop else saved[len(saved) // 2 - 1]
    expect(start.exists(), f"no {start.name} among {[path.name for path in saved]}")
    result = world.train(config, resumed, *flags, "--resume-from", start, **common, **options)
    expect_success(result, f"the run resumed from {start.name}")
    ends = [checkpoints(folder)[-1] for folder in (whole, resumed)]
    undisturbed, again = losses(whole), losses(resumed)
    expect(again, f"nothing was trained after {start.name}: {end_of(result)}")
    expect(
        undisturbed[-len(again) :] == again,
        f"losses after {start.name} differ: {undisturbed[-len(again) :][:2]} and {again[:2]}",
    )
    if stop:
        expect(len(again) == len(undisturbed) - stop, f"{len(again)} iterations after iter_{stop}")
    expect(ends[0].name == ends[1].name, f"the ends are {ends[0].name} and {ends[1].name}")
    expect(digest(ends[0]) == digest(ends[1]), f"weights or optimizer of {ends[0].name} differ")


_EPOCHS = {"checkpoint_config.interval": 3}
_ITERATIONS = {"runner": {"type": "IterBasedRunner", "max_iters": 8}}


@row(
    "held",
    EQUAL,
    cases={
        "epochs": ({}, 3),
        "two_workers": ({"data.workers_per_gpu": 2}, 3),
        "persistent_workers": ({"data.workers_per_gpu": 2, "data.persistent_workers": True}, 3),
        "batch_of_one": ({"data.samples_per_gpu": 1}, 6),
        "bfloat16": ({"fp16.dtype": "bfloat16"}, 3),
        "ends_of_epochs": ({"checkpoint_config": {"interval": 1}}, None),
        "iterations": ({**_ITERATIONS}, 3),
        "iterations_in_the_second_epoch": ({**_ITERATIONS}, 6),
    },
)
def resumes_exactly(world, options, stop):
    more = {"model.dropout": 0.0}
    compare_resumed(world, world.recipe(), stop=stop, **more, **options)


@row("held", EQUAL)
def resumes_exactly_in_two_processes_with_frozen_batch_norms(world):
    options = {"model.dropout": 0.0, "model.batch_norm": False}
    compare_resumed(world, world.recipe(), processes=2, stop=3, **options)


@row("held", "the number of workers changes nothing")
def workers_change_nothing(world):
    ends = set()
    for workers in (0, 1, 3):
        work = world.new()
        expect_success(world.train(world.recipe(), work, **{"data.workers_per_gpu": workers}))
        ends.add((digest(checkpoints(work)[-1]), tuple(losses(work))))
    expect(len(ends) == 1, f"{len(ends)} different results with 0, 1 and 3 workers")


@row(
    "held", "no unreadable checkpoint, one iteration lost at most, no worker left, equal at the end"
)
def kills_while_saving(world):
    for keep in (-1, 2):
        report = kills.chain(world, kills=3, keep=keep, seed=keep + 5)
        expect(not report.wrong, "; ".join(report.wrong))


@row(
    "held",
    "passed over by --auto-resume with a word",
    cases={"truncated": 0.5, "empty": 0.0, "first_bytes": 0.01},
)
def broken_checkpoint(world, share):
    work = world.new()
    expect_success(
        world.train(world.recipe(), work, "--max-iters", 3, **{"checkpoint_config.interval": 1})
    )
    path = work / "iter_3.pth"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    result = world.train(world.recipe(), work, "--auto-resume", "--max-iters", 4)
    expect_success(result)
    expect("iter_3.pth" in result.text, "iter_3.pth is not mentioned")
    expect(
        f"resumed {work}/iter_2.pth" in result.text, f"not resumed from iter_2: {end_of(result)}"
    )


@row(
    "state",
    "the generators are in the checkpoint: " + EQUAL,
    cases={"one_process": 1, "two_processes": 2},
)
def dropout(world, processes):
    compare_resumed(
        world, world.recipe(), processes=processes, stop=3, **{"model.batch_norm": False}
    )


@row(
    "state",
    "grid mask, dropout and colour distortion of a BEVFormer: " + EQUAL,
    cases={"epochs": ()},
)
def bevformer(world):
    options = {"checkpoint_config": {"interval": 1, "by_epoch": False}, "evaluation": None}
    compare_resumed(world, world.small_recipe(), stop=3, **options)


@row("state", "each rank's own running statistics come back: " + EQUAL)
def batch_norms_in_two_processes(world):
    compare_resumed(world, world.recipe(), processes=2, stop=2, **{"model.dropout": 0.0})


@row(
    "state",
    "inside a cycle of gradient accumulation: " + EQUAL,
    cases={"epochs": {}, "iterations": _ITERATIONS},
)
def accumulation(world, options):
    hook = {"type": "GradientCumulativeOptimizerHook", "cumulative_iters": 3}
    compare_resumed(world, world.recipe(), stop=2, optimizer_config=hook, **options)


@row("state", "with a moving average of the weights: " + EQUAL)
def moving_average(world):
    compare_resumed(
        world, world.recipe(), stop=3, custom_hooks=[{"type": "EMAHook", "momentum": 0.1}]
    )


@row("state", "persistent workers give the result of others: draws depend on (seed, epoch, index)")
def persistent_workers(world):
    ends = {}
    for persistent in (False, True):
        work = world.new()
        options = {"data.workers_per_gpu": 2, "data.persistent_workers": persistent}
        expect_success(world.train(world.recipe(), work, **options))
        ends[persistent] = (digest(checkpoints(work)[-1]), losses(work))
    expect(ends[False] == ends[True], "another result with persistent workers")


@row("state", "the same with the data path of a BEVFormer (colour distortion, queues)")
def persistent_workers_of_bevformer(world):
    ends = {}
    for persistent in (False, True):
        work = world.new()
        options = {"data.workers_per_gpu": 1, "data.persistent_workers": persistent}
        options.update(evaluation=None, checkpoint_config={"interval": 2})
        expect_success(world.train(world.small_recipe(), work, **options))
        ends[persistent] = (digest(checkpoints(work)[-1]), losses(work))
    expect(ends[False] == ends[True], "another result with persistent workers")


@row("state", "two nodes of one process, a worker killed: torchrun restarts, equal at the end")
def elastic(world):
    config, whole, work = world.recipe(), world.new("whole"), world.new("elastic")
    expect_success(world.train(config, whole, processes=2, seconds=120), "the undisturbed run")
    marker = world.folder / "killed_once"
    report = kills.elastic(world, config, work, marker)
    expect_success(report, "the elastic run")
    expect(marker.exists(), "no worker was killed")
    expect(
        digest(checkpoints(work)[-1]) == digest(checkpoints(whole)[-1]),
        f"another end: {checkpoints(work)[-1].name}, {checkpoints(whole)[-1].name}",
    )


@row(
    "state",
    "another number of processes with the same total batch keeps the order of samples",
)
def other_number_of_processes(world):
    config, one = world.recipe(), world.new("one")
    options = {"model.dropout": 0.0, "model.batch_norm": False}
    options["data.train.frames_per_scene"] = [3, 3, 4]  # as many for each process
    result = world.train(config, one, **options, **{"data.samples_per_gpu": 2})
    expect_success(result)
    two = world.new("two")
    result = world.train(
        config, two, "--resume-from", one / "iter_2.pth", processes=2, seconds=120,
        **options, **{"data.samples_per_gpu": 1},
    )  # fmt: skip
    expect_success(result, "resumed in two processes")
    first, second = losses(one)[2:], losses(two)
    expect(len(first) == len(second), f"{len(second)} iterations instead of {len(first)}")
    far = [
        (a[:3], b[:3])
        for a, b in zip(first, second)
        if a[:2] != b[:2] or abs(a[2] - b[2]) > 1e-3 * max(1, abs(a[2]))
    ]
    expect(not far, f"other losses: {far[:2]}")


@row("state", _NUMBERED, cases={"unnamed": {}, "named": {"filename_tmpl": "iter_{}.pth"}})
def interval_in_iterations(world, name):
    work = world.new()
    options = {
        "data.train.frames_per_scene": [24],
        "checkpoint_config": {"interval": 5, "by_epoch": False, **name},
    }
    expect_success(world.train(world.recipe(), work, **options))
    names = [path.name for path in checkpoints(work)]
    expect(
        names[:4] == ["iter_5.pth", "iter_10.pth", "iter_15.pth", "iter_20.pth"], f"saved {names}"
    )
    again = world.new()
    result = world.train(world.recipe(), again, "--resume-from", work / "iter_10.pth", **options)
    expect_success(result)
    count = len(losses(again))
    expect(count == 14, f"{count} iterations instead of 14 after iter_10 of 24: {end_of(result)}")
    expect(
        digest(checkpoints(again)[-1]) == digest(checkpoints(work)[-1]), "another end after iter_10"
    )


@row("state", "resumed", cases={"real_file": False, "copied": True})
def only_latest_is_left(world, copied):
    work = world.new()
    expect_success(
        world.train(world.recipe(), work, "--max-iters", 3, **{"checkpoint_config.interval": 1})
    )
    content = (work / "iter_3.pth").read_bytes()
    (work / "latest.pth").unlink()
    for path in checkpoints(work):
        if not copied:
            path.unlink()
    (work / "latest.pth").write_bytes(content)
    result = world.train(world.recipe(), work, "--auto-resume", "--max-iters", 5)
    expect_success(result)
    expect(
        "resumed" in result.text and "anew" not in result.text, f"not resumed: {end_of(result, 6)}"
    )
    numbers = [record[1] for record in losses(work)]
    expect(numbers == [1, 2, 3, 4, 5], f"iterations {numbers}")


@row(
    "state",
    "a finished run says that nothing is left",
    cases={"end": 0, "beyond": 1},
)
def nothing_left(world, fewer):
    work = world.new()
    expect_success(
        world.train(world.recipe(), work, "--max-iters", 3, **{"checkpoint_config.interval": 1})
    )
    before = digest(work / "iter_3.pth")
    result = world.train(world.recipe(), work, "--auto-resume", "--max-iters", 3 - fewer)
    expect(result.code == 0 or fewer, f"ended with {result.code}: {end_of(result)}")
    expect("Traceback" not in result.text, end_of(result))
    expect("nothing left" in result.text or result.code, f"no word: {end_of(result, 5)}")
    expect(digest(work / "iter_3.pth") == before, "iter_3.pth changed")


@row("state", "left-over temporary files of a killed run are removed at the next start")
def temporary_files_go(world):
    work = world.new()
    expect_success(
        world.train(world.recipe(), work, "--max-iters", 2, **{"checkpoint_config.interval": 1})
    )
    report = kills.kill_within_writes(world, work, world.recipe())
    expect(report, "the row could not kill a run while it wrote")
    result = world.train(world.recipe(), work, "--auto-resume", "--max-iters", 200, seconds=120)
    expect_success(result)
    left = temporary_files(work)
    expect(not left, f"after the next run: {left[:3]}")


@row("state", "refused: a seed, a batch or a schedule that the checkpoint contradicts is named")
def resume_of_nothing(world):
    missing = world.folder / "no_such.pth"
    result = world.train(world.recipe(), world.new(), "--resume-from", missing)
    expect_refusal(result, "no_such.pth")
    os.symlink("gone.pth", world.folder / "dangling.pth")
    result = world.train(
        world.recipe(), world.new(), "--resume-from", world.folder / "dangling.pth"
    )
    expect_refusal(result, "dangling.pth")

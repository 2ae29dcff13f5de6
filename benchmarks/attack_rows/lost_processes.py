"""Ranks that die or fall silent, and data workers that are killed."""

import os
import signal
import time

from attack_rows.processes import rank_pid, workers_of
from attack_rows.table import end_of, expect, expect_refusal, row
from attack_rows.world import checkpoints, load, train_words

_SLOW = {"model.seconds": 0.3, "runner.max_epochs": 100, "dist_params.timeout_minutes": 0.2}
_LAST = 12  # lines of the end that a user sees at once


def _expect_last_words(result, *words):
    last = "\n".join(result.lines[-_LAST:])
    missing = [word for word in words if word not in last]
    expect(not missing, f"the last {_LAST} lines lack {', '.join(missing)}: {last[-900:]}")
    ours = [line for line in result.lines if 'File "' in line and "projects/bevformer" in line]
    expect(not ours, f"a traceback of ours: {ours[:1]}")


def _lose_a_rank(world, lose, rank, seconds):
    """Start two processes, do `lose` to one of them, and wait for the end.

    Returns:
        (Result, seconds from the loss to the end, work dir).
    """
    work = world.new()
    started = world.start(*train_words(world.recipe(), work, **_SLOW), processes=2)
    saw = started.wait_for("Saving checkpoint at 2 iterations", 90)
    expect(saw, f"the run did not start: {started.text[-300:]}")
    lose(rank_pid(started, rank))
    start = time.monotonic()
    result = started.finish(seconds)
    took = time.monotonic() - start
    left = started.left_over(3)
    expect(not left, f"{len(left)} processes live on")
    return result, took, work


@row(
    "dead",
    "a rank that stops answering: the other ends within the time-out, and the last lines name the rank and how to go on",
    cases={"rank_1": 1, "rank_0": 0},
)
def silent_rank(world, rank):
    def stop(pid):
        os.kill(pid, signal.SIGSTOP)

    result, took, _ = _lose_a_rank(world, stop, rank, 90)
    expect(result.code is not None, f"hangs for {took:.0f} s: {end_of(result)}")
    expect(result.code != 0, "exit code 0")
    _expect_last_words(result, f"rank {rank}", "--auto-resume")


@row(
    "dead",
    "a rank that is killed: the last lines say rank, reason and how to go on; the checkpoints are whole",
    cases={"rank_1": 1, "rank_0": 0},
)
def killed_rank(world, rank):
    def kill(pid):
        os.kill(pid, signal.SIGKILL)

    result, took, work = _lose_a_rank(world, kill, rank, 90)
    expect(result.code not in (0, None), f"ended with {result.code}")
    _expect_last_words(result, f"rank {rank}", "killed", "--auto-resume")
    for path in checkpoints(work):
        load(path)


@row("dead", "a rank that raises: the last lines say rank, reason and how to go on")
def failing_rank(world):
    work = world.new()
    options = {**_SLOW, "model.harm": [(4, 1, "raise")]}
    started = world.start(*train_words(world.recipe(), work, **options), processes=2)
    result = started.finish(120)
    expect(result.code not in (0, None), f"ended with {result.code}: {end_of(result)}")
    last = "\n".join(result.lines[-_LAST:])
    expect("rank 1" in last.lower(), f"rank 1 is not named at the end: {last[-600:]}")
    expect("this rank was told to fail" in last, f"the reason is not at the end: {last[-600:]}")
    expect("--auto-resume" in last, f"how to go on is not at the end: {last[-600:]}")
    left = started.left_over(3)
    expect(not left, f"{len(left)} processes live on")


@row(
    "dead",
    "a killed data worker: one line with the signal, the likely reason and the samples in flight",
    cases={"one_worker": 1, "two_workers": 2},
)
def killed_data_worker(world, workers):
    options = {"data.workers_per_gpu": workers, "data.train.kill_at": "s2f1"}
    started = world.fork(*train_words(world.recipe(), world.new(), **options))
    result = started.finish(60)
    expect_refusal(result, "SIGKILL|Killed", "memory", "s2f1")
    expect(not started.left_over(2), "a worker lives on")


@row("dead", "a data worker killed in a run of two processes: the same line, and all processes end")
def killed_data_worker_of_a_rank(world):
    options = {**_SLOW, "data.workers_per_gpu": 1, "data.train.kill_at": "s2f1"}
    started = world.start(*train_words(world.recipe(), world.new(), **options), processes=2)
    result = started.finish(120)
    expect(result.code not in (0, None), f"ended with {result.code}: {end_of(result)}")
    _expect_last_words(result, "s2f1")
    expect(not started.left_over(3), "a process lives on")


@row("dead", "a data worker killed while evaluating: one line, no hang")
def killed_worker_of_an_evaluation(world):
    config = world.recipe("data['test']['seconds'] = 0.3\ndata['workers_per_gpu'] = 1\n")
    words = ("tools/eval.py", config, world.trained() / "iter_4.pth")
    started = world.fork(*words, "--device", "cpu", "--work-dir", world.new())
    limit = time.monotonic() + 30
    while not workers_of(started.pid) and time.monotonic() < limit:
        time.sleep(0.02)
    workers = workers_of(started.pid)
    expect(workers, "no data worker")
    time.sleep(0.2)
    os.kill(workers[0], signal.SIGKILL)
    expect_refusal(started.finish(60), "SIGKILL|Killed", "memory")


@row(
    "dead",
    "a time-out that means nothing is refused",
    cases={"zero": 0, "negative": -1, "text": "soon"},
)
def senseless_time_out(world, minutes):
    options = {"dist_params.timeout_minutes": minutes}
    expect_refusal(world.train(world.recipe(), world.new(), **options), "timeout_minutes")

"""Signals: the iteration is finished, its state is saved, and the command that goes on is printed."""

import os
import signal
import time

from attack_rows.processes import rank_pid
from attack_rows.table import end_of, expect, expect_success, row
from attack_rows.world import checkpoints, digest, load, losses, temporary_files, train_words

NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")
RIGHT = (
    "the iteration is finished, interrupted.pth written, the command printed, exit code 128 + signal, "
    "no traceback, workers gone within a second; the resumed run equals the undisturbed one"
)
_SLOW = {
    "model.seconds": 0.3,
    "checkpoint_config": {"interval": 1},
    "data.workers_per_gpu": 2,
    "model.dropout": 0.3,
}
_LOGGED = "][2/5]"


def _whole(world, processes):
    """End of the undisturbed run."""

    def make():
        work, config = world.new("whole"), world.recipe()
        options = {**_SLOW, "model.seconds": 0}
        result = world.train(config, work, processes=processes, seconds=120, **options)
        expect_success(result, "the undisturbed run")
        return digest(work / "epoch_2.pth"), losses(work)

    return world.once(f"signals_{processes}", make)


def _go_on(world, config, work, processes):
    """Resume, and compare with the undisturbed run."""
    options = {**_SLOW, "model.seconds": 0}
    result = world.train(config, work, "--auto-resume", processes=processes, seconds=120, **options)
    expect_success(result, "the resumed run")
    expect("interrupted.pth" in result.text, f"interrupted.pth was not resumed: {end_of(result)}")
    end, expected = _whole(world, processes)
    found = losses(work)
    positions = [one[:2] for one in found]
    expect(positions == [one[:2] for one in expected], f"iterations {positions}")
    expect(found == expected, "losses differ from the undisturbed run's")
    expect(digest(work / "epoch_2.pth") == end, "the end differs from the undisturbed run's")


def _look(result, work, number):
    expect(result.code is not None, f"does not end: {end_of(result)}")
    code = -result.code if result.code < 0 else result.code - 128
    expect(result.code > 0 and code == number, f"exit code {result.code}: {end_of(result)}")
    expect("Traceback" not in result.text, f"traceback: {end_of(result)}")
    path = work / "interrupted.pth"
    expect(path.exists(), f"no interrupted.pth: {end_of(result)}")
    meta = load(path)["meta"]
    done = losses(work)[-1]
    expect(
        meta["iter"] == (done[0] - 1) * 5 + done[1], f"of iteration {meta['iter']}, logged {done}"
    )
    last = "\n".join(result.lines[-3:])
    expect("--auto-resume" in last or "--resume-from" in last, f"no command at the end: {last}")
    expect(not temporary_files(work), f"left: {temporary_files(work)}")


@row("signals", RIGHT, cases={name: name for name in NAMES})
def one_process(world, name):
    number, work, config = getattr(signal, name), world.new(), world.recipe()
    started = world.start(*train_words(config, work, **_SLOW))
    expect(started.wait_for(_LOGGED, 60), f"did not start: {started.text[-300:]}")
    started.process.send_signal(number)
    result = started.finish(30)
    left = started.left_over(1.0)
    expect(not left, f"{len(left)} workers live on after a second")
    _look(result, work, number)
    _go_on(world, config, work, 1)


@row(
    "signals",
    RIGHT + " (to the whole process group, as Ctrl-C in a terminal)",
    cases={"SIGINT": "SIGINT", "SIGTERM": "SIGTERM"},
)
def process_group(world, name):
    number, work, config = getattr(signal, name), world.new(), world.recipe()
    started = world.start(*train_words(config, work, **_SLOW))
    expect(started.wait_for(_LOGGED, 60), f"did not start: {started.text[-300:]}")
    os.killpg(started.process.pid, number)
    result = started.finish(30)
    expect(not started.left_over(1.0), "workers live on after a second")
    _look(result, work, number)
    _go_on(world, config, work, 1)


@row(
    "signals",
    "all ranks stop after the same iteration, also when only one got the signal; one file with all ranks' states; the resumed run equals the undisturbed one",
    cases={"rank_0": (0, "SIGTERM"), "rank_1": (1, "SIGTERM"), "rank_1_usr1": (1, "SIGUSR1")},
)
def one_rank_of_two(world, rank, name):
    work, config = world.new(), world.recipe()
    started = world.start(*train_words(config, work, **_SLOW), processes=2)
    expect(started.wait_for("][1/", 90), f"did not start: {started.text[-300:]}")
    os.kill(rank_pid(started, rank), getattr(signal, name))
    result = started.finish(40)
    expect(result.code not in (0, None), f"ended with {result.code}: {end_of(result)}")
    expect(not started.left_over(1.0), "processes live on after a second")
    path = work / "interrupted.pth"
    expect(path.exists(), f"no interrupted.pth: {end_of(result)}")
    expect(len(load(path)["ranks"]) == 2, f"states of {len(load(path)['ranks'])} ranks")
    ours = [line for line in result.lines if 'File "' in line and "projects/bevformer" in line]
    expect(not ours, f"a traceback of ours: {ours[:1]}")
    expect(" --resume-from " in result.text, "no command that goes on")
    _go_on_two(world, config, work)


def _go_on_two(world, config, work):
    options = {**_SLOW, "model.seconds": 0}
    whole = world.once("signals_two", lambda: _two_processes(world, options))
    result = world.train(config, work, "--auto-resume", processes=2, seconds=120, **options)
    expect_success(result, "the resumed run")
    expect("interrupted.pth" in result.text, "interrupted.pth was not resumed")
    expect(losses(work) == whole[1], f"losses differ: {losses(work)[:3]} and {whole[1][:3]}")
    expect(digest(work / "epoch_2.pth") == whole[0], "the end differs from the undisturbed run's")


def _two_processes(world, options):
    work = world.new("whole")
    expect_success(world.train(world.recipe(), work, processes=2, seconds=120, **options))
    return digest(work / "epoch_2.pth"), losses(work)


@row(
    "signals",
    "torchrun passes it on: interrupted.pth within its 30 s, no traceback of ours",
    cases={name: name for name in ("SIGTERM", "SIGINT")},
)
def torchrun(world, name):
    work, config = world.new(), world.recipe()
    started = world.start(*train_words(config, work, **_SLOW), processes=2)
    expect(started.wait_for("][1/", 90), f"did not start: {started.text[-300:]}")
    started.process.send_signal(getattr(signal, name))
    result = started.finish(40)
    expect(result.code not in (0, None), f"ended with {result.code}: {end_of(result)}")
    expect(not started.left_over(1.0), "processes live on after a second")
    ours = [line for line in result.lines if 'File "' in line and "projects/bevformer" in line]
    expect(not ours, f"a traceback of ours: {ours[:1]}")
    _go_on_two(world, config, work)


@row("signals", "the second signal ends at once", cases={"SIGINT": "SIGINT", "SIGTERM": "SIGTERM"})
def second_signal(world, name):
    work, options = world.new(), {**_SLOW, "model.seconds": 15}
    started = world.start(*train_words(world.recipe(), work, **options))
    expect(started.wait_for("workflow", 60), f"did not start: {started.text[-300:]}")
    time.sleep(1.5)
    started.process.send_signal(getattr(signal, name))
    time.sleep(0.5)
    expect(started.process.poll() is None, "the first signal ended it within an iteration")
    started.process.send_signal(getattr(signal, name))
    start = time.monotonic()
    result = started.finish(30)
    took = time.monotonic() - start
    expect(result.code is not None and took < 3, f"took {took:.0f} s")
    number = getattr(signal, name)
    expect(result.code in (128 + number, -number), f"exit code {result.code}")
    expect("Traceback" not in result.text, f"traceback: {end_of(result)}")
    expect(not started.left_over(1.0), "workers live on after a second")


@row(
    "signals", "before the first iteration: ends soon with 128 + signal, no traceback, workers gone"
)
def at_the_start(world):
    work, options = world.new(), {**_SLOW, "data.train.seconds": 1.5}
    started = world.start(*train_words(world.recipe(), work, **options))
    expect(started.wait_for("workflow", 60), f"did not start: {started.text[-300:]}")
    started.process.send_signal(signal.SIGTERM)
    result = started.finish(40)
    expect(result.code in (143, -15), f"exit code {result.code}: {end_of(result)}")
    expect("Traceback" not in result.text, f"traceback: {end_of(result)}")
    expect(not started.left_over(1.0), "workers live on after a second")


@row(
    "signals",
    "while evaluating within a run: interrupted.pth, the resumed run equals the undisturbed one",
)
def within_an_evaluation(world):
    config = world.recipe(
        "evaluation = dict(interval=1, pipeline=[])\ndata['val']['seconds'] = 0.5\n"
    )
    work = world.new()
    started = world.start(*train_words(config, work, **{**_SLOW, "model.seconds": 0}))
    expect(started.wait_for("Saving checkpoint at 1 epochs", 60), f"no: {started.text[-300:]}")
    time.sleep(1.2)
    started.process.send_signal(signal.SIGTERM)
    result = started.finish(30)
    expect(result.code == 143, f"exit code {result.code}: {end_of(result)}")
    expect("Traceback" not in result.text, f"traceback: {end_of(result)}")
    expect(not started.left_over(1.0), "workers live on after a second")
    expect(checkpoints(work), "no checkpoint")
    again = world.train(config, work, "--auto-resume", seconds=60, **{**_SLOW, "model.seconds": 0})
    expect_success(again, "the resumed run")
    end, _ = _whole(world, 1)
    expect(digest(work / "epoch_2.pth") == end, "the end differs from the undisturbed run's")


@row(
    "signals",
    "tools/eval.py: exit code 128 + signal, no traceback, workers gone",
    cases={name: name for name in ("SIGTERM", "SIGINT", "SIGHUP")},
)
def evaluation(world, name):
    config = world.recipe("data['test']['seconds'] = 0.5\ndata['workers_per_gpu'] = 2\n")
    words = ("tools/eval.py", config, world.trained() / "iter_4.pth")
    started = world.start(*words, "--device", "cpu", "--work-dir", world.new())
    expect(started.wait_for("device", 60), f"did not start: {started.text[-300:]}")
    time.sleep(2)
    expect(started.process.poll() is None, f"ended too soon: {started.text[-300:]}")
    started.process.send_signal(getattr(signal, name))
    result = started.finish(20)
    number = getattr(signal, name)
    expect(result.code == 128 + number, f"exit code {result.code}: {end_of(result)}")
    expect("Traceback" not in result.text, f"traceback: {end_of(result)}")
    expect(not started.left_over(1.0), "workers live on after a second")


@row(
    "signals",
    "interrupted.pth lies in the work dir although checkpoints lie in out_dir; --auto-resume finds it",
)
def checkpoints_elsewhere(world):
    work, config, out = world.new(), world.recipe(), world.new("out")
    options = {**_SLOW, "checkpoint_config": {"interval": 1, "out_dir": str(out)}}
    started = world.start(*train_words(config, work, **options))
    expect(started.wait_for(_LOGGED, 60), f"did not start: {started.text[-300:]}")
    started.process.send_signal(signal.SIGTERM)
    result = started.finish(30)
    _look(result, work, signal.SIGTERM)
    result = world.train(
        config, work, "--auto-resume", seconds=60, **{**options, "model.seconds": 0}
    )
    expect_success(result)
    expect("interrupted.pth" in result.text, f"not resumed: {end_of(result)}")

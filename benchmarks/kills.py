"""SIGKILLs at random moments of saving and training: python benchmarks/kills.py [--kills 100] [--seed 0].

Runs of a dummy-size detector save after every iteration, are killed, and go on with --auto-resume.
After each kill: `latest.pth` and all numbered checkpoints can be read, at most one iteration is lost
and no data worker lives on. After each start: nothing temporary is left. Each checkpoint, and the end
of each chain of kills, equals the undisturbed run's, bit for bit. Half of the chains keep all
checkpoints, half of them two.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from attack_rows.processes import workers_of  # noqa: E402
from attack_rows.world import (  # noqa: E402
    World,
    checkpoints,
    digest,
    losses,
    temporary_files,
    train_words,
)

LENGTH = 60  # iterations of a chain; each epoch has five
OPTIONS = {
    "model.ballast": 200_000,  # a checkpoint of 2.4 MB, so that saving takes a part of the time
    "data.workers_per_gpu": 1,
    "runner.max_epochs": LENGTH // 5,
    "lr_config": None,
}


@dataclass
class Report:
    """What the kills did.

    Attributes:
        kills: runs that were killed.
        leftovers: kills that left a temporary file.
        wrong: what was not right, one line each.
    """

    kills: int = 0
    leftovers: int = 0
    wrong: list = field(default_factory=list)


def undisturbed(world):
    """Digest of the checkpoint of each iteration of a run that is not killed."""

    def make():
        work = world.new("undisturbed")
        result = world.train(world.recipe(), work, seconds=600, **OPTIONS)
        if result.code != 0:
            raise RuntimeError(result.text)
        found = {path.name: digest(path) for path in checkpoints(work)}
        return found, losses(work)[-1]

    return world.once("undisturbed", make)


def chain(world, kills, keep, seed):
    """Kill a run again and again, and let it end.

    Args:
        world: of the attacks.
        kills: how many.
        keep: `max_keep_ckpts`.
        seed: of the moments.

    Returns:
        Report.
    """
    moments, report = random.Random(seed), Report()
    expected, last = undisturbed(world)
    work, config = world.new("killed"), world.recipe()
    words = train_words(
        config, work, "--auto-resume", **OPTIONS, **{"checkpoint_config.max_keep_ckpts": keep}
    )
    for _ in range(kills):
        started = world.fork(*words)
        before = _newest(work)
        _wait(lambda: _newest(work) > before or not _alive(started.pid), 60)  # noqa: B023
        time.sleep(moments.uniform(0.0, 0.25))
        workers = workers_of(started.pid)
        logged = _last_logged(work)
        os.kill(started.pid, 9)
        started.finish()
        report.kills += 1
        report.leftovers += bool(temporary_files(work))
        if not _wait(lambda: not any(map(_alive, workers)), 10):  # noqa: B023
            report.wrong.append(f"kill {report.kills}: a worker lives on after 10 s")
        report.wrong += [f"kill {report.kills}: {what}" for what in _look(work, expected, logged)]
        started.kill()
    result = world.fork(*words).finish(300)
    if result.code != 0:
        report.wrong.append(f"the last resume ended with {result.code}: {result.lines[-1:]}")
    if temporary_files(work):
        report.wrong.append(f"left after the end: {temporary_files(work)}")
    end = work / f"epoch_{LENGTH // 5}.pth"
    end = end if end.exists() else checkpoints(work)[-1]
    if digest(end) != list(expected.values())[-1] or losses(work)[-1] != last:
        report.wrong.append(f"the end of the chain, {end.name}, differs from the undisturbed run's")
    return report


def _look(work, expected, logged):
    """What is wrong in a work dir right after a kill."""
    for path in [work / "latest.pth", *checkpoints(work)]:
        try:
            found = digest(path)
        except Exception as error:
            yield f"{path.name} cannot be read: {error}"
            continue
        name = path.resolve().name
        if name in expected and found != expected[name]:
            yield f"{name} differs from the undisturbed run's"
    if _newest(work) < logged - 1:
        yield f"iteration {logged} was logged, the newest checkpoint is of {_newest(work)}"


def _newest(work):
    """Number of iterations of the newest checkpoint."""
    numbers = [0]
    for path in checkpoints(work):
        kind, number = path.stem.rsplit("_", 1)
        numbers.append(int(number) * (5 if kind == "epoch" else 1))
    return max(numbers)


def _last_logged(work):
    found = losses(work)
    return (found[-1][0] - 1) * 5 + found[-1][1] if found else 0


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _wait(condition, seconds):
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            return False
        time.sleep(0.01)
    return True


def kill_within_writes(world, work, config, tries=30):
    """Kill a run while a temporary file of it is in its work dir; says whether it worked."""
    options = {"model.ballast": 3_000_000, "checkpoint_config.interval": 1}
    words = train_words(config, work, "--max-iters", 200, **options)
    for _ in range(tries):
        started = world.fork(*words)
        _wait(lambda: temporary_files(work) or not _alive(started.pid), 60)  # noqa: B023
        started.kill()
        if temporary_files(work):
            return True
    return False


def elastic(world, config, work, marker):
    """Two nodes of one process each on this machine; one worker is killed once.

    Args:
        world: of the attacks.
        config: of the run.
        work: its work dir.
        marker: file that says that the kill has happened.

    Returns:
        Result of the first node.
    """
    from attack_rows.processes import free_port

    port = free_port()
    options = {"model.seconds": 0.3}
    words = train_words(config, work, "--auto-resume", **options)
    nodes = [
        world.start(
            *words,
            launcher=(
                "--nnodes=2",
                "--max-restarts=10",
                "--rdzv_backend=c10d",
                "--rdzv_id=attacks",
                f"--rdzv_endpoint=127.0.0.1:{port}",
                f"--rdzv_conf=is_host={number == 0}",
            ),
        )  # fmt: skip
        for number in range(2)
    ]
    if _wait(lambda: (work / "iter_3.pth").exists(), 120):
        victims = workers_of(nodes[1].process.pid)
        if victims:
            os.kill(victims[0], 9)
            marker.touch()
    results = [node.finish(420) for node in nodes]
    return max(results, key=lambda result: (result.code is None, result.code or 0))


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100, help="[100]")
    parser.add_argument("--seed", type=int, default=0, help="of the moments [0]")
    parser.add_argument("--chain", type=int, default=10, help="kills until a run may end [10]")
    args = parser.parse_args(argv)
    from attacks import import_everything

    import_everything()
    world, start, total = World(tempfile.mkdtemp(prefix="kills_")), time.monotonic(), Report()
    try:
        for number in range(0, args.kills, args.chain):
            keep = -1 if number // args.chain % 2 == 0 else 2
            count = min(args.chain, args.kills - number)
            report = chain(world, count, keep, args.seed * 1000 + number)
            total.kills += report.kills
            total.leftovers += report.leftovers
            total.wrong += report.wrong
            kept = "all" if keep < 0 else keep
            print(
                f"{total.kills} kills, {time.monotonic() - start:.0f} s: kept {kept}, "
                f"{len(report.wrong)} wrong",
                flush=True,
            )
            for line in report.wrong:
                print(f"WRONG: {line}", flush=True)
    finally:
        world.remove()
    print(
        f"{total.kills} kills ({total.leftovers} within a write), {len(total.wrong)} wrong, "
        f"{time.monotonic() - start:.0f} s"
    )
    return min(len(total.wrong), 125)


if __name__ == "__main__":
    sys.exit(main())

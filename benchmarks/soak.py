"""A long run of a small recipe, whose memory and handles must not grow: python benchmarks/soak.py.

A BEVFormer with a BEV of 20 x 20 on synthetic pictures of 90 x 160, two data workers, an evaluation
every 500 iterations and a checkpoint every 100 of which three are kept. An epoch has 100 iterations
(a shorter run has shorter ones). Samples the resident
memory, open files and threads of the run, and the private memory and open files of its workers, and
compares the first quarter of the samples after 1,000 iterations (after a tenth of a shorter run) with
the last quarter. Fails where the median of memory grows by more than 5 %, or the minimum of handles or
threads by more than one.
"""

import argparse
import os
import pickle
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from attack_rows.processes import workers_of  # noqa: E402
from attack_rows.world import World, records, train_words  # noqa: E402
from common import environment, table, write_json  # noqa: E402

from projects.bevformer.files.pickles import load_pickle_restricted  # noqa: E402

LIMIT = 0.05  # growth of memory


def figures(pid):
    """Memory in MiB, open files and threads of a process; None after its end."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        handles = len(os.listdir(f"/proc/{pid}/fd"))
        threads = len(os.listdir(f"/proc/{pid}/task"))
    except (OSError, ProcessLookupError):
        return None
    sizes = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines[1:]}
    private = sizes["Private_Clean"] + sizes["Private_Dirty"]
    return {"resident": sizes["Rss"], "private": private, "handles": handles, "threads": threads}


def sample(pid, done):
    """Figures of a run and of its workers; None after its end."""
    own = figures(pid)
    workers = [one for one in map(figures, workers_of(pid)) if one is not None]
    if own is None:
        return None
    own["iteration"] = done
    own["workers"] = len(workers)
    for key in ("private", "handles"):
        values = [one[key] for one in workers]
        own[f"worker_{key}"] = statistics.median(values) if values else None
    return own


def growth(samples, key, after):
    """A figure in the first and in the last quarter of the samples after iteration `after`.

    Memory rises and falls with the life of the workers: its median counts. Handles and threads come
    and go with workers: what leaks stays in the minimum.

    Returns:
        Two numbers; None with too few samples.
    """
    values = [one[key] for one in samples if one["iteration"] >= after and one[key] is not None]
    if len(values) < 4:
        return None
    part = max(2, len(values) // 4)
    middle = min if key.endswith(("handles", "threads")) else statistics.median
    return middle(values[:part]), middle(values[-part:])


def many_scenes(world, copies):
    """The info file of the training scene, with its four frames again and again as new scenes."""
    path = world.infos() / "synthetic_infos_temporal_train.pkl"
    content = load_pickle_restricted(str(path), "an info file", "run it again")
    infos = []
    for number in range(copies):
        for info in content["infos"]:
            names = {
                key: info[key] for key in ("token", "scene_token", "prev", "next") if info.get(key)
            }
            infos.append({**info, **{key: f"{name}-{number}" for key, name in names.items()}})
    return world.file("infos.pkl", pickle.dumps({**content, "infos": infos}))


def run(world, iterations, out, seconds=4 * 3600):
    """Train, and sample once a second.

    Args:
        world: of the attacks.
        iterations: of the run.
        out: file of the figures, or None.
        seconds: until the run is killed.

    Returns:
        What is wrong, one line each.
    """
    often = max(1, iterations // 100)
    config = world.small_recipe(
        f"""
        evaluation = dict(interval={often * 5}, by_epoch=False)
        checkpoint_config = dict(interval={often}, by_epoch=False, max_keep_ckpts=3)
        log_config = dict(interval={max(1, often // 5)})
        workers_per_gpu = 2
        """
    )
    work, samples, done = world.new("soak"), [], 0
    options = {"data.train.ann_file": many_scenes(world, max(1, min(25, iterations // 40)))}
    words = train_words(config, work, "--max-iters", iterations, **options)
    started, start = world.start(*words), time.monotonic()
    while started.process.poll() is None and time.monotonic() - start < seconds:
        logged = records(work)
        done = max((one["iter"] for one in logged), default=0)
        found = sample(started.process.pid, done)
        samples += [found] if found and found["handles"] else []  # none: it is ending
        time.sleep(1 if iterations > 500 else 0.2)
    took = time.monotonic() - start
    result = started.finish(0)
    wrong = [] if result.code == 0 else [f"ended with {result.code}: {result.lines[-2:]}"]
    if len(list(work.glob("iter_*.pth"))) > 3:
        wrong.append("more than three checkpoints are left")
    after, rows = min(1000, iterations // 10), []
    for key in ("resident", "worker_private", "handles", "worker_handles", "threads"):
        pair = growth(samples, key, after)
        if pair is None:
            wrong.append(f"{key}: too few samples")
            continue
        grown = pair[1] / pair[0] - 1
        rows.append([key, f"{pair[0]:.1f}", f"{pair[1]:.1f}", f"{100 * grown:+.1f} %"])
        if pair[1] - pair[0] > 1 and grown > LIMIT:
            wrong.append(f"{key} grew from {pair[0]:.1f} to {pair[1]:.1f}")
    train_times = [one["time"] for one in records(work)]
    print(f"{done} iterations in {took:.0f} s, {statistics.median(train_times or [0]):.3f} s each")
    print(table(["", f"after {after}", "at the end", "growth"], rows))
    if out is not None:
        import torch

        write_json(out, {**environment(torch.device("cpu")), "samples": samples, "wrong": wrong})
    return wrong


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--iterations", type=int, default=10_000, help="[10000]")
    parser.add_argument("--out", help="file for all samples, .json")
    args = parser.parse_args(argv)
    from attacks import import_everything

    import_everything()
    world = World(tempfile.mkdtemp(prefix="soak_"))
    try:
        wrong = run(world, args.iterations, args.out)
    finally:
        world.remove()
    for line in wrong:
        print(f"WRONG: {line}")
    return min(len(wrong), 125)


if __name__ == "__main__":
    sys.exit(main())

"""Attacks on the tools and the files of a run, row by row: python benchmarks/attacks.py [--only ROW ...].

Each row attacks one promise: runs that die or should have died, state that a resume loses, signals,
file systems, hostile files, wrong input. It runs the tools in processes of their own on a data set of
eight frames and prints one line: right, WRONG with what happened, or "not here" with what the machine
lacks. The exit code is the number of rows that are wrong. A row takes seconds; all of them take about
half an hour on one core.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from attack_rows.table import chosen, judge  # noqa: E402


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="ROW", help="rows whose name starts with this"
    )
    parser.add_argument("--list", action="store_true", help="print names and what is right")
    parser.add_argument("--keep", action="store_true", help="keep the temporary folder")
    return parser.parse_args(argv)


def import_everything():
    """What the tools import, so that their forks start at once."""
    import torch
    from mmcv.runner import epoch_based_runner, iter_based_runner

    from projects.bevformer import plugin  # noqa: F401
    from projects.bevformer.engine import evaluate, train  # noqa: F401

    torch.set_num_threads(1)

    class WithoutSleep:
        """mmcv sleeps two seconds at the end of an epoch."""

        def __getattr__(self, name):
            return (lambda seconds: None) if name == "sleep" else getattr(time, name)

    epoch_based_runner.time = iter_based_runner.time = WithoutSleep()


def main(argv=None):
    args = parse_args(argv)
    from attack_rows import all_rows  # noqa: F401

    try:
        rows = chosen(args.only)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    if args.list:
        for one in rows:
            print(f"{one.name}: {one.right}")
        return 0
    from attack_rows.world import World

    import_everything()
    world = World(tempfile.mkdtemp(prefix="attacks_"))
    verdicts = []
    try:
        for one in rows:
            verdict, what, seconds = judge(one, world)
            verdicts.append(verdict)
            print(f"{verdict:8} {one.name}: {what} [{seconds:.1f} s]", flush=True)
    finally:
        if args.keep:
            print(f"kept: {world.folder}")
        else:
            world.remove()
    counts = ", ".join(f"{verdicts.count(word)} {word}" for word in ("right", "WRONG", "not here"))
    print(f"{len(rows)} rows: {counts}")
    return min(verdicts.count("WRONG"), 125)


if __name__ == "__main__":
    sys.exit(main())

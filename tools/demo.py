"""Train and evaluate on a synthetic data set: python tools/demo.py [--from-scratch].

Runs the project's tools one after the other and prints each command line, so that they can be
repeated by hand: synthetic data set, info files, training, evaluation with the nuScenes devkit,
pictures. An existing data set is reused.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import bootstrap  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "configs/demo.py"


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work-dir", default="work_dirs/demo", help="[work_dirs/demo]")
    parser.add_argument(
        "--data", default="data/synthetic", help="folder of the data [data/synthetic]"
    )
    parser.add_argument(
        "--from-scratch",
        action="store_true",
        help="start from random weights instead of the demo weights",
    )
    parser.add_argument("--pictures", type=int, default=8, metavar="N", help="samples to draw [8]")
    args = parser.parse_args(argv)
    if args.pictures < 1:
        parser.error(f"--pictures {args.pictures}: it must be at least 1")
    return args


class Steps:
    """Runs tools in the repository root, each announced with its number and command line."""

    def __init__(self, total):
        self.total = total
        self.done = 0

    def announce(self, what):
        self.done += 1
        print(f"\n==> [{self.done}/{self.total}] {what}", flush=True)

    def run(self, what, *command):
        self.announce(what)
        print("    python " + " ".join(command), flush=True)
        start = time.time()
        code = subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode
        if code != 0:
            sys.exit(f"demo: step {self.done} ({what}) failed with exit code {code}, see above")
        print(f"    {time.time() - start:.0f} s", flush=True)


def main():
    args = parse_args()
    start = time.time()
    data, work_dir = args.data, args.work_dir
    steps = Steps(total=4)

    if (ROOT / data / "v1.0-mini" / "sample_annotation.json").exists():
        steps.announce(f"synthetic data set: {data} is there already")
    else:
        steps.run(
            "synthetic data set in the nuScenes format",
            *(
                "tools/create_synthetic.py",
                "--out-dir",
                data,
                "--version",
                "v1.0-mini",
                "--seed",
                "0",
            ),
        )
    steps.run(
        "info files",
        *("tools/create_data.py", "nuscenes", "--root-path", data, "--out-dir", data),
        *("--extra-tag", "synthetic", "--version", "v1.0-mini", "--canbus", data),
    )
    data_options = [f"data_root={data}/"]
    train_options = [*data_options, "load_from=None"] if args.from_scratch else data_options
    steps.run(
        "training" + (" from random weights" if args.from_scratch else " from the demo weights"),
        *("tools/train.py", CONFIG, "--work-dir", work_dir, "--seed", "0", "--no-validate"),
        *("--cfg-options", *train_options),
    )
    steps.run(
        "evaluation on held-out scenes with the nuScenes devkit, and pictures",
        *(
            "tools/eval.py",
            CONFIG,
            os.path.join(work_dir, "latest.pth"),
            "--eval",
            "bbox",
            "--devkit",
        ),
        *("--work-dir", work_dir, "--out", os.path.join(work_dir, "results.pkl")),
        *("--show-dir", os.path.join(work_dir, "pictures"), "--show-samples", str(args.pictures)),
        *("--cfg-options", *data_options),
    )
    report(ROOT / work_dir, time.time() - start)


def report(work_dir, seconds):
    """Print the one table and where everything lies."""
    from projects.bevformer.engine.report import metrics_table

    summary = json.loads((work_dir / "metrics_summary.json").read_text())
    print("\n" + metrics_table(summary))
    for picture in sorted((work_dir / "pictures").glob("*.png")):
        print(os.path.relpath(picture))
    print(f"\nEverything is in {os.path.relpath(work_dir)}; {seconds / 60:.1f} minutes.")


if __name__ == "__main__":
    main()

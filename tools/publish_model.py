"""Keep the weights of a checkpoint: python tools/publish_model.py CHECKPOINT TARGET [--half]."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from projects.bevformer.engine.checkpoint import publish_weights  # noqa: E402
from projects.bevformer.engine.cli import tool_errors  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", help="written by tools/train.py")
    parser.add_argument("target", type=Path, help="file for the weights alone")
    parser.add_argument("--half", action="store_true", help="matrices and kernels as float16")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    args = parser.parse_args()
    with tool_errors(args.debug):
        args.target.parent.mkdir(parents=True, exist_ok=True)
        publish_weights(args.checkpoint, args.target, args.half)
        print(f"{args.target}: {args.target.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()

"""Say what a checkpoint is and what of it fits: python tools/inspect_checkpoint.py CKPT [CONFIG]."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from projects.bevformer import compat  # noqa: E402, F401
from projects.bevformer.engine.checkpoint import load_checkpoint  # noqa: E402
from projects.bevformer.engine.checkpoint_summary import compare, describe  # noqa: E402
from projects.bevformer.engine.cli import tool_errors  # noqa: E402
from projects.bevformer.engine.config import load_config  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", help="any file of weights")
    parser.add_argument("config", nargs="?", help="the config that it is meant for")
    parser.add_argument("--keys", action="store_true", help="also list every name and shape")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    args = parser.parse_args()
    with tool_errors(args.debug):
        checkpoint = load_checkpoint(args.checkpoint)
        for what, value in describe(checkpoint, args.checkpoint):
            print(f"{what:15s} {value}")
        if args.keys:
            for name, value in checkpoint["state_dict"].items():
                print(f"{name} {tuple(value.shape)} {value.dtype}")
        if args.config is not None:
            print(f"\nin {args.config}:")
            for line in compare(checkpoint, args.checkpoint, load_config(args.config)):
                print(f"  {line}")


if __name__ == "__main__":
    main()

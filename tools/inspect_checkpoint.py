"""Describe a checkpoint, and how it fits: python tools/inspect_checkpoint.py CKPT [CONFIG]."""

import bootstrap  # noqa: F401

from projects.bevformer.cli.arguments import add_debug_argument, make_parser
from projects.bevformer.cli.errors import quiet_start, tool_errors


def main():
    parser = make_parser(__doc__)
    parser.add_argument("checkpoint", help="any file with weights")
    parser.add_argument("config", nargs="?", help="config to compare it with")
    parser.add_argument("--keys", action="store_true", help="also list every name and shape")
    add_debug_argument(parser)
    args = parser.parse_args()
    with tool_errors(args.debug):
        quiet_start()
        inspect(args)


def inspect(args):
    from projects.bevformer.engine.checkpoint import load_checkpoint
    from projects.bevformer.engine.checkpoint_summary import compare, describe
    from projects.bevformer.engine.config import load_config
    from projects.bevformer.engine.config_checks import check_sections
    from projects.bevformer.engine.non_finite import check_finite
    from projects.bevformer.messages import printable

    checkpoint = load_checkpoint(args.checkpoint, finite=False)
    for what, value in describe(checkpoint, args.checkpoint):
        print(printable(f"{what:15s} {value}"))
    if args.keys:
        for name, value in checkpoint["state_dict"].items():
            print(printable(f"{name} {tuple(value.shape)} {value.dtype}"))
    if args.config is not None:
        print(f"\nin {args.config}:")
        cfg = load_config(args.config)
        check_sections(cfg, ["model"])
        for line in compare(checkpoint, args.checkpoint, cfg):
            print(printable(f"  {line}"))
    check_finite(checkpoint, f"checkpoint {args.checkpoint}", most=100)


if __name__ == "__main__":
    main()

"""Keep the weights of a checkpoint: python tools/publish_model.py CHECKPOINT TARGET [--half] [--safetensors]."""

from pathlib import Path

import bootstrap  # noqa: F401

from projects.bevformer.cli.arguments import add_debug_argument, make_parser
from projects.bevformer.cli.errors import quiet_start, tool_errors


def main():
    parser = make_parser(__doc__)
    parser.add_argument("checkpoint", help="written by tools/train.py")
    parser.add_argument("target", type=Path, help="file to write, .pth or .safetensors")
    parser.add_argument("--half", action="store_true", help="matrices and kernels as float16")
    parser.add_argument("--safetensors", action="store_true", help="whatever the target is called")
    add_debug_argument(parser)
    args = parser.parse_args()
    with tool_errors(args.debug):
        quiet_start()
        from projects.bevformer.engine.checkpoint import publish_weights

        publish_weights(args.checkpoint, args.target, args.half, args.safetensors)
        print(f"{args.target}: {args.target.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()

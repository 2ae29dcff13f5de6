"""Train a detector: python tools/train.py CONFIG [--work-dir DIR] [--cfg-options KEY=VALUE ...].

Several processes: torchrun --nproc_per_node=8 tools/train.py CONFIG --launcher pytorch
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmcv import DictAction  # noqa: E402
from mmdet.utils import setup_multi_processes  # noqa: E402

from projects.bevformer import compat  # noqa: E402, F401
from projects.bevformer.engine.cli import (
    add_common_arguments,
    chosen_gpu,
    merge_deprecated,
    tool_errors,
)
from projects.bevformer.engine.config import load_config, resolve_work_dir  # noqa: E402
from projects.bevformer.engine.determinism import make_deterministic  # noqa: E402
from projects.bevformer.engine.distributed import init_process  # noqa: E402
from projects.bevformer.engine.train import train  # noqa: E402


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="config file")
    add_common_arguments(parser)
    parser.add_argument("--resume-from", help="checkpoint to go on from")
    parser.add_argument(
        "--auto-resume",
        action="store_true",
        help="go on from the newest sound checkpoint of the work dir",
    )
    parser.add_argument(
        "--no-validate", action="store_true", help="do not evaluate during training"
    )
    parser.add_argument("--diff-seed", action="store_true", help="add the rank to the seed")
    parser.add_argument(
        "--autoscale-lr", action="store_true", help="multiply the rate by processes / 8"
    )
    parser.add_argument(
        "--max-iters", type=int, help="train only so many iterations, then evaluate"
    )
    parser.add_argument("--gpus", type=int, help="deprecated and ignored: start with torchrun")
    parser.add_argument(
        "--options", nargs="+", action=DictAction, help="deprecated name of --cfg-options"
    )
    return parser.parse_args(argv)


def main():
    args = parse_args()
    with tool_errors(args.debug):
        options = merge_deprecated(args.cfg_options, args.options, "--options", "--cfg-options")
        cfg = load_config(args.config, options, args.data_root)
        if args.resume_from is not None:
            cfg.resume_from = args.resume_from
        resolve_work_dir(cfg, args.config, args.work_dir)
        setup_multi_processes(cfg)
        if args.deterministic:
            make_deterministic()  # before CUDA starts
        device = init_process(args.launcher, args.device, chosen_gpu(args))
        train(
            cfg,
            device,
            config_name=Path(args.config).name,
            validate=not args.no_validate,
            seed=args.seed,
            diff_seed=args.diff_seed,
            deterministic=args.deterministic,
            auto_resume=args.auto_resume,
            autoscale_lr=args.autoscale_lr,
            max_iters=args.max_iters,
        )


if __name__ == "__main__":
    main()

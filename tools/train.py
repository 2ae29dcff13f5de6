"""Train a detector: python tools/train.py CONFIG [--work-dir DIR] [--cfg-options KEY=VALUE ...].

Several processes: torchrun --nproc_per_node=8 tools/train.py CONFIG --launcher pytorch
"""

from pathlib import Path

import bootstrap  # noqa: F401

from projects.bevformer.cli.arguments import (
    add_options_argument,
    add_run_arguments,
    chosen_gpu,
    make_parser,
    merge_deprecated,
    parse_options,
)
from projects.bevformer.cli.errors import quiet_start, tool_errors


def parse_args(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("config", help="config file")
    add_run_arguments(parser)
    parser.add_argument("--resume-from", help="checkpoint to resume")
    parser.add_argument(
        "--auto-resume",
        action="store_true",
        help="resume the newest checkpoint of the work dir that can be read",
    )
    parser.add_argument(
        "--no-validate", action="store_true", help="do not evaluate during training"
    )
    parser.add_argument("--diff-seed", action="store_true", help="add the rank to the seed")
    parser.add_argument(
        "--autoscale-lr",
        action="store_true",
        help="scale the learning rate by processes x samples x accumulation / the batch that it is for "
        "(auto_scale_lr.base_batch_size of the config)",
    )
    parser.add_argument(
        "--max-iters",
        type=int,
        help="train this many iterations; intervals of --cfg-options, or with by_epoch=False, count "
        "iterations, where they count epochs the run saves and evaluates once, at its end",
    )
    parser.add_argument("--gpus", type=int, help="deprecated and ignored: start with torchrun")
    add_options_argument(parser, "--options", "deprecated name of --cfg-options")
    return parser.parse_args(argv)


def main():
    args = parse_args()
    with tool_errors(args.debug):
        quiet_start()
        run(args)


def run(args):
    from mmdet.utils import setup_multi_processes

    from projects.bevformer.engine.config import load_config, resolve_work_dir
    from projects.bevformer.engine.config_checks import check_config
    from projects.bevformer.engine.determinism import make_deterministic
    from projects.bevformer.engine.distributed import init_process, timeout_minutes
    from projects.bevformer.engine.train import train

    options = merge_deprecated(args.cfg_options, args.options, "--options", "--cfg-options")
    options = parse_options(options) or {}
    cfg = load_config(args.config, options, args.data_root)
    if args.resume_from is not None:
        cfg.resume_from = args.resume_from
    check_config(cfg, options)  # before anything acts on a value
    resolve_work_dir(cfg, args.config, args.work_dir)
    setup_multi_processes(cfg)
    if args.deterministic:
        make_deterministic()  # before CUDA starts
    device = init_process(args.launcher, args.device, chosen_gpu(args), timeout_minutes(cfg))
    train(
        cfg,
        device,
        config_name=Path(args.config).with_suffix(".py").name,
        validate=not args.no_validate,
        seed=cfg.get("seed") if args.seed is None else args.seed,
        diff_seed=args.diff_seed,
        deterministic=args.deterministic,
        auto_resume=args.auto_resume,
        autoscale_lr=args.autoscale_lr,
        max_iters=args.max_iters,
        given=options,
    )


if __name__ == "__main__":
    main()

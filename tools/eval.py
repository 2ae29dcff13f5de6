"""Evaluate a checkpoint: python tools/eval.py CONFIG CHECKPOINT [--eval bbox] [--show-dir DIR].

Several processes: torchrun --nproc_per_node=8 tools/eval.py CONFIG CHECKPOINT --launcher pytorch
An existing result file: python tools/eval.py CONFIG --results results_nusc.json
A part of the split: python tools/eval.py CONFIG CHECKPOINT --scenes scene-0103 | --fraction 0.1
Without --work-dir, results go to a folder eval_<checkpoint> next to the checkpoint (or result file).
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
    share,
)
from projects.bevformer.cli.errors import quiet_start, tool_errors


def parse_args(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("config", help="config file; data.test is evaluated")
    parser.add_argument("checkpoint", nargs="?", help="weights")
    parser.add_argument(
        "--results", metavar="FILE", help="score this results_nusc.json instead of a checkpoint"
    )
    add_run_arguments(parser)
    parser.add_argument(
        "--eval", nargs="+", metavar="METRIC", help="metrics of the data set [bbox]"
    )
    parser.add_argument(
        "--format-only",
        action="store_true",
        help="write results_nusc.json without a score (test split)",
    )
    parser.add_argument(
        "--devkit",
        action="store_true",
        help="score with the nuScenes devkit: slower, needs the tables, draws curves into plots/",
    )
    parser.add_argument(
        "--scenes", nargs="+", metavar="SCENE", help="evaluate these scenes only: names or tokens"
    )
    parser.add_argument(
        "--fraction",
        type=float,
        metavar="F",
        help="evaluate this share of the scenes only, evenly spaced and always the same ones, e.g. 0.1",
    )
    parser.add_argument("--out", help="also keep the raw results, a .pkl file")
    parser.add_argument("--show", action="store_true", help="not supported: use --show-dir")
    parser.add_argument("--show-dir", help="folder for <token>_bev.png and <token>_camera.png")
    parser.add_argument(
        "--show-samples", type=int, metavar="N", help="draw N evenly spaced samples [all]"
    )
    parser.add_argument("--show-score-thr", type=share, help="lowest score to draw [0.3]")
    parser.add_argument(
        "--fuse-conv-bn", action="store_true", help="merge BatchNorm into convolutions"
    )
    add_options_argument(
        parser, "--eval-options", "arguments of dataset.evaluate, e.g. jsonfile_prefix=DIR"
    )
    add_options_argument(parser, "--options", "deprecated name of --eval-options")
    parser.add_argument(
        "--gpu-collect",
        action="store_true",
        help="accepted and ignored: results are always gathered",
    )
    parser.add_argument("--tmpdir", help="accepted and ignored: gathering needs no files")
    return parser.parse_intermixed_args(argv)  # CHECKPOINT may follow an option


def check(args):
    """Refuse contradicting flags before anything slow happens."""
    if (args.checkpoint is None) == (args.results is None):
        raise ValueError("give either a checkpoint or --results FILE")
    if args.results is not None:
        for flag in ("format_only", "out", "show_dir"):
            if getattr(args, flag):
                raise ValueError(
                    f"--{flag.replace('_', '-')} needs predictions: it does not go with --results"
                )
        if args.launcher != "none":
            raise ValueError("--results is scored by one process: leave --launcher out")
    if args.scenes and args.fraction is not None:
        raise ValueError("--scenes and --fraction exclude each other: both choose the scenes")
    if args.fraction is not None and not 0 < args.fraction <= 1:
        raise ValueError(f"--fraction {args.fraction}: it must be above 0 and at most 1")
    if args.devkit and args.format_only:
        raise ValueError(
            "--devkit and --format-only exclude each other: --format-only scores nothing"
        )
    if args.eval and args.format_only:
        raise ValueError(
            "--eval and --format-only exclude each other: --format-only gives no score"
        )
    if args.out is not None and not args.out.endswith((".pkl", ".pickle")):
        raise ValueError(f"--out {args.out}: the file must end in .pkl or .pickle")
    if args.show:
        raise ValueError("--show needs a display: write pictures with --show-dir DIR")
    for flag in ("show_samples", "show_score_thr"):
        if getattr(args, flag) is not None and args.show_dir is None:
            raise ValueError(
                f"--{flag.replace('_', '-')} is about the pictures of --show-dir: give it"
            )
    if args.show_samples is not None and args.show_samples < 1:
        raise ValueError(f"--show-samples {args.show_samples}: it must be at least 1")


def main():
    args = parse_args()
    with tool_errors(args.debug):
        check(args)
        options = merge_deprecated(args.eval_options, args.options, "--options", "--eval-options")
        quiet_start()
        eval_options = parse_options(options) or {}
        unknown = set(eval_options) - {"jsonfile_prefix", "devkit"}
        if unknown:
            raise ValueError(
                f"--eval-options has {', '.join(sorted(unknown))}: only jsonfile_prefix and devkit exist"
            )
        for name, kind in (("jsonfile_prefix", str), ("devkit", bool)):
            if not isinstance(eval_options.get(name, kind()), kind):
                what = "the path of a folder" if kind is str else "True or False"
                raise ValueError(f"--eval-options {name}={eval_options[name]}: it must be {what}")
        evaluate(args, eval_options)


def evaluate(args, eval_options):
    from mmdet.utils import setup_multi_processes

    from projects.bevformer.datasets.scenes import keep_scenes
    from projects.bevformer.engine.config import load_config, resolve_work_dir
    from projects.bevformer.engine.config_checks import check_config
    from projects.bevformer.engine.data_loading import build_test_dataset, workers_per_process
    from projects.bevformer.engine.determinism import make_deterministic
    from projects.bevformer.engine.device import describe_device
    from projects.bevformer.engine.distributed import (
        get_rank,
        init_process,
        launched_as_first,
        shut_down,
        timeout_minutes,
    )
    from projects.bevformer.engine.evaluate import build_trained_model, evaluation_dir, predict
    from projects.bevformer.engine.log import get_run_logger
    from projects.bevformer.engine.report import metrics_table
    from projects.bevformer.engine.seed import choose_seed, set_seed
    from projects.bevformer.files.writing import check_output, make_folder

    options = parse_options(args.cfg_options) or {}
    cfg = load_config(args.config, options, args.data_root)
    check_config(cfg, options)
    if args.work_dir is not None:
        resolve_work_dir(cfg, args.config, args.work_dir)  # refuses one that cannot be written
    if launched_as_first():
        prefix = eval_options.get("jsonfile_prefix")
        folders = {"--show-dir": args.show_dir, "--eval-options jsonfile_prefix": prefix}
        for flag, folder in folders.items():
            if folder:
                make_folder(folder, flag)
        if args.out is not None:
            check_output(args.out, "--out", [args.config, args.checkpoint])
    setup_multi_processes(cfg)
    if args.deterministic:
        make_deterministic()  # before CUDA starts
    wanted = args.device if args.results is None else "cpu"  # scoring a file needs no GPU
    device = init_process(args.launcher, wanted, chosen_gpu(args), timeout_minutes(cfg))
    logger = get_run_logger(level=cfg.get("log_level", "INFO"))
    logger.info("device %s", describe_device(device))
    set_seed(choose_seed(args.seed), args.deterministic)

    def results_dir():
        if args.work_dir is not None:
            return Path(args.work_dir)
        relevant = ("eval", "scenes", "fraction", "fuse_conv_bn")
        options = {name: getattr(args, name, None) for name in relevant}
        return evaluation_dir(cfg, args.config, args.checkpoint or args.results, options)

    dataset = build_test_dataset(cfg, "test")
    if args.scenes or args.fraction is not None:
        logger.info(keep_scenes(dataset, args.scenes, args.fraction))
    if args.results is not None:
        out_dir = results_dir()
        summary = dataset.evaluator.score_file(args.results, str(out_dir), devkit=args.devkit)
        print(metrics_table(summary))
        print(f"results: {out_dir / 'metrics_summary.json'}")
        return
    devkit = args.devkit or eval_options.get("devkit", False)
    if not args.format_only:  # before predicting, which takes long
        dataset.evaluator.check(args.eval or "bbox", devkit)
    detector = build_trained_model(
        cfg, args.checkpoint, dataset, device, logger, fuse=args.fuse_conv_bn
    )
    rank, out_dir = get_rank(), None
    if rank == 0:  # before the predictions, which take long
        out_dir = Path(eval_options.get("jsonfile_prefix") or results_dir())
    results = predict(detector, dataset, device, workers_per_process(cfg))
    shut_down()  # drawing can take longer than the others would wait
    if rank == 0:
        report(args, dataset, results, out_dir, devkit)


def report(args, dataset, results, out_dir, devkit):
    import mmcv

    from projects.bevformer.engine.pictures import draw_samples, spaced
    from projects.bevformer.engine.report import metrics_table
    from projects.bevformer.files.writing import atomic_write

    if args.out is not None:
        with atomic_write(args.out, "wb") as file:
            mmcv.dump(results, file, file_format="pkl")
        print(f"raw results: {args.out}")
    if args.show_dir is not None:
        drawn = {i: results[i]["pts_bbox"] for i in spaced(len(results), args.show_samples)}
        threshold = 0.3 if args.show_score_thr is None else args.show_score_thr
        draw_samples(dataset, drawn, args.show_dir, threshold)
        print(f"pictures: {args.show_dir}")
    if args.format_only:
        written = dataset.evaluator.write(results, str(out_dir))
        print(f"results: {', '.join(str(path) for path in written.values() if path) or out_dir}")
        return
    metric = args.eval or "bbox"
    summary = dataset.evaluator.score(results, str(out_dir), metric, devkit=devkit)
    print(metrics_table(summary))
    files = [out_dir / "results_nusc.json", out_dir / "metrics_summary.json"]
    print(f"results: {', '.join(str(path) for path in files if path.exists())}")


if __name__ == "__main__":
    main()

"""Draw samples of a config's test set: bird's-eye view and cameras, predictions and ground truth.

    python tools/visualize.py CONFIG RESULTS --out-dir DIR [--num-samples N | --samples TOKEN ...]
    python tools/visualize.py CONFIG --ground-truth-only --out-dir DIR

RESULTS is the pickle of `tools/eval.py --out` or a results_nusc.json. Two files per sample:
<token>_bev.png and <token>_camera.png, blue for predictions, green for ground truth.
"""

import bootstrap  # noqa: F401

from projects.bevformer.cli.arguments import add_config_arguments, make_parser, parse_options, share
from projects.bevformer.cli.errors import quiet_start, tool_errors


def parse_args():
    parser = make_parser(__doc__)
    parser.add_argument("config", help="config file; its data.test is drawn")
    parser.add_argument("results", nargs="?", help="results .pkl or results_nusc.json")
    parser.add_argument("--ground-truth-only", action="store_true", help="needs no results")
    parser.add_argument("--out-dir", required=True, help="folder for the pictures")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument(
        "--num-samples",
        type=int,
        default=10,
        help="number of samples, evenly spaced over the set [10]; 0 draws all",
    )
    chosen.add_argument(
        "--samples", nargs="+", metavar="TOKEN", help="tokens of the samples to draw"
    )
    parser.add_argument("--score-thr", type=share, default=0.3, help="lowest score to draw [0.3]")
    add_config_arguments(parser)
    args = parser.parse_intermixed_args()  # RESULTS may follow an option
    if args.ground_truth_only and args.results:
        parser.error("--ground-truth-only takes no results file")
    if not args.ground_truth_only and not args.results:
        parser.error("give a results file, or --ground-truth-only")
    if args.num_samples < 0:
        parser.error(f"--num-samples {args.num_samples} is negative")
    return args


def visualize(args):
    from projects.bevformer.engine.config import load_config
    from projects.bevformer.engine.data_loading import build_test_dataset
    from projects.bevformer.engine.pictures import choose_samples, draw_samples
    from projects.bevformer.files.writing import make_folder
    from projects.bevformer.visualization import load_results

    cfg = load_config(args.config, parse_options(args.cfg_options), args.data_root)
    make_folder(args.out_dir, "--out-dir")
    dataset = build_test_dataset(cfg)
    infos = dataset.data_infos
    results = None
    if not args.ground_truth_only:
        own = getattr(dataset, "own_benchmark", None)
        results = load_results(args.results, infos, dataset.CLASSES, own)
    indices = choose_samples(infos, results, args.samples, args.num_samples)
    found = {i: results[infos[i]["token"]] if results is not None else None for i in indices}
    draw_samples(dataset, found, args.out_dir, args.score_thr)
    print(f"{2 * len(indices)} pictures in {args.out_dir}")


def main():
    args = parse_args()
    with tool_errors(args.debug):
        quiet_start()
        visualize(args)


if __name__ == "__main__":
    main()

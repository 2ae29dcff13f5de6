"""Draw the input of the network: python tools/browse_dataset.py CONFIG --out DIR.

Three files per sample:
  <token>_queue.png    the images of the queue's frames
  <token>_cameras.png  the last frame, boxes where the network's matrices put them
  <token>_bev.png      boxes, earlier ego positions by the motion that the network receives, and
                       which camera sees which cells of the BEV
"""

from pathlib import Path

import bootstrap  # noqa: F401

from projects.bevformer.cli.arguments import add_config_arguments, make_parser, parse_options, seed
from projects.bevformer.cli.errors import quiet_start, tool_errors


def parse_args(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("config", help="config file")
    parser.add_argument("--out", required=True, type=Path, help="folder for the pictures")
    parser.add_argument(
        "--split", choices=["train", "val", "test"], default="train",
        help="which data set of the config [train]",
    )  # fmt: skip
    parser.add_argument(
        "--samples", type=int, default=4, metavar="N",
        help="number of samples, evenly spaced over the set [4]; 0 draws all",
    )  # fmt: skip
    parser.add_argument("--seed", type=seed, default=0, help="of augmentation and queues [0]")
    add_config_arguments(parser)
    args = parser.parse_args(argv)
    if args.samples < 0:
        parser.error(f"--samples {args.samples} is negative")
    return args


def main():
    args = parse_args()
    with tool_errors(args.debug):
        quiet_start()
        browse(args)


def browse(args):
    from projects.bevformer.engine.build import data_sets_inside
    from projects.bevformer.engine.config import load_config
    from projects.bevformer.engine.config_checks import check_config
    from projects.bevformer.engine.data_loading import build_test_dataset, build_train_dataset
    from projects.bevformer.engine.pictures import draw_network_inputs, spaced
    from projects.bevformer.engine.seed import set_seed
    from projects.bevformer.files.writing import make_folder

    options = parse_options(args.cfg_options) or {}
    cfg = load_config(args.config, options, args.data_root)
    check_config(cfg, options)
    make_folder(args.out, "--out")
    set_seed(args.seed)
    if args.split == "train":
        dataset = build_train_dataset(cfg)
    else:
        dataset = build_test_dataset(cfg, args.split)
    drawn, chosen = 0, 0
    for part in data_sets_inside(dataset):  # --samples of each, where data.train joins several
        drawn += len(draw_network_inputs(cfg, part, args.samples, args.out))
        chosen += len(spaced(len(part), args.samples))
    print(f"{3 * drawn} pictures in {args.out}")
    skipped = chosen - drawn
    if skipped:
        print(f"{skipped} samples have no object left: training draws another one for them")


if __name__ == "__main__":
    main()

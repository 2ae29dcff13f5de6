"""Draw the input of the network, after the pipeline: python tools/browse_dataset.py CONFIG --out DIR.

Three files a sample:
  <token>_queue.png    the images of the queue's frames
  <token>_cameras.png  the last frame, boxes where the network's matrices put them
  <token>_bev.png      boxes, earlier ego positions by the motion that the network gets, and
                       which cells of the BEV are seen by which camera
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmcv import DictAction  # noqa: E402

from projects.bevformer import compat  # noqa: E402, F401
from projects.bevformer.engine.cli import tool_errors  # noqa: E402
from projects.bevformer.engine.config import load_config  # noqa: E402
from projects.bevformer.engine.data_loading import build_test_dataset, build_train_dataset
from projects.bevformer.engine.pictures import draw_network_inputs, spaced  # noqa: E402
from projects.bevformer.engine.seed import set_seed  # noqa: E402


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="config file")
    parser.add_argument("--out", required=True, type=Path, help="folder for the pictures")
    parser.add_argument(
        "--split", choices=["train", "val", "test"], default="train",
        help="which data set of the config [train]",
    )  # fmt: skip
    parser.add_argument(
        "--samples", type=int, default=4, metavar="N",
        help="so many, evenly spaced over the set [4]; 0 draws all",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of augmentation and queues [0]")
    parser.add_argument(
        "--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE",
        help="override config keys",
    )  # fmt: skip
    parser.add_argument(
        "--data-root", help="where the data set lies, whatever the config and the info files say"
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    args = parser.parse_args(argv)
    if args.samples < 0:
        parser.error(f"--samples {args.samples} is negative")
    return args


def main():
    args = parse_args()
    with tool_errors(args.debug):
        browse(args)


def browse(args):
    cfg = load_config(args.config, args.cfg_options, args.data_root)
    set_seed(args.seed)
    if args.split == "train":
        dataset = build_train_dataset(cfg)
    else:
        dataset = build_test_dataset(cfg, args.split)
    drawn = draw_network_inputs(cfg, dataset, args.samples, args.out)
    print(f"{3 * len(drawn)} pictures in {args.out}")
    skipped = len(spaced(len(dataset), args.samples)) - len(drawn)
    if skipped:
        print(f"{skipped} samples have no object left: training draws another one for them")


if __name__ == "__main__":
    main()

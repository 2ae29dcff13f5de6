"""Draw what the network gets, after the pipeline: python tools/browse_dataset.py CONFIG --out DIR.

Three files a sample:
  <token>_queue.png    the images of the queue's frames
  <token>_cameras.png  the last frame, boxes where the network's matrices put them
  <token>_bev.png      boxes, earlier ego positions by the motion that the network is told, and
                       which cells of the BEV are seen by which camera
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2  # noqa: E402
import numpy as np  # noqa: E402
from mmcv import DictAction  # noqa: E402

from projects.bevformer import compat  # noqa: E402, F401
from projects.bevformer.engine.bev_inputs import (
    build_preprocessor,
    ego_track,
    network_input,
    seen_cells,
)
from projects.bevformer.engine.cli import tool_errors  # noqa: E402
from projects.bevformer.engine.config import load_config  # noqa: E402
from projects.bevformer.engine.data_loading import build_test_dataset, build_train_dataset
from projects.bevformer.engine.log import progress_bar  # noqa: E402
from projects.bevformer.engine.seed import set_seed  # noqa: E402
from projects.bevformer.visualization.network_input import (
    draw_input_bev,
    draw_input_cameras,
    draw_queue,
)


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
    preprocessor = build_preprocessor(cfg)
    args.out.mkdir(parents=True, exist_ok=True)
    indices = np.arange(len(dataset))
    if 0 < args.samples < len(indices):
        indices = np.linspace(0, len(dataset) - 1, args.samples).round().astype(int)
    # Once, and not for each sample: reading all records of nuScenes takes seconds.
    times_us = {info["token"]: info["timestamp"] for info in dataset.data_infos}
    skipped = 0
    for index in progress_bar(indices, "drawing", "sample"):
        sample = network_input(dataset, index, preprocessor)
        if sample is None:
            skipped += 1
        else:
            draw(args.out, cfg, dataset, dataset.data_infos[index], sample, times_us)
    print(f"{3 * (len(indices) - skipped)} pictures in {args.out}")
    if skipped:
        print(f"{skipped} samples have no object left: training draws another one for them")


def draw(out_dir, cfg, dataset, info, sample, times_us):
    last = sample.frames[-1]
    queue = [
        (caption(frame, (times_us[frame.token] - times_us[last.token]) / 1e6), frame.images_bgr)
        for frame in sample.frames
    ]
    cv2.imwrite(str(out_dir / f"{last.token}_queue.png"), draw_queue(queue))
    cameras = draw_input_cameras(info, last.images_bgr, last.lidar2img, sample.ground_truth)
    cv2.imwrite(str(out_dir / f"{last.token}_cameras.png"), cameras)
    bev = draw_input_bev(
        info,
        sample.ground_truth,
        seen_cells(cfg, last),
        cfg.model.pts_bbox_head.transformer.encoder.pc_range,
        *ego_track(sample.frames),
        class_names=dataset.CLASSES,
    )
    bev.canvas.print_png(str(out_dir / f"{last.token}_bev.png"))


def caption(frame, seconds):
    """Time of a frame and what the network is told of the way since the frame before."""
    if not frame.has_history:
        return f"{seconds:+.2f} s, starts anew"
    moved, turned = np.linalg.norm(frame.can_bus[:2]), frame.can_bus[17]
    return f"{seconds:+.2f} s, moved {moved:.2f} m, turned {turned:+.2f} deg"


if __name__ == "__main__":
    main()

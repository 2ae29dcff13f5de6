"""Draw the input of the network: python tools/browse_dataset.py CONFIG --out DIR.

Three files per sample:
  <token>_queue.png    the images of the queue's frames
  <token>_cameras.png  the last frame, boxes where the network's matrices put them
  <token>_bev.png      boxes, earlier ego positions by the motion that the network receives, and
                       which camera sees which cells of the BEV
"""

import math
from pathlib import Path

import bootstrap  # noqa: F401

from projects.bevformer.cli.arguments import add_config_arguments, make_parser, parse_options
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
    parser.add_argument("--seed", type=int, default=0, help="of augmentation and queues [0]")
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
    import numpy as np

    from projects.bevformer.engine.bev_inputs import build_preprocessor, network_input
    from projects.bevformer.engine.config import load_config
    from projects.bevformer.engine.data_loading import build_test_dataset, build_train_dataset
    from projects.bevformer.engine.log import progress_bar
    from projects.bevformer.engine.seed import set_seed

    cfg = load_config(args.config, parse_options(args.cfg_options), args.data_root)
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
    import cv2

    from projects.bevformer.engine.bev_inputs import ego_track, seen_cells
    from projects.bevformer.visualization.network_input import (
        draw_input_bev,
        draw_input_cameras,
        draw_queue,
    )

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
    """Time of a frame and its motion since the previous frame, as the network receives it."""
    if not frame.has_history:
        return f"{seconds:+.2f} s, starts anew"
    moved, turned = math.hypot(*frame.can_bus[:2]), frame.can_bus[17]
    return f"{seconds:+.2f} s, moved {moved:.2f} m, turned {turned:+.2f} deg"


if __name__ == "__main__":
    main()

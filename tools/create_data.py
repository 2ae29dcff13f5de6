#!/usr/bin/env python
"""nuScenes tables and CAN bus -> the info files that training and evaluation read.

python tools/create_data.py nuscenes --root-path ./data/nuscenes --out-dir ./data/nuscenes \
    --extra-tag nuscenes --version v1.0 --canbus ./data
"""

import argparse
import contextlib
import os
import signal
import sys

import bootstrap  # noqa: F401

from projects.bevformer.cli.arguments import add_debug_argument
from projects.bevformer.cli.errors import tool_errors
from projects.bevformer.files.writing import make_folder
from projects.bevformer.messages import file_name, printable
from projects.bevformer.nuscenes.spec import TABLE_FOLDERS


def parse_args():
    parser = argparse.ArgumentParser(description="Write nuScenes info files.")
    parser.add_argument("dataset", choices=["nuscenes"], help="name of the data set")
    parser.add_argument("--root-path", default="./data/nuscenes", help="nuScenes root")
    parser.add_argument("--out-dir", default="./data/nuscenes", help="folder for the info files")
    parser.add_argument("--extra-tag", default="nuscenes", help="first part of the file names")
    parser.add_argument(
        "--version", default="v1.0", choices=list(TABLE_FOLDERS), help="v1.0 is trainval and test"
    )
    parser.add_argument("--canbus", default="./data", help="folder that contains can_bus")
    parser.add_argument(
        "--max-sweeps",
        type=int,
        default=0,
        help="lidar sweeps listed per frame; camera models need none",
    )
    parser.add_argument(
        "--keep-scenes-without-images",
        action="store_true",
        help="keep frames whose image files are missing",
    )
    parser.add_argument(
        "--format",
        choices=["lwh_yaw", "official"],
        default="lwh_yaw",
        help="official: boxes, can_bus and paths as the original BEVFormer and what derives from it read them",
    )
    parser.add_argument(
        "--mono3d", action="store_true",
        help="also write the boxes of each image for mmdet3d's monocular detectors",
    )  # fmt: skip
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count(),
        help="processes; one per CPU core if not given",
    )
    add_debug_argument(parser)
    return parser.parse_args()


def check(args):
    """Refuse what would fail, or do nothing, after minutes of work."""
    if args.max_sweeps < 0:
        raise ValueError(f"--max-sweeps {args.max_sweeps}: it must be 0 or more")
    if file_name(args.extra_tag) != args.extra_tag:
        raise ValueError(
            f"--extra-tag {args.extra_tag!r} must be the first part of a file name; folders go "
            "into --out-dir"
        )
    make_folder(args.out_dir, "--out-dir")


@contextlib.contextmanager
def ended_by_sigterm():
    """Let SIGTERM end the tool as Ctrl-C does: partial files are removed, worker processes end."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main():
    args = parse_args()
    from tqdm import tqdm

    from projects.bevformer.nuscenes.create_infos import create_nuscenes_infos

    with tool_errors(args.debug), ended_by_sigterm():
        check(args)
        summary = create_nuscenes_infos(
            root_path=args.root_path,
            out_dir=args.out_dir,
            extra_tag=args.extra_tag,
            version=args.version,
            canbus=args.canbus,
            max_sweeps=args.max_sweeps,
            workers=args.workers,
            need_images=not args.keep_scenes_without_images,
            official=args.format == "official",
            progress=lambda scenes, total: tqdm(scenes, "scenes", total, unit="scene"),
        )
        if args.mono3d:
            from _mono3d import write_mono3d

            for path in summary.frames:
                write_mono3d(path, args.root_path, args.workers)

    for path, frames in summary.frames.items():
        print(f"{path}: {frames} frames")
        if frames == 0:
            print(
                f"warning: {path} is empty: no scene of that split is in the tables with its images"
            )
    _report("have no CAN bus, their can_bus is zeros", summary.scenes_without_can_bus)
    _report("have no camera images and are left out", summary.scenes_without_images)
    _report("are in no split and are left out", summary.scenes_in_no_split)


def _report(what, scenes):
    names = f": {', '.join(scenes)}" if scenes else ""
    print(printable(f"{len(scenes)} scenes {what}{names}"))


if __name__ == "__main__":
    main()

"""Make a synthetic data set in the nuScenes layout: see docs/synthetic_world.md."""

import argparse
import functools
import re
import sys
from pathlib import Path

import bootstrap  # noqa: F401

from projects.synthetic_nuscenes.cameras import NUSCENES_RIG, camera_ring
from projects.synthetic_nuscenes.data_set import (
    MINI_VAL,
    VERSIONS,
    create_data_set,
    create_tables_only,
    scene_names,
    scenes_of_splits,
)


def image_size(text):
    """(height, width) of "450x800"."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH, such as 450x800")
    return int(match.group(1)), int(match.group(2))


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--out-dir", type=Path, default=Path("data/synthetic"), help="data root")
    parser.add_argument(
        "--tables-only", action="store_true",
        help="no images and no lidar files, only tables and CAN bus to measure tools on",
    )  # fmt: skip
    parser.add_argument(
        "--version", choices=VERSIONS, help="v1.0-mini, or v1.0-trainval with --tables-only"
    )
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes")
    parser.add_argument(
        "--image-size", type=image_size, default=(450, 800), metavar="HEIGHTxWIDTH",
        help="size of the images",
    )  # fmt: skip
    parser.add_argument("--frames-per-scene", type=int, default=40, help="key frames, at 2 Hz")
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--scenes", nargs="+", metavar="scene-NNNN",
        help="only these scenes; a number is the same as --num-scenes",
    )  # fmt: skip
    group.add_argument(
        "--num-scenes", type=int,
        help="the first scenes of the version's splits: one in five, and of two or more at least one, is "
        f"of val ({' and '.join(MINI_VAL)} in v1.0-mini, whose other scenes are train)",
    )  # fmt: skip
    parser.add_argument(
        "--cameras", type=int, metavar="N",
        help="a ring of N cameras around the vehicle; nuScenes' six if not given",
    )  # fmt: skip
    parser.add_argument("--workers", type=int, help="processes; one per CPU core if not given")
    parser.add_argument("--force", action="store_true", help="replace the data set in --out-dir")
    args = parser.parse_args()
    if args.tables_only and args.cameras is not None:
        parser.error("--cameras does not go with --tables-only, which has the cameras of nuScenes")
    return args


def main():
    args = parse_args()
    version = args.version or ("v1.0-trainval" if args.tables_only else "v1.0-mini")
    scenes, count = args.scenes, args.num_scenes
    if scenes and len(scenes) == 1 and scenes[0].isdigit():
        scenes, count = None, int(scenes[0])
    try:
        scenes = scenes or scene_names(version, count)
        create = create_tables_only
        if not args.tables_only:
            cameras = NUSCENES_RIG if args.cameras is None else camera_ring(args.cameras)
            create = functools.partial(create_data_set, image_hw=args.image_size, cameras=cameras)
        root = create(
            args.out_dir,
            version=version,
            seed=args.seed,
            frames_per_scene=args.frames_per_scene,
            scenes=scenes,
            workers=args.workers,
            force=args.force,
        )
    except (ValueError, OSError) as error:
        sys.exit(f"create_synthetic: {error}")
    print(f"wrote {root}")
    for split, names in scenes_of_splits(version, scenes).items():
        more = ", ..." if len(names) > 10 else ""
        print(f"{len(names)} scenes of {split}{': ' * bool(names)}{', '.join(names[:10])}{more}")
        if not names:
            print(
                f"warning: the info file of {split} will hold no frames, and training with evaluation "
                "needs both: take --num-scenes 2 or more, or name scenes of both splits"
            )


if __name__ == "__main__":
    main()

"""Cost of reading data, compared with the plain way in the same run: python benchmarks/bench_data.py [--quick]

- a training sample of four frames at 900x1600: the default recipe's pipeline and the published one
- an info record: tools/create_data.py and the devkit's functions sample by sample
- a data worker: the records of the train split as bytes and as a list of dicts

Results of both ways are compared before they are timed. Times are processor time of one thread, minimum
of the repetitions, taken in turns. Nothing is downloaded: pictures and tables are made up.
"""

import argparse
import json
import multiprocessing
import pickle
import platform
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from mmcv.parallel import collate

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

from devkit_infos import devkit_info  # noqa: E402

from projects.bevformer.datasets import TemporalNuScenesDataset  # noqa: E402
from projects.bevformer.engine.config import load_config  # noqa: E402
from projects.bevformer.model.image_preprocessor import ImagePreprocessor  # noqa: E402
from projects.bevformer.nuscenes.create_infos import create_nuscenes_infos  # noqa: E402
from projects.bevformer.nuscenes.info_list import InfoList  # noqa: E402
from projects.bevformer.nuscenes.infos import load_infos  # noqa: E402
from projects.bevformer.nuscenes.spec import CAMERAS, CLASSES  # noqa: E402
from projects.synthetic_nuscenes.data_set import create_tables_only, scene_names  # noqa: E402

TRAIN_SIZE = 28_130  # key frames of nuScenes' train split
QUEUE = 4
VERSION = "v1.0-trainval"


def cpu_seconds(function):
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


# A training sample


def make_pictures(infos, root):
    """Write a picture for each camera of each record, about as large as those of nuScenes."""
    random = np.random.default_rng(0)
    sizes = []
    for info in infos:
        for name in CAMERAS:
            coarse = random.integers(0, 256, (24, 43, 3), dtype=np.uint8)
            picture = cv2.resize(coarse, (1600, 900), interpolation=cv2.INTER_CUBIC)
            grain = random.integers(-3, 4, picture.shape[:2])[..., None]
            picture = np.clip(picture + grain, 0, 255).astype(np.uint8)
            path = root / info["cams"][name]["data_path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), picture, [cv2.IMWRITE_JPEG_QUALITY, 75])
            sizes.append(path.stat().st_size)
    return float(np.mean(sizes))


def bench_sample(infos, root, write_infos, repetitions):
    picture_bytes = make_pictures(infos, root)
    recipes = {
        "bytes": load_config(ROOT / "configs" / "config.py"),
        "published": load_config(ROOT / "configs" / "bevformer" / "bevformer_base.py"),
    }
    ann_file = write_infos(infos)
    datasets = {
        name: TemporalNuScenesDataset(
            ann_file,
            pipeline=cfg.data.train.pipeline,
            data_root=str(root),
            classes=CLASSES,
            queue_length=QUEUE,
            use_valid_flag=True,
            filter_empty_gt=False,
        )
        for name, cfg in recipes.items()
    }

    def batch(name, seed):
        np.random.seed(seed)
        return collate([datasets[name][len(infos) - 1]], samples_per_gpu=1)

    preprocessor_cfg = dict(recipes["bytes"].model.data_preprocessor)
    preprocessor_cfg.pop("type")
    preprocessor = ImagePreprocessor(**preprocessor_cfg)
    # One frame: its draws do not depend on how the frames before it were read.
    for dataset in datasets.values():
        dataset.queue_length = 1
    raw, ready = (batch(name, 1) for name in ("bytes", "published"))
    images, _ = preprocessor(raw["img"].data[0][:, 0], [raw["img_metas"].data[0][0][0]])
    torch.testing.assert_close(images, ready["img"].data[0][:, 0], rtol=1e-4, atol=1e-2)
    for dataset in datasets.values():
        dataset.queue_length = QUEUE

    times = {name: [] for name in datasets}
    for seed in range(repetitions):
        for name, values in times.items():
            values.append(cpu_seconds(lambda name=name, seed=seed: batch(name, seed))[0])
    best = {name: 1e3 * min(values) for name, values in times.items()}
    return {
        "ms_bytes": best["bytes"],
        "ms_published": best["published"],
        "ratio": best["published"] / best["bytes"],
        "mean_picture_bytes": picture_bytes,
        "mib_passed_on_bytes": QUEUE * 6 * 900 * 1600 * 3 / 2**20,
        "mib_passed_on_published": QUEUE * 6 * 928 * 1600 * 3 * 4 / 2**20,
    }


# Info records


def bench_create(root, out_dir, devkit_samples):
    from nuscenes.nuscenes import NuScenes

    def create(sweeps):
        folder = out_dir / f"sweeps_{sweeps}"
        summary = create_nuscenes_infos(
            str(root), str(folder), "b", VERSION, str(root), max_sweeps=sweeps, need_images=False
        )
        return folder, sum(summary.frames.values())

    seconds, (folder, frames) = cpu_seconds(lambda: create(0))
    with_sweeps, _ = create(10)
    infos = load_infos(str(folder / "b_infos_temporal_train.pkl"))[0]
    size, size_with_sweeps = (
        sum(path.stat().st_size for path in f.iterdir()) for f in (folder, with_sweeps)
    )

    load_seconds, nusc = cpu_seconds(lambda: NuScenes(VERSION, str(root), verbose=False))
    step = max(1, len(infos) // devkit_samples)
    chosen = infos[::step][:devkit_samples]
    tokens = [info["token"] for info in chosen]
    loop_seconds, expected = cpu_seconds(
        lambda: [devkit_info(nusc, nusc.get("sample", t), root / "can_bus") for t in tokens]
    )
    for info, other in zip(chosen, expected):
        for key in ("gt_boxes", "gt_velocity", "can_bus"):
            np.testing.assert_allclose(info[key], other[key], rtol=1e-9, atol=1e-9)
    ours, devkit = 1e3 * seconds / frames, 1e3 * loop_seconds / len(chosen)
    return infos, {
        "frames": frames,
        "ms_per_frame": ours,  # tables, CAN bus, records and writing the files
        "ms_per_frame_devkit": devkit,  # the loop only
        "ms_per_frame_devkit_tables": 1e3 * load_seconds / frames,
        "ratio": devkit / ours,
        "kib_per_frame": size / frames / 1024,
        "kib_per_frame_with_sweeps": size_with_sweeps / frames / 1024,
        "smaller_by": 1 - size / size_with_sweeps,
    }


# Data workers


def _own_mib():
    """MiB of this process that no other one shares."""
    with open("/proc/self/smaps_rollup") as file:
        sizes = dict(line.split(":") for line in file if "kB" in line)
    return sum(int(sizes[key].split()[0]) for key in ("Private_Clean", "Private_Dirty")) / 1024


def _read_all(records, results):
    for record in records:
        assert record["token"]
    results.put(_own_mib())


def bench_worker(infos):
    """Memory of a worker that has read every record of a train split once."""

    def records():
        for number in range(TRAIN_SIZE):
            info = infos[number % len(infos)]
            # A copy in depth: a real list shares nothing between its records.
            yield {**InfoList([info])[0], "token": str(number)}

    sizes = {}
    for name, make in (("bytes", InfoList), ("list", list)):
        held = make(records())
        context = multiprocessing.get_context("fork")
        results = context.SimpleQueue()
        worker = context.Process(target=_read_all, args=(held, results))
        worker.start()
        sizes[f"worker_mib_{name}"] = results.get()
        worker.join()
        if name == "bytes":
            sizes["shared_mib"] = held.nbytes / 2**20
        del held
    return sizes


def table(results):
    """The figures as Markdown."""
    sample, create, worker = results["sample"], results["create_data"], results["worker"]
    return "\n".join(
        [
            "| | here | plain way | |",
            "|---|---|---|---|",
            f"| CPU of a training sample, {QUEUE} frames at 900x1600, ms | {sample['ms_bytes']:.0f} | "
            f"{sample['ms_published']:.0f} (published pipeline) | {sample['ratio']:.1f}x |",
            f"| bytes to the device, MiB | {sample['mib_passed_on_bytes']:.0f} | "
            f"{sample['mib_passed_on_published']:.0f} | |",
            f"| CPU of an info record, tables included, ms | {create['ms_per_frame']:.2f} | "
            f"{create['ms_per_frame_devkit']:.1f} (devkit, without tables) | {create['ratio']:.1f}x |",
            f"| info file, KiB per frame | {create['kib_per_frame']:.1f} | "
            f"{create['kib_per_frame_with_sweeps']:.1f} (10 sweeps) | -{create['smaller_by']:.0%} |",
            f"| memory of a further worker, MiB | {worker['worker_mib_bytes']:.1f} | "
            f"{worker['worker_mib_list']:.0f} (list of dicts) | |",
        ]
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small tables, few repetitions")
    parser.add_argument("--tables", type=Path, help="data root to read instead of making one up")
    parser.add_argument("--out", type=Path, help="write the figures there as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)

    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        root = args.tables
        if root is None:
            root = create_tables_only(
                scratch / "tables",
                scenes=scene_names(VERSION, 5 if args.quick else 40),
                workers=1,
                show_progress=False,
            )
        infos, create = bench_create(root, scratch / "infos", 20 if args.quick else 200)

        def write_infos(records):
            path = scratch / "infos.pkl"
            metadata = {"version": VERSION, "box_convention": "lwh_yaw"}
            path.write_bytes(pickle.dumps({"infos": records, "metadata": metadata}))
            return str(path)

        sample = bench_sample(infos[:5], scratch, write_infos, 3 if args.quick else 10)
        worker = bench_worker(infos)

    results = {
        "machine": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "opencv": cv2.__version__,
            "processor": platform.processor() or platform.machine(),
        },
        "sample": sample,
        "create_data": create,
        "worker": worker,
    }
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(results, indent=2) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()

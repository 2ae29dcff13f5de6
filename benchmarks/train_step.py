"""Time and memory of training steps and of inference, on random images and a nuScenes-like rig.

    python benchmarks/train_step.py [--quick] [--device cpu] [--out work_dirs/benchmarks/train_step.json]

For BEVFormer-base with every preset of presets.py: milliseconds of a step (forward, backward,
clipping, AdamW), frames a second of inference, the most memory allocated and reserved on a GPU, and
what memory_model.py computes for the same step. `--quick` takes a small network and few steps.
"""

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import common  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from presets import BF16, PRESETS  # noqa: E402

from projects.bevformer import plugin  # noqa: E402, F401
from projects.bevformer.datasets.pipelines.color import DrawColorDistortion  # noqa: E402
from projects.bevformer.engine.config import load_config  # noqa: E402
from projects.bevformer.engine.precision import set_compute_format  # noqa: E402
from projects.bevformer.engine.training_model import TrainingModel, total_loss  # noqa: E402
from projects.bevformer.geometry.can_bus import CAN_SIZE
from projects.synthetic_nuscenes.cameras import draw_rig  # noqa: E402

from mmcv.runner import build_optimizer  # noqa: E402  isort: skip
from mmdet3d.core.bbox import LiDARInstance3DBoxes  # noqa: E402  isort: skip
from mmdet3d.models import build_model  # noqa: E402  isort: skip

# (config, pictures as the pipeline hands them on, steps to warm up, steps that are timed)
FULL = ("configs/config.py", (900, 1600), 5, 20)
QUICK = ("configs/demo.py", (64, 96), 1, 2)
GROUND_TRUTHS = 40


def camera_matrices(image_hw):
    """Six (4, 4) float64 lidar2img of a rig placed as in nuScenes."""
    rig = draw_rig(image_hw, np.random.RandomState(0))
    matrices = []
    for camera in rig.cameras.values():
        lidar2cam = np.linalg.inv(camera.camera2ego) @ rig.lidar2ego
        cam2img = np.eye(4)
        cam2img[:3, :3] = camera.intrinsic
        matrices.append(cam2img @ lidar2cam)
    return matrices


def make_meta(frame, image_hw):
    """A meta of a car that drives straight ahead."""
    can_bus = np.zeros(CAN_SIZE)
    can_bus[0] = 5.0 * frame
    return dict(
        can_bus=can_bus,
        lidar2img=camera_matrices(image_hw),
        img_shape=[(*image_hw, 3)] * 6,
        scene_token="scene",
        sample_idx=str(frame),
        color_distortion=DrawColorDistortion()({"img": [None] * 6})["color_distortion"],
        prev_bev_exists=frame > 0,
        box_type_3d=LiDARInstance3DBoxes,
    )


def random_images(detector, leading, image_hw, device):
    """Images of six cameras in the form that a detector takes; `leading` are the dimensions before."""
    if detector.data_preprocessor is None:
        return torch.randn(*leading, 6, 3, *image_hw, device=device)
    return torch.randint(256, (*leading, 6, *image_hw, 3), dtype=torch.uint8, device=device)


def make_batch(detector, frames, image_hw, device):
    """Arguments of a training step of one sample."""
    rng = np.random.RandomState(0)
    least, most = (-50, -50, -2, 0.5, 0.5, 0.5, -3, -5, -5), (50, 50, 0, 5, 2, 2, 3, 5, 5)
    boxes = rng.uniform(least, most, (GROUND_TRUTHS, 9))
    return dict(
        img=random_images(detector, (1, frames), image_hw, device),
        img_metas=[{t: make_meta(t, image_hw) for t in range(frames)}],
        gt_bboxes_3d=[LiDARInstance3DBoxes(torch.from_numpy(boxes).float(), box_dim=9)],
        gt_labels_3d=[torch.from_numpy(rng.randint(0, 10, GROUND_TRUTHS)).long()],
    )


def build(config, options, device):
    """The detector of a recipe with random weights, and the recipe."""
    cfg = load_config(common.ROOT / config, options)
    cfg.model.pretrained = None
    torch.manual_seed(0)
    detector = build_model(cfg.model)
    detector.init_weights()
    set_compute_format(detector, cfg, device, _Quiet())
    return detector, cfg


class _Quiet:
    """A logger that logs nothing."""

    def info(self, *args):
        pass


def timed(function, device, warm_up, rounds):
    """Milliseconds of each round; a GPU is waited for at both ends."""
    times = []
    for number in range(warm_up + rounds):
        _wait(device)
        start = time.perf_counter()
        function()
        _wait(device)
        if number >= warm_up:
            times.append(1000 * (time.perf_counter() - start))
    return {"median_ms": statistics.median(times), "least_ms": min(times), "most_ms": max(times)}


def _wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def training(setting, options, device):
    """Time and memory of the training steps of a recipe."""
    config, image_hw, warm_up, rounds = setting
    detector, cfg = build(config, options, device)
    model = TrainingModel(detector.train(), device)
    optimizer = build_optimizer(detector, cfg.optimizer)
    batch = make_batch(detector, cfg.data.train.queue_length, image_hw, device)
    losses = []

    def step():
        loss, _ = total_loss(model.step(return_loss=True, **batch))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 35)
        optimizer.step()
        losses.append(loss.detach())

    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    result = timed(step, device, warm_up, rounds)
    if device.type == "cuda":
        result["allocated_mib"] = torch.cuda.max_memory_allocated(device) / 2**20
        result["reserved_mib"] = torch.cuda.max_memory_reserved(device) / 2**20
    result["losses_finite"] = bool(torch.isfinite(torch.stack(losses)).all())
    return result


def inference(setting, options, device):
    """Frames a second of a stream of one."""
    config, image_hw, warm_up, rounds = setting
    detector, _ = build(config, options, device)
    detector.to(device).eval()
    images = random_images(detector, (1,), image_hw, device)
    frames = iter(range(warm_up + rounds))

    def frame():
        with torch.no_grad():
            metas = [make_meta(next(frames), image_hw)]
            detector(return_loss=False, img=[images], img_metas=[metas])

    result = timed(frame, device, warm_up, rounds)
    return {**result, "frames_per_s": 1000 / result["median_ms"]}


def modelled(config, presets):
    """MiB that memory_model.py computes for presets of a recipe; None without torch 2.1."""
    if importlib.util.find_spec("torch._subclasses.fake_tensor") is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "memory.json"
        script = Path(__file__).with_name("memory_model.py")
        options = ["--config", common.ROOT / config, "--presets", *presets, "--out", out]
        subprocess.run([sys.executable, script, *options], check=True, stdout=subprocess.PIPE)
        return {case["preset"]: case["peak"] for case in json.loads(out.read_text())["cases"]}


def measure(device, quick=False):
    """All of it, for a JSON file.

    Args:
        device: torch.device.
        quick: a small network and few steps.
    """
    setting = QUICK if quick else FULL
    result = {"training": {}, "inference": {}, "config": setting[0], "image_hw": setting[1]}
    for name, options in {**PRESETS, "bf16, no checkpoints": BF16}.items():
        result["training"][name] = training(setting, options, device)
    for name, options in {"float32": {}, "bfloat16": BF16}.items():
        result["inference"][name] = inference(setting, options, device)
    if device.type == "cuda" and not quick:
        result["modelled_mib"] = modelled(setting[0], PRESETS)
    return result


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="[%(default)s]")
    parser.add_argument("--quick", action="store_true", help="a small network and few steps")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/benchmarks/train_step.json"))
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    result = {**common.environment(device), **measure(device, args.quick)}
    common.write_json(args.out, result)
    columns = ["median_ms", "allocated_mib", "reserved_mib"]
    rows = [
        [name, *(round(case[column]) if column in case else "-" for column in columns)]
        for name, case in result["training"].items()
    ]
    print(common.table(["training", "ms per step", "MiB allocated", "MiB reserved"], rows))
    for name, case in result["inference"].items():
        print(f"inference {name}: {case['frames_per_s']:.1f} frames a second")


if __name__ == "__main__":
    main()

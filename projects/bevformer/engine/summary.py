"""The lines that a training run starts with."""

from __future__ import annotations

import torch
from mmcv import Config
from torch import nn
from torch.utils.data import DataLoader

from projects.bevformer.engine.build import data_sets_inside
from projects.bevformer.engine.data_sections import info_files, inner_sections
from projects.bevformer.engine.device import describe_device
from projects.bevformer.engine.memory import training_mib
from projects.bevformer.engine.optimizer import total_batch
from projects.bevformer.engine.pretrained import pretrained_files
from projects.bevformer.model.detection.head import BEVFormerHead
from projects.bevformer.nuscenes.info_list import column


def run_summary(
    cfg: Config, detector: nn.Module, loader: DataLoader, device: torch.device, seed: int
) -> str:
    """A run in some lines: data, network, schedule and machine.

    Values are those that count: of the parts that were built, and of a config in which the command line,
    `--max-iters` and `--autoscale-lr` have had their effect.

    Args:
        cfg: with `work_dir` and `runner` set, as the run uses it; `evaluation` None for a run without.
        detector: of `build_detector`, with `CLASSES` and `CAMERAS`.
        loader: of the training set.
        device: of this process.
        seed: of the run.
    """
    lr_config, mib = cfg.get("lr_config") or {}, training_mib(cfg)
    warmup = f" after {lr_config.get('warmup_iters', 0)} warm-up iterations"
    warmup = warmup if lr_config.get("warmup") else ""
    dtype = str(getattr(detector, "autocast_dtype", None) or torch.float32).replace("torch.", "")
    deterministic = ", deterministic" if torch.backends.cudnn.deterministic else ""
    cameras = getattr(detector, "CAMERAS", None)
    rows = {
        "data": _data(cfg, loader.dataset.dataset),
        "classes": f"{len(detector.CLASSES)}: {', '.join(detector.CLASSES)}",
        "cameras": f"{len(cameras)}: {', '.join(cameras)}" if cameras else "not named by the data",
        "images": _images(cfg),
        "network": _network(cfg, detector),
        "range": _range(detector),
        "start": _start(cfg),
        "batch": _batch(cfg, loader),
        "optimizer": f"{cfg.optimizer.type}, lr {_rate(cfg.optimizer)}, "
        f"{lr_config.get('policy', 'constant')}{warmup}",
        "length": _length(cfg.runner, len(loader)),
        "intervals": _intervals(cfg),
        "precision": f"{dtype}, TF32 {'on' if cfg.get('tf32') else 'off'}, deformable attention: "
        f"{cfg.get('deform_attn_backend') or 'chosen by device'}",
        "device": f"{describe_device(device)}; seed {seed}{deterministic}",
        "memory": f"about {mib / 1024:.1f} GiB of a GPU" if mib else "no figure for this network",
        "work dir": cfg.work_dir,
    }
    return "\n".join(f"  {what:10s} {value}" for what, value in rows.items())


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "es" if what.endswith("s") else "s")


def _data(cfg: Config, dataset: object) -> str:
    where, held_out = (
        ", ".join(
            path
            for _, options in inner_sections(cfg.data.get(split) or {}, f"data.{split}")
            for path in info_files(options) or [str(options.get("type"))]
        )
        for split in ("train", "val")
    )
    text = f"{where}: {_count(len(dataset), 'sample')}"
    inner = [part for part in data_sets_inside(dataset) if hasattr(part, "data_infos")]
    if inner:
        scenes = {token for part in inner for token in column(part.data_infos, "scene_token")}
        text += f" in {_count(len(scenes), 'scene')}"
    return f"{text}; validation {held_out}"


def _images(cfg: Config) -> str:
    on_device = cfg.model.get("data_preprocessor")
    _, options = next(inner_sections(cfg.data.train, "data.train"))
    steps = [step for step in options.get("pipeline") or () if isinstance(step, dict)]
    scale, text = (on_device or {}).get("scale", 1.0), []
    for step in steps:
        if step.get("type") == "RandomScaleImageMultiViewImage":
            scale *= step.get("scales", [1.0])[0]
        crop = step.get("data_aug_conf") or {}
        if {"crop", "reisze"} <= set(crop):
            text.append(f"cut to {tuple(crop['crop'])}, {crop['reisze']} pixels high")
    text.append("full size" if scale == 1 else f"scaled by {scale:g}")
    for step in [on_device] if on_device else steps:
        if {"mean", "std"} <= set(step):
            order = "RGB" if step.get("to_rgb", True) else "BGR"
            text.append(f"{order} minus {list(step['mean'])}, divided by {list(step['std'])}")
    return ", ".join([*text, "on the model's device" if on_device else "by the data workers"])


def _range(detector: nn.Module) -> str:
    head = getattr(detector, "pts_bbox_head", None)
    if not isinstance(head, BEVFormerHead):
        return "of a head that is not this project's"
    coder = head.bbox_coder
    x0, y0, z0, x1, y1, z1 = (f"{side:g}" for side in coder.pc_range)
    return (
        f"x {x0} to {x1}, y {y0} to {y1}, z {z0} to {z1} m; {head.bev_h} x {head.bev_w} BEV cells; "
        f"at most {coder.max_num} boxes of {head.num_query} queries"
    )


def _rate(optimizer: dict) -> str:
    rate = optimizer.get("lr", "by default")
    patterns = (optimizer.get("paramwise_cfg") or {}).get("custom_keys") or {}
    factors = [f"{key} x {to['lr_mult']:g}" for key, to in patterns.items() if "lr_mult" in to]
    text = rate if isinstance(rate, str) else f"{rate:g}"
    return text + (f" ({', '.join(factors)})" if factors else "")


def _intervals(cfg: Config) -> str:
    text = []
    for section, what in (("checkpoint_config", "checkpoint"), ("evaluation", "evaluation")):
        options = cfg.get(section)
        if not options:
            text.append(f"no {what}")
            continue
        by_epoch = options.get("by_epoch", cfg.runner.get("type") != "IterBasedRunner")
        every = _count(options.get("interval", 1), "epoch" if by_epoch else "iteration")
        start = f" from {options['start']} on" if options.get("start") else ""
        text.append(f"{what} every {every}{start}")
    if cfg.get("log_config"):
        text.append(f"log every {_count(cfg.log_config.interval, 'iteration')}")
    return ", ".join(text)


def _network(cfg: Config, detector: nn.Module) -> str:
    backbone, head = (cfg.model.get(part) or {} for part in ("img_backbone", "pts_bbox_head"))
    transformer = head.get("transformer") or {}
    parts = [cfg.model.type]
    if backbone:
        parts.append("-".join(str(backbone[key]) for key in ("type", "depth") if key in backbone))
    if "bev_h" in head:
        parts.append(f"BEV {head.bev_h} x {head.bev_w} x {transformer.get('embed_dims', 256)}")
    for part in ("encoder", "decoder"):
        if part in transformer:
            parts.append(f"{transformer[part].get('num_layers')} {part} layers")
    weights = list(detector.parameters())
    millions, trained = (
        sum(weight.numel() for weight in some) / 1e6
        for some in (weights, [weight for weight in weights if weight.requires_grad])
    )
    return ", ".join([*parts, f"{millions:.1f} M parameters ({trained:.1f} M trained)"])


def _start(cfg: Config) -> str:
    pretrained = dict.fromkeys(pretrained_files(cfg.model).values())
    named = (
        ("resumed from", cfg.get("resume_from")),
        ("weights of", cfg.get("load_from")),
        ("pretrained weights of", ", ".join(pretrained)),
    )
    return next((f"{what} {path}" for what, path in named if path), "random weights")


def _batch(cfg: Config, loader: DataLoader) -> str:
    samples, processes, accumulated = total_batch(cfg, loader.batch_size)
    queue = getattr(data_sets_inside(loader.dataset.dataset)[0], "queue_length", None)
    return (
        f"{_count(samples, 'sample')}{f' of {queue} frames' if queue else ''} x "
        f"{_count(processes, 'process')} x {accumulated} accumulated = "
        f"{samples * processes * accumulated}; "
        f"{_count(loader.num_workers, 'data worker')} per process"
    )


def _length(runner: dict, iterations: int) -> str:
    epochs = runner.get("max_epochs")
    if epochs is None:
        return f"{runner.get('max_iters')} iterations ({iterations} are an epoch)"
    return f"{epochs} epochs of {iterations} iterations = {epochs * iterations}"

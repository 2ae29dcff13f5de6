"""The lines that a training run starts with."""

from __future__ import annotations

import torch
from mmcv import Config
from torch import nn
from torch.utils.data import DataLoader, Dataset

from projects.bevformer.engine.device import describe_device
from projects.bevformer.engine.distributed import get_world_size
from projects.bevformer.engine.memory import training_mib


def run_summary(
    cfg: Config, detector: nn.Module, loader: DataLoader, device: torch.device, seed: int
) -> str:
    """A run in a dozen lines: data, network, schedule and machine.

    Args:
        cfg: with `work_dir` and `runner` set, as the run uses it.
        detector: of `build_detector`, with `CLASSES` and `CAMERAS`.
        loader: of the training set.
        device: of this process.
        seed: of the run.
    """
    dataset = loader.dataset.dataset
    rows = {
        "data": _data(cfg, dataset),
        "classes": _names(detector.CLASSES),
        "cameras": _names(detector.CAMERAS),
        "network": _network(cfg, detector),
        "start": _start(cfg),
        "batch": _batch(cfg, loader),
        "optimizer": _optimizer(cfg),
        "length": _length(cfg, len(loader)),
        "precision": _precision(cfg, detector),
        "device": f"{describe_device(device)}; seed {seed}{_deterministic()}",
        "memory": _memory(cfg),
        "work dir": cfg.work_dir,
    }
    return "\n".join(f"  {what:10s} {value}" for what, value in rows.items())


def _data(cfg: Config, dataset: Dataset) -> str:
    train, val = (cfg.data.get(split) or {} for split in ("train", "val"))
    scenes = getattr(dataset, "scene_tokens", None)
    if scenes is None:
        scenes = [info["scene_token"] for info in dataset.data_infos]
    text = f"{train.get('ann_file', train.get('type'))}: {_count(len(dataset), 'sample')} in {_count(len(set(scenes)), 'scene')}"
    return f"{text}; validation {val.get('ann_file', val.get('type'))}" if val else text


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "es" if what.endswith("s") else "s")


def _names(names: list[str]) -> str:
    return f"{len(names)}: {', '.join(names)}"


def _network(cfg: Config, detector: nn.Module) -> str:
    backbone, head = (cfg.model.get(part) or {} for part in ("img_backbone", "pts_bbox_head"))
    transformer = head.get("transformer") or {}
    encoder, decoder = (transformer.get(part) or {} for part in ("encoder", "decoder"))
    weights = list(detector.parameters())
    millions, trained = (
        sum(weight.numel() for weight in some) / 1e6
        for some in (weights, [weight for weight in weights if weight.requires_grad])
    )
    parts = [cfg.model.type]
    if backbone:
        parts.append(f"{backbone.type}-{backbone.depth}" if "depth" in backbone else backbone.type)
    if "bev_h" in head:
        parts.append(f"BEV {head.bev_h} x {head.bev_w} x {transformer.get('embed_dims', 256)}")
    layers = [part.get("num_layers") for part in (encoder, decoder)]
    if all(layers):
        parts.append(f"{layers[0]} encoder and {layers[1]} decoder layers")
    return ", ".join([*parts, f"{millions:.1f} M parameters ({trained:.1f} M trained)"])


def _start(cfg: Config) -> str:
    pretrained = (cfg.model.get("pretrained") or {}).get("img")
    backbone = (cfg.model.get("img_backbone") or {}).get("init_cfg") or {}
    for what, path in (
        ("resumed from", cfg.get("resume_from")),
        ("weights of", cfg.get("load_from")),
        ("backbone of", pretrained or backbone.get("checkpoint")),
    ):
        if path:
            return f"{what} {path}"
    return "random weights"


def _batch(cfg: Config, loader: DataLoader) -> str:
    steps = (cfg.get("optimizer_config") or {}).get("cumulative_iters", 1)
    processes = get_world_size()
    total = loader.batch_size * processes * steps
    queue = (cfg.data.train or {}).get("queue_length")
    frames = f" of {queue} frames" if queue else ""
    return (
        f"{_count(loader.batch_size, 'sample')}{frames} x {_count(processes, 'process')} x "
        f"{steps} accumulated = {total}; {_count(loader.num_workers, 'data worker')} per process"
    )


def _optimizer(cfg: Config) -> str:
    lr_config = cfg.get("lr_config") or {}
    text = f"{cfg.optimizer.get('type')}, lr {cfg.optimizer.get('lr')}"
    if lr_config.get("policy"):
        text += f", {lr_config.policy}"
    if lr_config.get("warmup"):
        text += f" after {lr_config.warmup_iters} warm-up iterations"
    return text


def _length(cfg: Config, iterations: int) -> str:
    epochs = cfg.runner.get("max_epochs")
    if epochs is None:
        return f"{cfg.runner.get('max_iters')} iterations ({iterations} are an epoch)"
    return f"{epochs} epochs of {iterations} iterations = {epochs * iterations}"


def _precision(cfg: Config, detector: nn.Module) -> str:
    dtype = getattr(detector, "autocast_dtype", None) or torch.float32
    backend = cfg.get("deform_attn_backend") or "chosen by device"
    tf32 = "on" if cfg.get("tf32") else "off"
    return f"{str(dtype).replace('torch.', '')}, TF32 {tf32}, deformable attention: {backend}"


def _deterministic() -> str:
    return ", deterministic" if torch.backends.cudnn.deterministic else ""


def _memory(cfg: Config) -> str:
    mib = training_mib(cfg)
    return "no figure for this network" if mib is None else f"about {mib / 1024:.1f} GiB of a GPU"

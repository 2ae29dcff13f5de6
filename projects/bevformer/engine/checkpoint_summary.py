"""A description of a checkpoint file, and how it fits a config."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from mmcv import Config

from projects.bevformer.engine.build import build_detector
from projects.bevformer.engine.checkpoint import fit_checkpoint
from projects.bevformer.engine.provenance import disagreements, stamp_of
from projects.bevformer.engine.weight_fit import WeightFit, by_prefix, without_wrapper
from projects.bevformer.files.writing import followed

_VOVNET = ("VoVNet", "stem.stem_1/conv.weight")
_VOVNETS = {(1, 1, 1, 1): 19, (1, 1, 2, 2): 39, (1, 1, 4, 3): 57, (1, 3, 9, 3): 99}
_RESNETS = {
    ("basic", (2, 2, 2, 2)): "ResNet-18",
    ("basic", (3, 4, 6, 3)): "ResNet-34",
    ("bottleneck", (3, 4, 6, 3)): "ResNet-50",
    ("bottleneck", (3, 4, 23, 3)): "ResNet-101",
}


def describe(checkpoint: dict, path: str | Path) -> list[tuple[str, str]]:
    """The content of a checkpoint.

    Args:
        checkpoint: what `load_checkpoint` returned.
        path: its file.

    Returns:
        list of (what, value) strings.
    """
    weights, meta = without_wrapper(checkpoint["state_dict"]), checkpoint["meta"]
    stamp, origin = stamp_of(checkpoint)
    progress = [f"{key} {meta[key]}" for key in ("epoch", "iter") if key in meta]
    rows = [
        ("file", f"{path}{_size(followed(path))}"),
        ("kind", _kind(weights)),
        ("weights", _count(weights)),
        ("optimizer", "with its state" if "optimizer" in checkpoint else "none: cannot be resumed"),
        ("trained", ", ".join([*progress, f"origin {origin}"])),
        ("trained with", ", ".join(f"{k} {v}" for k, v in stamp.items()) or "not stamped"),
        ("classes", ", ".join(meta.get("CLASSES") or ["not stamped"])),
        ("cameras", ", ".join(meta.get("CAMERAS") or ["not stamped"])),
    ]
    if "raw_weights" in checkpoint:
        rows.insert(
            3,
            ("average", "the weights are averaged; the raw ones, for resuming, are in raw_weights"),
        )
    return rows + _architecture(weights)


def compare(checkpoint: dict, path: str | Path, cfg: Config) -> list[str]:
    """How a checkpoint fits the model of a config.

    Args:
        checkpoint: what `load_checkpoint` returned.
        path: its file.
        cfg: mmcv.Config.

    Returns:
        list of lines; only the first where everything fits.

    Raises:
        ValueError: the config's model cannot be built.
    """
    detector = build_detector(cfg)
    own = detector.state_dict()
    fit = WeightFit(checkpoint["state_dict"], own)
    lines = [f"{len(fit.fitting)} of {len(own)} weights of the model are in the file"]
    lines += [*fit.notes, *fit.left_over()]
    try:
        fit_checkpoint(checkpoint, own, path, complete=False)
        lines += fit.alarming()
    except ValueError as error:
        lines.append(str(error))
    test = (cfg.get("data") or {}).get("test") or {}
    classes = test.get("classes") if isinstance(test, dict) else None
    trained_for = checkpoint["meta"].get("CLASSES")
    if classes and trained_for and list(classes) != list(trained_for):
        lines.append(f"trained for the classes {list(trained_for)}, the config has {list(classes)}")
    try:
        lines += disagreements(checkpoint, path, cfg, detector)
    except ValueError as error:
        lines.append(str(error))
    return lines


def _size(path):
    return f", {path.stat().st_size / 2**20:.1f} MiB" if path.is_file() else ""  # else a URL


def _kind(weights):
    prefixes = {name.split(".")[0] for name in weights}
    if any(name.startswith("pts_bbox_head.transformer.encoder.") for name in weights):
        return "BEVFormer"
    if {"img_backbone", "backbone"} & prefixes:
        return "a detector, but not BEVFormer: its backbone can be a start (load_from)"
    for name, mark in (("ResNet", "conv1.weight"), ("ResNet", "layer1.0.conv1.weight"), _VOVNET):
        if mark in weights:
            return f"a bare {name}: a start for load_from, img_backbone.init_cfg, model.pretrained"
    return f"unknown: {by_prefix(weights)}"


def _count(weights):
    dtypes = Counter(str(value.dtype).replace("torch.", "") for value in weights.values())
    numbers = sum(value.numel() for value in weights.values())
    kinds = ", ".join(f"{count} {name}" for name, count in dtypes.most_common())
    return f"{numbers / 1e6:.2f} M numbers in {len(weights)} tensors ({kinds})"


def _architecture(weights):
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    levels = len(_found(r"img_neck\.fpn_convs\.(\d+)\.conv\.weight", shapes))
    row, column = (
        shapes.get(f"pts_bbox_head.positional_encoding.{axis}_embed.weight")
        for axis in ("row", "col")
    )
    layers = {
        part: len(_found(rf"pts_bbox_head\.transformer\.{part}\.layers\.(\d+)\.", shapes))
        for part in ("encoder", "decoder")
    }
    queries = shapes.get("pts_bbox_head.query_embedding.weight")
    rows = [
        ("backbone", _backbone(shapes)),
        ("neck", levels and f"{levels} level(s)"),
        ("BEV", row and column and f"{row[0]} x {column[0]}, {2 * row[1]} channels"),
        *((part, count and f"{count} layers") for part, count in layers.items()),
        ("object queries", queries and str(queries[0])),
    ]
    return [(what, value) for what, value in rows if value]


def _backbone(shapes):
    """`ResNet-101 with DCNv2 in layer3, layer4`, `VoVNet V2-99`, or None."""
    prefix = r"(?:img_backbone\.|backbone\.(?:bottom_up\.)?)?"
    blocks = tuple(len(_found(rf"{prefix}stage{i}\.OSA{i}_(\d+)\.", shapes)) for i in range(2, 6))
    if blocks[0]:
        return f"VoVNet V2-{_VOVNETS.get(blocks, blocks)}"
    stages = (_found(rf"{prefix}layer{i}\.(\d+)\.conv1\.weight", shapes) for i in range(1, 5))
    blocks = tuple(map(len, stages))
    if not blocks[0]:
        return None
    kind = "bottleneck" if _found(rf"{prefix}layer1\.(0)\.conv3\.weight", shapes) else "basic"
    sizes = "-".join(str(count) for count in blocks if count)
    name = _RESNETS.get((kind, blocks), f"ResNet of {sizes} {kind} blocks")
    deformable = sorted(_found(rf"{prefix}(layer\d)\.\d+\.conv2\.conv_offset", shapes))
    return f"{name} with DCNv2 in {', '.join(deformable)}" if deformable else name


def _found(pattern, names):
    """Different values of the group of a pattern among the beginnings of names."""
    return {match.group(1) for match in (re.match(pattern, name) for name in names) if match}

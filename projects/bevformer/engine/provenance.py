"""What a checkpoint was trained with, and whether that fits a config.

Most mistakes show in the shapes. Those found here load without an error and silently cost accuracy:
the box convention, and the quirks of the original that its weights depend on
(docs/checkpoint_compatibility.md).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from mmcv import Config
from mmcv.utils import digit_version
from torch import nn

from projects.bevformer.datasets.motion import QUIRKS
from projects.bevformer.engine.build import vehicle_of_grid
from projects.bevformer.engine.checkpoint_checks import head_of_other_classes, other_classes
from projects.bevformer.engine.data_sections import inner_sections
from projects.bevformer.engine.weight_fit import WeightFit
from projects.bevformer.geometry.boxes import BOX_CONVENTION_NEW, BOX_CONVENTION_OLD
from projects.bevformer.published import REPLACED_TYPES

STAMP = "trained_with"  # key in a checkpoint's meta
_MOTION = "can_bus_mlp"  # in the names of weights that depend on how the motion is given

# Of `QUIRKS`, those that the weights depend on.
_DATASET_QUIRKS = ("can_bus_quaternion", "can_bus_message", "can_bus_heading", "lidar_axes")
_OFFICIAL = {
    "box_convention": BOX_CONVENTION_OLD,
    "rotate_center": [100.0, 100.0],
    **{name: "official" for name in _DATASET_QUIRKS},
}
_NEW_CONVENTION_SINCE = "1.0.0rc0"  # mmdet3d


def training_stamp(cfg: Config, detector: nn.Module, split: str = "train") -> dict:
    """Settings that weights depend on and that do not show in their shapes.

    Args:
        cfg: mmcv.Config of a BEVFormer.
        detector: the network that was built from it.
        split: key in `data`.

    Returns:
        dict of plain values: box_convention (of the network), rotate_center (column, row; left out for
        a head that does not say what grid it has), can_bus_quaternion, can_bus_message, can_bus_heading,
        lidar_axes, replaced_parts (types that parts of the user take the place of). Empty for a model
        without a BEV.

    Raises:
        ValueError: data sets inside the split disagree.
    """
    head = getattr(detector, "pts_bbox_head", None)
    if head is None:
        return {}
    centre = getattr(getattr(head, "transformer", None), "rotate_center", None)
    centre = vehicle_of_grid(head) if centre is None else centre
    return {
        "box_convention": BOX_CONVENTION_OLD,
        **({"rotate_center": [float(number) for number in centre]} if centre else {}),
        **_dataset_quirks(cfg.data.get(split, {}), f"data.{split}"),
        "replaced_parts": sorted(REPLACED_TYPES),
    }


def _dataset_quirks(section: Any, key: str) -> dict:
    """Those of the data sets inside a section of `data`, which must agree."""
    quirks = {
        inner: {name: options.get(name, QUIRKS[name][0]) for name in _DATASET_QUIRKS}
        for inner, options in inner_sections(section, key)
    }
    (first_key, first), *others = quirks.items()
    for other_key, other in others:
        for name in first:
            if first[name] != other[name]:
                raise ValueError(
                    f"{first_key}.{name} is {first[name]!r} and {other_key}.{name} is "
                    f"{other[name]!r}: the data sets that a network trains on must agree"
                )
    return first


def trained_with(meta: dict) -> tuple[dict, str]:
    """The training stamp of a checkpoint.

    Args:
        meta: the checkpoint's `meta`.

    Returns:
        stamp: as `training_stamp`; the official values for a file of the original, the box
            convention only for a file of another project on mmdet3d >= 1.0, empty where nothing is
            known.
        origin: "this project", "mmdet3d 0.17.1" or "unknown".
    """
    if STAMP in meta:
        return meta[STAMP], "this project"
    version = meta.get("mmdet3d_version")
    if version is None:
        return {}, "unknown"
    if digit_version(version) < digit_version(_NEW_CONVENTION_SINCE):
        return dict(_OFFICIAL), f"mmdet3d {version}"
    return {"box_convention": BOX_CONVENTION_NEW}, f"mmdet3d {version}"


def stamp_of(checkpoint: dict) -> tuple[dict, str]:
    """`trained_with` of a checkpoint, of which only what its weights depend on.

    A backbone depends on nothing, a network without a history (BEVFormer v2, which has no
    `can_bus_mlp`) not on how the motion is given.
    """
    (stamp, origin), weights = trained_with(checkpoint["meta"]), checkpoint["state_dict"]
    if not any("pts_bbox_head.reg_branches" in name for name in weights):
        return {}, origin
    if not any(_MOTION in name for name in weights):
        of_motion = ("rotate_center", *_DATASET_QUIRKS)
        stamp = {name: value for name, value in stamp.items() if name not in of_motion}
    return stamp, origin


def check_same_classes(checkpoint: dict, path: str | Path, detector: nn.Module) -> None:
    """Raise ValueError if a checkpoint that is resumed is of other classes, or another order."""
    difference = other_classes(checkpoint, path, detector)
    if difference is not None:
        raise ValueError(
            f"{difference}: a run is resumed with its own classes; set them back, or start a new run from "
            "the weights (--cfg-options load_from=FILE load_from_other_classes=True)"
        )


def check_start(
    checkpoint: dict, path: str | Path, cfg: Config, detector: nn.Module, logger: logging.Logger
) -> None:
    """Refuse weights of as many other classes as a start, without `load_from_other_classes`.

    A backbone and a neck depend on no classes. A head of another number of classes has other shapes, of
    which `load_weights` loads nothing.

    Args:
        checkpoint: what `load_checkpoint` returned.
        path: its file, for messages.
        cfg: mmcv.Config.
        detector: the network.
        logger: receives a warning where the switch is set.

    Raises:
        ValueError: the classes are other ones, or in another order.
    """
    fitting = WeightFit(checkpoint["state_dict"], detector.state_dict()).fitting
    difference = head_of_other_classes(checkpoint, path, detector, fitting)
    if difference is None:
        return
    if not cfg.get("load_from_other_classes", False):
        raise ValueError(
            f"{difference}: what the head has learned of one class would count for another; set the "
            "classes as in the file, or start from it anyway with `--cfg-options "
            "load_from_other_classes=True`"
        )
    logger.warning("%s: used as a start anyway (load_from_other_classes)", difference)


def check_provenance(
    checkpoint: dict,
    path: str | Path,
    cfg: Config,
    detector: nn.Module,
    logger: logging.Logger,
    split: str = "test",
) -> None:
    """Compare a checkpoint with the config that is to run it, before anything runs.

    Args:
        checkpoint: what `load_checkpoint` returned.
        path: its file, for messages.
        cfg: mmcv.Config.
        detector: the network that was built from it.
        logger: receives one warning per quirk that differs.
        split: key in `data` whose options count.

    Raises:
        ValueError: the weights use another box convention.
    """
    for line in disagreements(checkpoint, path, cfg, detector, split):
        logger.warning(line)


def disagreements(
    checkpoint: dict, path: str | Path, cfg: Config, detector: nn.Module, split: str = "test"
) -> list[str]:
    """The lines that `check_provenance` logs; same arguments and errors."""
    stamp, origin = stamp_of(checkpoint)
    wanted = training_stamp(cfg, detector, split)
    has_history = any(_MOTION in name for name in checkpoint["state_dict"])
    unofficial = any(wanted.get(name, value) != value for name, value in _OFFICIAL.items())
    if has_history and not stamp and unofficial:
        return [
            f"checkpoint {path} does not say what it was trained with: official weights need the "
            "quirks that the recipes of configs/bevformer/ set "
            "(docs/checkpoint_compatibility.md#quirks-that-the-weights-depend-on)"
        ]
    convention = stamp.get("box_convention")
    if wanted and convention not in (None, wanted["box_convention"]):
        raise ValueError(
            f"checkpoint {path} was trained with {origin}, whose boxes are {convention}; this "
            f"network uses {wanted['box_convention']}, and would swap length and width and rotate "
            "every box: convert the last layer of each reg_branch, or use the official weights "
            "(docs/checkpoint_compatibility.md#box-convention)"
        )
    return [
        f"checkpoint {path} was trained with {name} = {stamp[name]}, this config has "
        f"{wanted[name]} (docs/checkpoint_compatibility.md#quirks-that-the-weights-depend-on)"
        for name in sorted(wanted)
        if name in stamp and stamp[name] != wanted[name]
    ]

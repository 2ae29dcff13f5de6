"""Building the network of a config, for training, evaluation, inspection and the doctor."""

from __future__ import annotations

import contextlib
import copy
import logging
from inspect import signature
from typing import Any, Iterator, Sequence

from mmcv import Config
from mmdet.models.utils.builder import TRANSFORMER
from mmdet3d.models import build_model
from torch import nn
from torch.utils.data import Dataset

from projects.bevformer.engine.config import config_errors
from projects.bevformer.engine.pretrained import checked_pretrained, noted_pretrained
from projects.bevformer.engine.weight_fit import some_of
from projects.bevformer.geometry.bev_grid import vehicle_cell


def build_detector(
    cfg: Config, dataset: Dataset | None = None, pretrained: bool = False
) -> nn.Module:
    """The network of a config, on the CPU.

    Args:
        cfg: has `model`. It is not modified.
        dataset: its classes and cameras are checked against the config and kept as `CLASSES` and
            `CAMERAS` of the network. The number of cameras is taken from it where the config has no
            `num_cams`.
        pretrained: keep `model.pretrained`, for `init_weights`; otherwise a checkpoint follows.

    Raises:
        ValueError: a wrong key (the message names the section), the config is for another number of
            classes or cameras than the data set, or the history would not turn about the vehicle.
    """
    with config_errors("model"):
        model_cfg = copy.deepcopy(cfg.model)
        model_cfg.update({} if pretrained else {"pretrained": None})
    # A data set from elsewhere may not name its cameras.
    cameras = getattr(data_sets_inside(dataset)[0], "cameras", None)
    if dataset is not None:
        _check_num_classes(model_cfg, dataset.CLASSES)
    if cameras is not None:
        _set_num_cams(model_cfg, cameras)
    with config_errors("model"), noted_pretrained():  # files are read by init_weights only
        detector = build_model(model_cfg, cfg.get("train_cfg"), cfg.get("test_cfg"))
    _check_rotate_center(detector)
    if dataset is not None:
        detector.CLASSES = list(dataset.CLASSES)
    if cameras is not None:
        detector.CAMERAS = list(cameras)
    return detector


def data_sets_inside(dataset: Any) -> list[Any]:
    """The data sets inside wrappers such as RepeatDataset, CBGSDataset and ConcatDataset."""
    if not hasattr(dataset, "data_infos"):
        if getattr(dataset, "datasets", None):
            return [inner for part in dataset.datasets for inner in data_sets_inside(part)]
        if hasattr(dataset, "dataset"):
            return data_sets_inside(dataset.dataset)
    return [dataset]


def init_weights(detector: nn.Module, cfg: Config, logger: logging.Logger) -> None:
    """Initialise a network, and load the pretrained weights that its config names.

    Raises:
        ValueError: nothing of a file fits the part that names it; it cannot be read or downloaded.
        FileNotFoundError: there is no such file.
    """
    with checked_pretrained(detector, logger) as loaded, _quiet(detector):
        detector.init_weights()
    frozen = [
        name
        for name, weight in detector.named_parameters()
        if name.startswith("img_backbone.") and weight.ndim > 1 and not weight.requires_grad
    ]
    frozen = [name for name in frozen if name not in loaded]
    if frozen and not cfg.get("load_from"):
        logger.warning(
            "model.img_backbone freezes stages of random weights, %s: give it pretrained ones, for "
            "example --cfg-options load_from=ckpts/r101_dcn_fcos3d_pretrain.pth "
            "(docs/checkpoint_compatibility.md), or set model.img_backbone.frozen_stages=-1",
            some_of(frozen),
        )


@contextlib.contextmanager
def _quiet(detector: nn.Module) -> Iterator[None]:
    """Without mmcv's lines on the initialisation of each parameter; warnings stay."""
    detector._dump_init_info = lambda logger_name: None
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        del detector._dump_init_info


def _check_num_classes(model_cfg: dict, class_names: Sequence[str]) -> None:
    """Raise ValueError for another number: too few fail on the device, too many silently."""
    head = model_cfg.get("pts_bbox_head") or {}
    number = head.get("num_classes", len(class_names))
    if number != len(class_names):
        raise ValueError(
            f"model.pts_bbox_head.num_classes is {number}, but the data set has {len(class_names)} "
            f"classes ({', '.join(class_names)}): make them agree, in "
            "model.pts_bbox_head.bbox_coder too"
        )


def vehicle_of_grid(head: nn.Module) -> tuple[float, float] | None:
    """Column and row of the vehicle on the grid of a head; None where that does not say its grid."""
    try:
        return vehicle_cell(head.bev_h, head.bev_w, head.transformer.encoder.pc_range)
    except AttributeError:
        return None


def _check_rotate_center(detector: nn.Module) -> None:
    """Raise ValueError for the official centre in a range that no official weights have."""
    head = getattr(detector, "pts_bbox_head", None)
    centre = getattr(getattr(head, "transformer", None), "rotate_center", None)
    vehicle = None if centre is None else vehicle_of_grid(head)
    if vehicle is None or vehicle == (head.bev_w / 2, head.bev_h / 2):
        return
    if any(abs(given - right) > 0.01 for given, right in zip(centre, vehicle)):
        raise ValueError(
            f"model.pts_bbox_head.transformer.rotate_center is {list(centre)}, but with pc_range "
            f"{list(head.transformer.encoder.pc_range)} the vehicle is at (column, row) {vehicle} of the grid, about which the "
            "history turns: leave rotate_center out (it is for official weights, with the vehicle in the "
            "middle)"
        )


def _set_num_cams(model_cfg: dict, cameras: Sequence[str]) -> None:
    """Set `num_cams` to the data set's number of cameras, or check it."""
    transformer = (model_cfg.get("pts_bbox_head") or {}).get("transformer")
    transformer_class = TRANSFORMER.get(transformer.get("type")) if transformer else None
    if transformer_class is None or "num_cams" not in signature(transformer_class).parameters:
        return  # a wrong type is an error of build_model
    number = transformer.setdefault("num_cams", len(cameras))
    if number != len(cameras):
        raise ValueError(
            f"model.pts_bbox_head.transformer.num_cams is {number}, but the data set has "
            f"{len(cameras)} cameras ({', '.join(cameras)}): leave num_cams out to take it from "
            "the data"
        )

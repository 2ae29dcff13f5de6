"""Runs that a summary has to describe without knowing them."""

from types import SimpleNamespace

import pytest
import torch
from dummy_task import DummyDataset
from mmdet.datasets import RepeatDataset
from tiny_bevformer import build_detector

from projects.bevformer.engine.build import data_sets_inside
from projects.bevformer.engine.config import load_config
from projects.bevformer.engine.summary import run_summary


class Loader(list):
    """Five batches of two."""

    batch_size, num_workers = 2, 0

    def __init__(self, dataset):
        super().__init__([None] * 5)
        self.dataset = SimpleNamespace(dataset=dataset)


def summary(config_path, dataset, detector=None, **changes):
    cfg = load_config(config_path)
    cfg.work_dir, cfg.runner = "work", {"type": "EpochBasedRunner", "max_epochs": 2}
    for key, value in changes.items():
        cfg[key] = value
    detector = detector or torch.nn.Linear(2, 2)
    detector.CLASSES = ["car"]
    return run_summary(cfg, detector, Loader(dataset), torch.device("cpu"), seed=0)


def test_wrapped_data_sets_are_looked_through(config_path):
    inner = DummyDataset()
    repeated = RepeatDataset(inner, 2)
    assert data_sets_inside(repeated) == [inner]
    assert data_sets_inside(SimpleNamespace(datasets=[repeated])) == [inner]
    assert "18 samples in 3 scenes" in summary(config_path, repeated)


@pytest.mark.parametrize("pretrained", ["r50.pth", dict(img="r50.pth")])
def test_pretrained_weights_are_named(config_path, pretrained):
    model = dict(type="DummyDetector", pretrained=pretrained)
    assert "pretrained weights of r50.pth\n" in summary(config_path, [0], model=model)


def test_data_sets_without_records_are_counted(config_path):
    assert ": 4 samples; validation" in summary(config_path, [0, 1, 2, 3])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (dict(optimizer=dict(type="AdamW")), "AdamW, lr by default"),
        (dict(lr_config=dict(policy="step", step=[1], warmup=None)), "step\n"),
        (dict(lr_config=None), "constant\n"),
    ],
)
def test_schedules_may_leave_things_out(config_path, changes, text):
    assert text in summary(config_path, DummyDataset(), **changes)


SCALED = dict(type="RandomScaleImageMultiViewImage", scales=[0.5])
STATISTICS = dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0])
NORMALISED = dict(type="NormalizeMultiviewImage", **STATISTICS)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"data.train.pipeline": [SCALED, NORMALISED]},
            "scaled by 0.5, RGB minus [1.0, 2.0, 3.0], divided by [4.0, 5.0, 6.0], by the data workers",
        ),
        (
            {"model.data_preprocessor": dict(scale=0.8, to_rgb=False, **STATISTICS)},
            "scaled by 0.8, BGR minus [1.0, 2.0, 3.0], divided by [4.0, 5.0, 6.0], on the model's device",
        ),
        (
            {"auto_scale_lr.base_batch_size": 2, "optimizer.lr": 0.5},
            "AdamW, lr 0.5 (img_backbone x 0.1)",
        ),
        (
            {"evaluation.interval": 3, "evaluation.start": 6},
            "evaluation every 3 epochs from 6 on, log",
        ),
        (
            {"checkpoint_config.by_epoch": False},
            "checkpoint every 1 iteration, evaluation every 1 epoch",
        ),
    ],
)
def test_values_are_those_that_count(config_path, changes, text):
    cfg = load_config(config_path)
    cfg.merge_from_dict(changes)
    assert text in summary(config_path, DummyDataset(), **cfg._cfg_dict)


def test_range_and_grid_are_those_of_the_network(config_path):
    detector = build_detector()
    head = detector.pts_bbox_head
    text = summary(config_path, DummyDataset(), detector)
    low, high = head.bbox_coder.pc_range[0], head.bbox_coder.pc_range[3]
    assert f"range      x {low:g} to {high:g}, y " in text
    assert f"{head.bev_h} x {head.bev_w} BEV cells; at most {head.bbox_coder.max_num} boxes" in text

"""Runs that a summary has to describe without knowing them."""

from types import SimpleNamespace

import pytest
import torch
from dummy_task import DummyDataset
from mmdet.datasets import RepeatDataset

from projects.bevformer.engine.build import unwrapped
from projects.bevformer.engine.config import load_config
from projects.bevformer.engine.summary import run_summary


class Loader(list):
    """Five batches of two."""

    batch_size, num_workers = 2, 0

    def __init__(self, dataset):
        super().__init__([None] * 5)
        self.dataset = SimpleNamespace(dataset=dataset)


def summary(config_path, dataset, **changes):
    cfg = load_config(config_path)
    cfg.work_dir, cfg.runner = "work", {"type": "EpochBasedRunner", "max_epochs": 2}
    for key, value in changes.items():
        cfg[key] = value
    detector = torch.nn.Linear(2, 2)
    detector.CLASSES = ["car"]
    return run_summary(cfg, detector, Loader(dataset), torch.device("cpu"), seed=0)


def test_wrapped_data_sets_are_looked_through(config_path):
    inner = DummyDataset()
    repeated = RepeatDataset(inner, 2)
    assert unwrapped(repeated) is inner
    assert unwrapped(SimpleNamespace(datasets=[repeated])) is inner
    assert "18 samples in 3 scenes" in summary(config_path, repeated)


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

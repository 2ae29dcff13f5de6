from types import SimpleNamespace

import pytest
import torch
from dummy_task import DummyDataset

from projects.bevformer.engine.hooks import FiniteLossHook, TemporalEvalHook


def runner_with_loss(value):
    tokens = [{0: {"sample_idx": "old"}, 1: {"sample_idx": token}} for token in ("a", "b")]
    return SimpleNamespace(
        outputs={"loss": torch.tensor(value), "log_vars": {"loss_cls": 1.0, "loss": value}},
        data_batch={"img_metas": SimpleNamespace(data=[tokens])},
        epoch=2,
        iter=6,
    )


def test_finite_losses_pass():
    FiniteLossHook().after_train_iter(runner_with_loss(1.0))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_other_losses_name_iteration_terms_and_samples(value):
    with pytest.raises(
        FloatingPointError, match=r"epoch 3, iteration 7 \(terms loss; samples a, b\)"
    ):
        FiniteLossHook().after_train_iter(runner_with_loss(value))


@pytest.mark.parametrize(
    ("interval", "start", "due"), [(1, None, [1, 2, 3, 4, 5, 6]), (3, None, [3, 6]), (2, 4, [4, 6])]
)
def test_evaluation_is_due_every_interval_from_start(interval, start, due):
    hook = TemporalEvalHook(DummyDataset(), torch.device("cpu"), interval=interval, start=start)
    assert [n for n in range(1, 7) if hook._is_due(n)] == due


@pytest.mark.parametrize(
    ("name", "key"), [("NDS", "NDS"), ("auto", "NDS"), ("pts_bbox_NuScenes/mAP", "mAP")]
)
def test_save_best_accepts_the_names_users_write(name, key):
    assert TemporalEvalHook(DummyDataset(), torch.device("cpu"), save_best=name).best_key == key

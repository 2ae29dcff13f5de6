import pytest
import torch
from dummy_task import DummyDataset, DummyDetector
from mmcv.parallel import collate, is_module_wrapper

from projects.bevformer.engine.training_model import TrainingModel, average_over_ranks, total_loss


def test_total_loss_adds_losses_and_keeps_other_terms_apart():
    losses = {
        "loss_cls": torch.tensor([1.0, 3.0], requires_grad=True),
        "d0.loss_bbox": [torch.tensor([2.0, 4.0]), torch.tensor(5.0)],
        "recall": torch.tensor(0.5),
    }
    total, terms = total_loss(losses)
    assert total.item() == 2.0 + 3.0 + 5.0
    assert total.requires_grad
    averages, noted = average_over_ranks(terms, 0.5)
    assert averages == {"loss_cls": 2.0, "d0.loss_bbox": 8.0, "recall": 0.5, "loss": 10.0}
    assert noted == 0.5
    assert list(terms)[-1] == "loss"
    with pytest.raises(TypeError, match="loss_cls is a float"):
        total_loss({"loss_cls": 1.0})


def test_train_step_returns_what_the_runner_needs():
    detector = DummyDetector()
    model = TrainingModel(detector, torch.device("cpu"))
    dataset = DummyDataset()
    outputs = model.train_step(collate([dataset[0], dataset[1]], samples_per_gpu=2))
    outputs["loss"].backward()
    assert outputs["num_samples"] == 2
    assert outputs["log_vars"]["loss"] == pytest.approx(outputs["loss"].item())
    assert all(p.grad is not None for p in detector.parameters())


def test_training_model_is_a_module_wrapper():
    detector = DummyDetector()
    model = TrainingModel(detector, torch.device("cpu"))
    assert is_module_wrapper(model)
    assert model.module is detector
    assert model.output_device is None
    assert len(list(model.parameters())) == len(list(detector.parameters()))

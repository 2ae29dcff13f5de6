"""One training step of the shipped configs on rendered pictures, from info file to new weights."""

import logging

import pytest
import torch
from mmcv.runner import build_optimizer
from tool_runs import DEMO, TINY, scale_options

from projects.bevformer import compat  # noqa: F401
from projects.bevformer.engine.config import load_config
from projects.bevformer.engine.data_loading import build_train_dataset, build_train_loader
from projects.bevformer.engine.precision import optimizer_hook, set_compute_format
from projects.bevformer.engine.runner import RUNNERS
from projects.bevformer.engine.seed import set_seed
from projects.bevformer.engine.training_model import TrainingModel

from mmdet3d.models import build_model  # isort: skip

CPU = torch.device("cpu")


def configuration(path, infos):
    cfg = load_config(path, {**infos.options, "model.pretrained": None})
    # Pictures of 112 x 200 for the demo, as it is, and of 56 x 100 for the larger network.
    if path == TINY:
        cfg.merge_from_dict(
            scale_options({"data.train.pipeline": cfg.data.train.pipeline}, scale=0.25)
        )
    return cfg


@pytest.fixture(scope="module", params=[DEMO, TINY], ids=["demo", "bevformer_tiny"])
def step(request, synthetic_infos, tmp_path_factory):
    """A step done: model, weights before it, gradients, losses, images."""
    cfg = configuration(request.param, synthetic_infos)
    set_seed(0)
    loader = build_train_loader(cfg, build_train_dataset(cfg), seed=0)
    # A queue whose frames all belong to the scene: there is a history to get no gradient.
    batch = next(b for b in loader if b["img_metas"].data[0][0][2]["prev_bev_exists"])
    images = batch["img"].data[0].requires_grad_()

    detector = build_model(cfg.model)
    detector.init_weights()
    set_compute_format(detector, cfg, CPU, logging.getLogger())
    model = TrainingModel(detector.train(), CPU)
    before = {name: value.detach().clone() for name, value in detector.named_parameters()}

    runner = RUNNERS["EpochBasedRunner"](
        model,
        optimizer=build_optimizer(detector, cfg.optimizer),
        work_dir=str(tmp_path_factory.mktemp("step")),
        logger=logging.getLogger(),
        max_epochs=1,
    )
    dtype = detector.autocast_dtype
    runner.register_optimizer_hook(optimizer_hook(cfg.optimizer_config, cfg.get("fp16"), dtype))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.sleep", lambda seconds: None)  # mmcv sleeps before every epoch
        runner.run([[batch]], [("train", 1)])
    return detector, before, runner.outputs, images


def trainable(detector):
    """Name -> parameter."""
    return {name: p for name, p in detector.named_parameters() if p.requires_grad}


def test_losses_are_finite(step):
    detector, _, outputs, images = step
    terms = outputs["log_vars"]
    assert torch.isfinite(torch.tensor(list(terms.values()))).all(), terms
    layers = len(detector.pts_bbox_head.transformer.decoder.layers)
    assert sum(name.endswith("loss_cls") for name in terms) == layers
    assert terms["loss_bbox"] > 0  # the frame has boxes
    assert outputs["num_samples"] == 1
    assert images.shape[:4] == (1, 3, 6, 3)


def test_every_trainable_parameter_gets_a_finite_gradient(step):
    detector = step[0]
    parameters = trainable(detector)
    assert len(parameters) > 100
    without = [name for name, parameter in parameters.items() if parameter.grad is None]
    assert without == []
    broken = [name for name, p in parameters.items() if not torch.isfinite(p.grad).all()]
    assert broken == []


def test_the_step_moves_the_weights_and_leaves_the_frozen_ones(step):
    detector, before, _, _ = step
    after = dict(detector.named_parameters())
    moving = {name for name, p in trainable(detector).items() if p.grad.abs().max() > 0}
    # Offsets start at zero weight and the last layers at zero output, but most have a gradient.
    assert len(moving) > 0.8 * len(trainable(detector))
    for name, value in before.items():
        if name in moving:
            assert not torch.equal(after[name], value), name
        elif not after[name].requires_grad:
            assert torch.equal(after[name], value), name


def test_history_gets_no_gradient(step):
    images = step[3]
    assert not images.grad[:, :-1].any()
    assert images.grad[:, -1].abs().amax(dim=(0, 2, 3, 4)).min() > 0  # all six cameras

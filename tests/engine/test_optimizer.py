"""Parameter groups: one per set of options, also when a checkpoint has more."""

import copy
import logging
import re

import pytest
import torch
from dummy_task import DummyDetector
from mmcv import Config
from mmcv.runner import build_optimizer
from tiny_bevformer import build_detector

from projects.bevformer import compat
from projects.bevformer.engine import optimizer as module
from projects.bevformer.engine.config import load_config
from projects.bevformer.engine.optimizer import (
    changed_options,
    check_parameter_options,
    fit_rate,
    fit_saved_state,
    match_layouts,
    saved_state,
)

MMCV = {"constructor": "DefaultOptimizerConstructor"}


@pytest.fixture
def settings(config_path):
    return load_config(config_path).optimizer


def members(groups):
    return [{id(parameter) for parameter in group["params"]} for group in groups]


def test_load_config_sets_the_constructor_unless_the_config_does(config_path):
    merged = "MergedGroupsConstructor"
    assert load_config(config_path).optimizer.constructor == merged
    options = {"optimizer.constructor": "DefaultOptimizerConstructor"}
    assert load_config(config_path, options).optimizer == {
        **load_config(config_path).optimizer, **MMCV,
    }  # fmt: skip


def test_groups_of_equal_options_are_one(settings):
    detector = build_detector()
    single = build_optimizer(detector, {**settings, **MMCV}).param_groups
    merged = build_optimizer(detector, settings).param_groups
    assert len(single) == len(list(detector.parameters()))
    assert len(merged) == 2
    assert merged[0]["lr"] == single[0]["lr"]  # the rate that logs show
    backbone = {id(p) for p in detector.img_backbone.parameters() if p.requires_grad}
    others = {id(p) for p in detector.parameters()} - backbone
    assert members(merged) == [others, backbone]  # the stem is frozen: the default rate comes first
    assert [group["lr"] for group in merged] == pytest.approx([1e-2, 1e-3])


def test_without_paramwise_cfg_there_is_one_group(settings):
    settings = {key: value for key, value in settings.items() if key != "paramwise_cfg"}
    assert len(build_optimizer(DummyDetector(), settings).param_groups) == 1


def train(detector, optimizer, steps):
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for parameter in detector.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def test_per_tensor_groups_are_converted_to_merged_ones(settings):
    torch.manual_seed(0)
    detector = DummyDetector()
    optimizer = build_optimizer(detector, {**settings, **MMCV})
    train(detector, optimizer, range(3))
    resumed = copy.deepcopy(detector)
    saved = copy.deepcopy(optimizer.state_dict())
    before = copy.deepcopy(saved)

    merged = build_optimizer(resumed, settings)
    merged.load_state_dict(fit_saved_state(saved, merged, resumed.named_parameters()))
    assert len(merged.param_groups) == 2
    assert saved["param_groups"] == before["param_groups"]
    train(detector, optimizer, range(3, 6))
    train(resumed, merged, range(3, 6))
    for expected, parameter in zip(detector.parameters(), resumed.parameters()):
        assert torch.equal(parameter, expected)


def test_other_groups_are_an_error(settings):
    detector = DummyDetector()
    merged, single = (build_optimizer(detector, {**settings, **extra}) for extra in ({}, MMCV))
    with pytest.raises(ValueError, match=r"2 parameter groups of 6 tensors.*constructor"):
        fit_saved_state(merged.state_dict(), single, detector.named_parameters())
    larger = build_detector()
    optimizer = build_optimizer(larger, settings)
    with pytest.raises(ValueError, match=r"6 parameter groups of 6 tensors"):
        fit_saved_state(single.state_dict(), optimizer, larger.named_parameters())


def test_named_tensors_find_their_state_in_any_groups(settings):
    torch.manual_seed(0)
    detector = DummyDetector()
    optimizer = build_optimizer(detector, settings)
    train(detector, optimizer, range(3))
    saved, moments = saved_state(optimizer, detector), optimizer.state
    others = {**settings, "paramwise_cfg": dict(custom_keys=dict(head=dict(lr_mult=0.5)))}
    for options in ({**settings, **MMCV}, {**others, "weight_decay": 0.1}):
        resumed = build_optimizer(detector, options)
        expected = copy.deepcopy(resumed.param_groups)
        fitted = fit_saved_state(saved, resumed, detector.named_parameters())
        resumed.load_state_dict(fitted)
        assert [group["lr"] for group in resumed.param_groups] == [g["lr"] for g in expected]
        for parameter in detector.parameters():
            for name in ("step", "exp_avg", "exp_avg_sq"):
                assert torch.equal(
                    torch.as_tensor(resumed.state[parameter][name]),
                    torch.as_tensor(moments[parameter][name]),
                )
    assert changed_options(saved, fitted) == [
        "lr 0.001 -> 0.01", "weight_decay 0.01 -> 0.1", "lr 0.01 -> 0.005",
    ]  # fmt: skip


def test_schedules_are_no_change_of_options():
    saved = dict(lr=1e-5, initial_lr=1e-3, betas=(0.7, 0.999), initial_momentum=0.9, params=[0])
    fitted = {"param_groups": [dict(lr=1e-3, betas=(0.9, 0.999), params=[0])]}
    assert changed_options({"param_groups": [saved]}, fitted) == []
    fitted["param_groups"][0].update(betas=(0.9, 0.98), lr=2e-3)
    changes = ["lr 0.001 -> 0.002", "betas (0.9, 0.999) -> (0.9, 0.98)"]
    assert sorted(changed_options({"param_groups": [saved]}, fitted)) == sorted(changes)


@pytest.mark.parametrize("is_named", [True, False])
def test_another_type_of_optimizer_is_refused(is_named):
    detector = DummyDetector()
    saved = saved_state(torch.optim.AdamW(detector.parameters()), detector)
    if not is_named:  # an older file
        del saved["type"]
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.1, momentum=0.9)
    with pytest.raises(ValueError, match=r"\((AdamW|one with betas)\) than SGD"):
        fit_saved_state(saved, optimizer, detector.named_parameters())


def test_tensors_of_another_model_are_an_error(settings):
    detector, other = DummyDetector(), DummyDetector(width=5)
    single = build_optimizer(other, {**settings, **MMCV})
    train(other, single, range(1))
    merged = build_optimizer(detector, settings)
    with pytest.raises(ValueError, match=r"exp_avg of shape \(5, 3\)"):
        fit_saved_state(single.state_dict(), merged, detector.named_parameters())


@pytest.fixture
def pretended_cuda(monkeypatch):
    monkeypatch.setattr(module, "_is_float_on_cuda", lambda parameter: True)


FUSED = compat.has_fused_cuda_kernels(torch.optim.AdamW)


@pytest.mark.skipif(not FUSED, reason="torch 1.10 has no fused optimizers")
@pytest.mark.parametrize(
    ("options", "fused"),
    [({}, True), ({"fused": False}, False), ({"foreach": True}, None), ({"foreach": False}, None)],
)
def test_fused_kernels_on_cuda_unless_the_config_sets_otherwise(
    settings, pretended_cuda, options, fused
):
    optimizer = build_optimizer(DummyDetector(), {**settings, **options})
    assert [group["fused"] for group in optimizer.param_groups] == [fused, fused]


def test_nothing_is_fused_elsewhere(settings, pretended_cuda, monkeypatch):
    rprop = {"type": "Rprop", "lr": 0.1, "constructor": settings.constructor}
    assert not build_optimizer(DummyDetector(), rprop).defaults.get("fused")
    monkeypatch.setattr(module, "_is_float_on_cuda", lambda parameter: False)
    assert not build_optimizer(DummyDetector(), settings).defaults.get("fused")


@pytest.mark.skipif(not FUSED, reason="torch 1.10 has no fused optimizers")
def test_resumed_run_keeps_its_own_optimizer_implementation(settings, pretended_cuda):
    detector = DummyDetector()
    plain = build_optimizer(detector, {**settings, "fused": False})
    train(detector, plain, range(1))
    fused = build_optimizer(detector, settings)
    fused.load_state_dict(fit_saved_state(plain.state_dict(), fused, detector.named_parameters()))
    assert {group["fused"] for group in fused.param_groups} == {True}
    plain.load_state_dict(fit_saved_state(fused.state_dict(), plain, detector.named_parameters()))
    assert {group["fused"] for group in plain.param_groups} == {False}


def test_loaded_states_get_the_memory_layout_of_their_parameters():
    def trained(layout):
        torch.manual_seed(0)
        conv = torch.nn.Conv2d(4, 3, 3).to(memory_format=layout)
        optimizer = torch.optim.AdamW(conv.parameters(), lr=0.1)
        conv(torch.ones(1, 4, 5, 5)).sum().backward()
        optimizer.step()
        return conv, optimizer

    _, saved = trained(torch.contiguous_format)
    conv, optimizer = trained(torch.channels_last)
    optimizer.load_state_dict(saved.state_dict())
    match_layouts(optimizer)
    moments = optimizer.state[conv.weight]["exp_avg"]
    assert moments.stride() == conv.weight.stride()
    expected = next(iter(saved.state.values()))["exp_avg"]
    torch.testing.assert_close(moments, expected)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"custom_keys": {"img_backbne": {"lr_mult": 0.1}}}, "'img_backbne', .*: modules are img_backbone"),
        ({"custom_keys": {"head": {}, "xyz": {}}}, "'xyz', .*: modules are head, img_backbone, norm"),
        ({"custom_keys": {"head": 0.1}}, r"custom_keys\.head is 0\.1: it must be a dict of lr_mult"),
        ({"custom_keys": {"head": {"lr_mult": "x"}}}, r"custom_keys\.head is {'lr_mult': 'x'}: "),
        ({"dcn_offset_lr_mult": 0.1}, "of which the network has none: use custom_keys"),
    ],
)  # fmt: skip
def test_options_for_no_parameter_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        check_parameter_options({"paramwise_cfg": options}, DummyDetector())


def test_options_for_some_parameter_pass(settings):
    check_parameter_options(settings, DummyDetector())
    check_parameter_options({"type": "AdamW"}, DummyDetector())


@pytest.mark.parametrize(
    ("settings", "scale", "rate", "line"),
    [
        ({"base_batch_size": 8}, False, 0.1, "WARNING .* of 8, this run has 12 .* 2 x 2 x 3.: 0.15 would fit"),
        ({"base_batch_size": 8}, True, 0.15, "INFO .*it is scaled to 0.15"),
        ({"base_batch_size": 8, "enable": True}, False, 0.15, "INFO .*it is scaled to 0.15"),
        ({"base_batch_size": 12}, True, 0.1, None),
        (None, False, 0.1, None),
    ],
)  # fmt: skip
def test_the_rate_fits_the_total_batch(monkeypatch, caplog, settings, scale, rate, line):
    monkeypatch.setattr(module, "get_world_size", lambda: 2)
    accumulation = dict(type="GradientCumulativeOptimizerHook", cumulative_iters=3)
    cfg = Config(
        dict(optimizer=dict(lr=0.1), optimizer_config=accumulation, auto_scale_lr=settings)
    )
    with caplog.at_level(logging.INFO):
        fit_rate(cfg, 2, scale, logging.getLogger("rates"))
    assert cfg.optimizer.lr == pytest.approx(rate)
    lines = [f"{record.levelname} {record.getMessage()}" for record in caplog.records]
    assert len(lines) == (line is not None)
    assert line is None or re.search(line, lines[0])


def test_a_rate_for_no_known_batch_is_not_scaled():
    cfg = Config(dict(optimizer=dict(lr=0.1)))
    with pytest.raises(
        ValueError, match=r"add auto_scale_lr = dict\(base_batch_size=8\) to the config"
    ):
        fit_rate(cfg, 1, True, logging.getLogger("mmdet3d"))


def test_a_rate_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="optimizer.lr is 'abc': it must be a number"):
        fit_rate(Config(dict(optimizer=dict(lr="abc"))), 1, False, logging.getLogger("rates"))
    for name in ("lr", "weight_decay"):
        with pytest.raises(ValueError, match=f"^optimizer.{name} is None: it must be a number"):
            fit_rate(Config({"optimizer": {name: None}}), 1, False, logging.getLogger("rates"))

"""A training run: config in, checkpoints, logs and metrics in its work dir."""

from __future__ import annotations

import copy
import logging
import time
from pathlib import Path

import torch
from mmcv import Config
from mmcv.runner import BaseRunner, DistSamplerSeedHook, build_optimizer
from mmdet3d.utils import collect_env
from torch import nn

from projects.bevformer import compat
from projects.bevformer.engine.build import build_detector, init_weights
from projects.bevformer.engine.checkpoint import find_latest_checkpoint
from projects.bevformer.engine.config import (
    check_checkpoint_config,
    config_errors,
    runner_settings,
)
from projects.bevformer.engine.data_loading import (
    build_test_dataset,
    build_train_dataset,
    build_train_loader,
    workers_per_process,
)
from projects.bevformer.engine.determinism import unrepeatable_parts
from projects.bevformer.engine.distributed import broadcast, get_rank, get_world_size
from projects.bevformer.engine.hooks import DataWaitHook, FiniteLossHook, TemporalEvalHook
from projects.bevformer.engine.log import get_run_logger, log_to_file
from projects.bevformer.engine.plugins import notices
from projects.bevformer.engine.precision import optimizer_hook, set_compute_format
from projects.bevformer.engine.provenance import STAMP, check_provenance, training_stamp
from projects.bevformer.engine.runner import RUNNERS
from projects.bevformer.engine.seed import choose_seed, set_seed
from projects.bevformer.engine.summary import run_summary
from projects.bevformer.engine.training_model import TrainingModel


def train(
    cfg: Config,
    device: torch.device,
    config_name: str,
    validate: bool = True,
    seed: int | None = None,
    diff_seed: bool = False,
    deterministic: bool = False,
    auto_resume: bool = False,
    autoscale_lr: bool = False,
    max_iters: int | None = None,
) -> None:
    """Train the model of a config.

    Args:
        cfg: mmcv.Config with `work_dir` set.
        device: torch.device of this process.
        config_name: file name under which the merged config is kept in the work dir.
        validate: evaluate as the config's `evaluation` says.
        seed: random seed; None draws one, which is logged.
        diff_seed: add the rank to the seed of this process.
        deterministic: repeatable algorithms, see `make_deterministic`.
        auto_resume: resume the newest checkpoint of the work dir that loads.
        autoscale_lr: multiply the learning rate by processes / 8.
        max_iters: train this many iterations, then save and evaluate once.

    Raises:
        ValueError: something in the config or a checkpoint is wrong; says what and where.
        FileNotFoundError: a checkpoint or info file is missing.
        FloatingPointError: the loss is not finite.
    """
    work_dir = Path(cfg.work_dir)
    timestamp = time.strftime("%Y%m%d_%H%M%S")
    logger = get_run_logger(work_dir / f"{timestamp}.log", cfg.get("log_level", "INFO"))
    cfg = _short_run(cfg, max_iters) if max_iters is not None else copy.deepcopy(cfg)
    cfg.runner = runner_settings(cfg)
    if cfg.runner.get("type") not in RUNNERS:
        raise ValueError(
            f"runner.type is {cfg.runner.get('type')!r}: it must be one of {list(RUNNERS)}"
        )
    workflow = [tuple(phase) for phase in cfg.get("workflow", [("train", 1)])]
    if [phase for phase, _ in workflow] != ["train"]:
        raise ValueError(
            f"workflow {workflow}: only ('train', N) is supported, `evaluation` validates"
        )

    seed = choose_seed(seed)
    set_seed(seed + get_rank() if diff_seed else seed, deterministic)
    if cfg.get("cudnn_benchmark", False) and not deterministic:
        torch.backends.cudnn.benchmark = True
    meta = _describe_run(cfg, config_name, seed, logger)

    dataset = build_train_dataset(cfg)
    loader = build_train_loader(cfg, dataset, seed, pin_memory=device.type == "cuda")
    cfg.resume_from = _resume_from(cfg, auto_resume, logger)
    detector = build_detector(cfg, dataset, pretrained=True)
    if cfg.resume_from is None:
        init_weights(detector, cfg, logger)
    meta[STAMP] = training_stamp(cfg, detector)
    set_compute_format(detector, cfg, device, logger)
    if deterministic and device.type == "cuda":
        _warn_of_unrepeatable_parts(cfg, detector, logger)
    model = TrainingModel(
        detector,
        device,
        find_unused_parameters=cfg.get("find_unused_parameters", False),
        broadcast_buffers=cfg.get("broadcast_buffers", False),
    )
    with config_errors("optimizer"):
        if autoscale_lr:
            cfg.optimizer.lr *= get_world_size() / 8
        optimizer = build_optimizer(detector, cfg.optimizer)
    options = dict(cfg.runner)
    runner_class = RUNNERS[options.pop("type")]
    with config_errors("runner"):
        runner = runner_class(
            model, optimizer=optimizer, work_dir=cfg.work_dir, logger=logger, meta=meta, **options
        )
    runner.timestamp = timestamp  # one name for .log and .log.json
    _register_hooks(runner, cfg, device, validate)
    if get_rank() == 0:
        logger.info("training\n%s", run_summary(cfg, detector, loader, device, seed))

    if cfg.resume_from is not None:
        runner.resume(cfg.resume_from)
        if not runner.counts_epochs:  # mmcv would start the first epoch again
            epoch, batches = divmod(runner.iter, len(loader))
            loader.sampler.start_at(epoch, batches * loader.batch_size)
    elif cfg.get("load_from"):
        _start_from(runner, cfg, logger)
    runner.run([loader], workflow)


def _short_run(cfg: Config, max_iters: int) -> Config:
    """The config of a run of `max_iters` iterations that saves and evaluates at its end."""
    cfg = copy.deepcopy(cfg)
    cfg.total_epochs = None
    cfg.runner = runner_settings(cfg, max_iters)
    checkpoint_config = cfg.get("checkpoint_config") or {}
    cfg.checkpoint_config = {**checkpoint_config, "interval": max_iters, "by_epoch": False}
    if cfg.get("evaluation"):
        cfg.evaluation = {**cfg.evaluation, "interval": max_iters, "start": None}
    if cfg.get("log_config"):
        cfg.log_config = {**cfg.log_config, "interval": min(cfg.log_config.interval, max_iters)}
    return cfg


def _describe_run(cfg: Config, config_name: str, seed: int, logger: logging.Logger) -> dict:
    """Log environment and config to the file, keep the config in the work dir.

    Returns:
        The meta data of the checkpoints.
    """
    environment = "\n".join(f"{name}: {value}" for name, value in collect_env().items())
    log_to_file(logger, "environment\n%s", environment)
    config_text = cfg.pretty_text
    log_to_file(logger, "config\n%s", config_text)
    for line in notices():
        log_to_file(logger, "%s", line)
    if get_rank() == 0:
        (Path(cfg.work_dir) / config_name).write_text(config_text)
    return {
        "env_info": environment,
        "config": config_text,
        "seed": seed,
        "exp_name": config_name,
    }


def _resume_from(cfg: Config, auto_resume: bool, logger: logging.Logger) -> str | None:
    """Checkpoint to resume, the same on all ranks, or None."""
    if cfg.get("resume_from"):
        return cfg.resume_from
    if not auto_resume:
        return None
    found = find_latest_checkpoint(cfg.work_dir, logger) if get_rank() == 0 else None
    found = broadcast(found)
    if found is None:
        logger.info("--auto-resume: no checkpoint in %s, training starts anew", cfg.work_dir)
        return None
    return str(found)


def _start_from(runner: BaseRunner, cfg: Config, logger: logging.Logger) -> None:
    """Load the weights of `load_from`; a function, so that its return frees the file's tensors."""
    checkpoint = runner.load_checkpoint(cfg.load_from)
    check_provenance(checkpoint, cfg.load_from, cfg, runner.model.module, logger, split="train")


def _warn_of_unrepeatable_parts(cfg: Config, detector: nn.Module, logger: logging.Logger) -> None:
    parts = unrepeatable_parts(cfg, detector)
    if not compat.CAN_WARN_OF_NONDETERMINISM:
        parts.append("operators besides cuDNN's and cuBLAS's (torch 1.10 cannot choose them)")
    if parts:
        logger.warning(
            "--deterministic: the last bits still differ from run to run in the gradients of %s",
            "; ".join(parts),
        )


def _remedy_for_slow_data(cfg: Config) -> str:
    remedy = f"Raise data.workers_per_gpu (now {workers_per_process(cfg)})"
    if cfg.model.get("data_preprocessor") is None:
        remedy += (
            ", or let the model prepare the images on its device: configs/config.py, "
            "configs/bevformer/bevformer_tiny_fast.py, bevformer_small_fast.py"
        )
    return f"{remedy} (docs/performance.md#data)"


def _register_hooks(runner: BaseRunner, cfg: Config, device: torch.device, validate: bool) -> None:
    # mmcv edits the dicts that it builds hooks from.
    settings = copy.deepcopy(cfg._cfg_dict)
    dtype = runner.model.module.autocast_dtype
    check_checkpoint_config(settings.get("checkpoint_config"))
    with config_errors("optimizer_config, lr_config, checkpoint_config, log_config, custom_hooks"):
        runner.register_training_hooks(
            settings.get("lr_config"),
            optimizer_hook(settings.get("optimizer_config"), settings.get("fp16"), dtype),
            settings.get("checkpoint_config"),
            settings.get("log_config"),
            settings.get("momentum_config"),
            custom_hooks_config=settings.get("custom_hooks"),
        )
    runner.register_hook(FiniteLossHook(), priority="HIGH")  # before the optimizer hook
    # After mmcv's IterTimerHook, which is LOW too.
    runner.register_hook(DataWaitHook(_remedy_for_slow_data(cfg)), priority="LOW")
    if runner.counts_epochs:
        runner.register_hook(DistSamplerSeedHook())
    if validate and settings.get("evaluation"):
        options = settings.evaluation
        options.pop("pipeline", None)  # the pipeline of data.val counts
        with config_errors("evaluation"):
            hook = TemporalEvalHook(
                build_test_dataset(cfg, "val"),
                device,
                workers=workers_per_process(cfg),
                by_epoch=runner.counts_epochs,
                **options,
            )
        runner.register_hook(hook, priority="LOW")

"""A training run: config in, checkpoints, logs and metrics in its work dir."""

from __future__ import annotations

import copy
import logging
import time
import uuid
from pathlib import Path
from typing import Collection

import torch
from mmcv import Config
from mmcv.runner import BaseRunner, DistSamplerSeedHook, LoggerHook, build_optimizer
from mmdet3d.utils import collect_env
from torch import nn

from projects.bevformer import compat
from projects.bevformer.engine.build import build_detector, init_weights
from projects.bevformer.engine.config import config_errors, runner_settings
from projects.bevformer.engine.config_checks import check_config
from projects.bevformer.engine.data_loading import (
    build_test_dataset,
    build_train_dataset,
    build_train_loader,
    workers_per_process,
)
from projects.bevformer.engine.determinism import unrepeatable_parts
from projects.bevformer.engine.distributed import get_rank, get_world_size, on_first_rank
from projects.bevformer.engine.finite_hook import FiniteLossHook, named_ending
from projects.bevformer.engine.hooks import DataWaitHook, TemporalEvalHook
from projects.bevformer.engine.interruption import Interruption
from projects.bevformer.engine.log import get_run_logger, log_to_file
from projects.bevformer.engine.optimizer import check_parameter_options, fit_rate
from projects.bevformer.engine.plugins import notices
from projects.bevformer.engine.precision import optimizer_hook, set_compute_format
from projects.bevformer.engine.provenance import (
    STAMP,
    check_provenance,
    check_start,
    training_stamp,
)
from projects.bevformer.engine.resume import checkpoint_to_resume
from projects.bevformer.engine.runner import RUNNERS
from projects.bevformer.engine.seed import choose_seed, seeded, set_seed
from projects.bevformer.engine.summary import run_summary
from projects.bevformer.engine.training_model import TrainingModel
from projects.bevformer.files.writing import atomic_write, remove_left_over
from projects.bevformer.interruption import on_ending_signals
from projects.bevformer.published import REPLACED_TYPES


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
    given: Collection[str] = (),
) -> None:
    """Train the model of a config.

    Args:
        cfg: mmcv.Config with `work_dir` set.
        device: torch.device of this process.
        config_name: file name under which the merged config is kept in the work dir.
        validate: evaluate as the config's `evaluation` says.
        seed: random seed; None is that of a run that is resumed, else one is drawn, which is logged.
        diff_seed: add the rank to the seed of this process.
        deterministic: repeatable algorithms, see `make_deterministic`.
        auto_resume: resume the newest checkpoint of the work dir that loads, see `engine.resume`.
        autoscale_lr: scale the learning rate to the total batch, see `fit_rate`.
        max_iters: train this many iterations, see `_short_run`.
        given: dotted keys of the config that the command line overrides.

    Raises:
        ValueError: something in the config or a checkpoint is wrong; says what and where.
        FileNotFoundError: a checkpoint or info file is missing.
        NonFiniteError: the loss or another number of the training is not finite.
    """
    work_dir = Path(cfg.work_dir)
    timestamp = time.strftime("%Y%m%d_%H%M%S")
    logger = get_run_logger(work_dir / f"{timestamp}.log", cfg.get("log_level", "INFO"))
    if get_rank() == 0:
        for folder in (work_dir, *work_dir.glob("eval/*")):
            remove_left_over(folder)
    check_config(cfg, given)
    cfg = copy.deepcopy(cfg)
    if max_iters is not None:
        _short_run(cfg, max_iters, given, logger)
    cfg.runner = runner_settings(cfg)
    if cfg.runner.get("type") not in RUNNERS.keys() - REPLACED_TYPES:
        raise ValueError(
            f"runner.type is {cfg.runner.get('type')!r}: it must be one of {list(RUNNERS)} of this "
            "project, others are not used; what a run does besides is the place of custom_hooks"
        )
    workflow = [tuple(phase) for phase in cfg.get("workflow") or [("train", 1)]]

    given_seed, seed = seed, choose_seed(seed)
    set_seed(seed + get_rank() if diff_seed else seed, deterministic)
    if cfg.get("cudnn_benchmark", False) and not deterministic:
        torch.backends.cudnn.benchmark = True
    meta = _describe_run(cfg, config_name, seed, logger)

    dataset = build_train_dataset(cfg)
    loader = build_train_loader(cfg, dataset, seed, pin_memory=device.type == "cuda")
    runner_class = RUNNERS[cfg.runner.type]
    cfg.resume_from = checkpoint_to_resume(cfg, auto_resume, logger, runner_class.counts_epochs)
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
        fit_rate(cfg, loader.batch_size, autoscale_lr, logger)
        check_parameter_options(cfg.optimizer, detector)
        optimizer = build_optimizer(detector, cfg.optimizer)
    options = dict(cfg.runner)
    del options["type"]
    with config_errors("runner"):
        runner = runner_class(
            model, optimizer=optimizer, work_dir=cfg.work_dir, logger=logger, meta=meta, **options
        )
    runner.timestamp = timestamp  # one name for .log and .log.json
    cfg.evaluation = cfg.get("evaluation") if validate else None
    runner.batch, runner.epoch_length = loader.batch_size * get_world_size(), len(loader)
    _register_hooks(runner, cfg, device)
    if cfg.resume_from is not None:
        runner.resume(cfg.resume_from)
        seed = loader.sampler.seed = meta["seed"] = _resumed_seed(runner, given_seed, seed)
        set_seed(seed + get_rank() if diff_seed else seed)  # of a rank without saved states
        if not runner.counts_epochs:  # mmcv would start the first epoch again
            epoch, batches = divmod(runner.iter, len(loader))
            loader.sampler.start_at(epoch, batches * loader.batch_size)
        _say_if_finished(runner, logger)
    elif cfg.get("load_from"):
        _start_from(runner, cfg, logger)
    if get_rank() == 0:
        logger.info("training\n%s", run_summary(cfg, detector, loader, device, seed))
    _log_short_epochs(runner, logger)
    try:
        with named_ending(runner), on_ending_signals(runner.interruption.note):
            runner.run([loader], workflow)
    except KeyboardInterrupt:
        loader.end_workers()
        raise
    loader.end_workers()


def _short_run(cfg: Config, max_iters: int, given: Collection[str], logger: logging.Logger) -> None:
    """Make the config one of a run of `max_iters` iterations.

    Intervals that count iterations stay: those of the command line, and those of a config that says
    `by_epoch=False` or has an IterBasedRunner. Where they count epochs the run saves and evaluates at
    its end, and a rate that changes by steps stays constant. One line names what does not count.
    """
    by_epoch = (cfg.get("runner") or {}).get("type") != "IterBasedRunner"
    cfg.total_epochs = None
    cfg.runner = runner_settings(cfg, max_iters)

    def in_epochs(section: str, key: str) -> bool:
        if f"{section}.{key}" in given and f"{section}.by_epoch" not in given:
            return False
        return (cfg.get(section) or {}).get("by_epoch", by_epoch)

    lengths = ("total_epochs", "runner.max_epochs", "runner.max_iters")
    dropped = [f"{key} (now {max_iters} iterations)" for key in lengths if key in given]
    for section in ("checkpoint_config", "evaluation"):
        if section == "evaluation" and not cfg.get(section):
            continue
        options = dict(cfg.get(section) or {}, by_epoch=False)
        if in_epochs(section, "interval"):
            dropped.append(f"{section}.interval = {options.get('interval', 1)} (now at the end)")
            options.update(interval=max_iters)
            options.pop("start", None)
        cfg[section] = options
    rate = cfg.get("lr_config") or {}
    if "step" in rate and in_epochs("lr_config", "step"):
        dropped.append(f"lr_config.step = {rate.step} (now constant)")
        warmup = {key: value for key, value in rate.items() if key.startswith("warmup")}
        cfg.lr_config = {"policy": "fixed", **warmup}
    for section in ("lr_config", "momentum_config"):
        (cfg.get(section) or {}).pop("by_epoch", None)
    if dropped:
        logger.info(
            "--max-iters %d: what counts epochs does not apply: %s. To count iterations give intervals with "
            "--cfg-options",
            max_iters,
            ", ".join(dropped),
        )
    if cfg.get("log_config"):
        cfg.log_config.interval = min(cfg.log_config.interval, max_iters)


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
    kept = Path(cfg.work_dir, config_name)

    def keep() -> None:
        if kept.resolve() != Path(cfg.filename or "").resolve():  # not the config itself
            with atomic_write(kept, size_bytes=len(config_text)) as file:
                file.write(config_text)

    on_first_rank(keep)
    return {
        "env_info": environment,
        "config": config_text,
        "seed": seed,
        "exp_name": config_name,
        "run": uuid.uuid4().hex,  # stays when the run is resumed
    }


def _log_short_epochs(runner: BaseRunner, logger: logging.Logger) -> None:
    """Let an epoch, or the iterations that are left, end in a line where none would be logged."""
    length = runner.epoch_length if runner.counts_epochs else runner.max_iters
    what = "each epoch has" if runner.counts_epochs else "the run ends after"
    silent = [
        hook
        for hook in runner.hooks
        if isinstance(hook, LoggerHook)
        and (0 if runner.counts_epochs else runner.iter) // hook.interval == length // hook.interval
    ]
    for hook in silent:
        hook.interval = length
    if silent:
        logger.info("%s %d iterations, before log_config.interval: logged then", what, length)


def _resumed_seed(runner: BaseRunner, given: int | None, drawn: int) -> int:
    """The given seed, else that of the run that is resumed: the order of its samples goes on."""
    path, meta = runner.resumed
    saved = meta.get("seed")
    if given is None:
        return saved if type(saved) is int else drawn
    if saved not in (None, given):
        runner.logger.warning(
            "--seed %d: the run of %s has the seed %s, so samples come in another order than without "
            "the interruption; leave --seed out to go on with it", given, path, saved,
        )  # fmt: skip
    return given


def _say_if_finished(runner: BaseRunner, logger: logging.Logger) -> None:
    done, planned, what = runner.iter, runner.max_iters, "iterations"
    if runner.counts_epochs:
        done, planned, what = runner.epoch, runner.max_epochs, "epochs"
    if done >= planned:
        logger.info("nothing left to train: %d of %d %s are done", done, planned, what)


def _start_from(runner: BaseRunner, cfg: Config, logger: logging.Logger) -> None:
    """Load the weights of `load_from`; a function, so that its return frees the file's tensors."""
    checkpoint = runner.load_checkpoint(cfg.load_from)
    check_start(checkpoint, cfg.load_from, cfg, runner.model.module, logger)
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


def _register_hooks(runner: BaseRunner, cfg: Config, device: torch.device) -> None:
    # mmcv edits the dicts that it builds hooks from.
    settings = copy.deepcopy(cfg._cfg_dict)
    dtype = runner.model.module.autocast_dtype
    with config_errors("optimizer_config, lr_config, checkpoint_config, log_config, custom_hooks"):
        runner.register_training_hooks(
            settings.get("lr_config"),
            optimizer_hook(settings.get("optimizer_config"), settings.get("fp16"), dtype),
            settings.get("checkpoint_config"),
            settings.get("log_config"),
            settings.get("momentum_config"),
            custom_hooks_config=settings.get("custom_hooks"),
        )
    # Before the optimizer hook.
    runner.register_hook(FiniteLossHook(**(settings.get("non_finite") or {})), priority="HIGH")
    # After mmcv's IterTimerHook, which is LOW too.
    runner.register_hook(DataWaitHook(_remedy_for_slow_data(cfg)), priority="LOW")
    if runner.counts_epochs:
        runner.register_hook(DistSamplerSeedHook())
    runner.interruption = runner.model.interruption = Interruption()
    runner.register_hook(runner.interruption, priority="BELOW_NORMAL")
    if settings.get("evaluation"):
        options = {"by_epoch": runner.counts_epochs, **settings.evaluation}
        dataset = build_test_dataset(cfg, "val")
        with seeded(0):
            _ = dataset[0]  # a frame that cannot be loaded shows now, not after the first epoch
        for name in ("CLASSES", "CAMERAS"):
            trained = getattr(runner.model.module, name, None)
            given = getattr(dataset, name, None) or getattr(dataset, name.lower(), None)
            if trained and given and list(given) != list(trained):
                raise ValueError(
                    f"data.train has the {name.lower()} {list(trained)}, data.val {list(given)}: names "
                    "and order must agree"
                )
        with config_errors("evaluation"):
            hook = TemporalEvalHook(dataset, device, workers=workers_per_process(cfg), **options)
        runner.register_hook(hook, priority="LOW")

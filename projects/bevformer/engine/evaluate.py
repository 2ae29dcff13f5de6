"""Predictions for a whole split, the same from one process and from many, and their score."""

import json
import os
import shutil
from pathlib import Path

import torch
from mmcv.cnn import fuse_conv_bn

from projects.bevformer.engine.batch import test_sample_tokens, to_device
from projects.bevformer.engine.build import build_detector
from projects.bevformer.engine.checkpoint import load_checkpoint, load_weights
from projects.bevformer.engine.data_loading import build_test_loader
from projects.bevformer.engine.distributed import all_gather, get_rank
from projects.bevformer.engine.log import progress_bar
from projects.bevformer.engine.precision import set_compute_format
from projects.bevformer.engine.provenance import check_provenance
from projects.bevformer.engine.report import TP_ERRORS
from projects.bevformer.nuscenes.evaluation.results import check_samples


def build_trained_model(cfg, checkpoint_path, dataset, device, logger, fuse=False):
    """The config's model with the weights of a checkpoint, ready for inference.

    Args:
        cfg: config with `model` (and maybe what `set_compute_format` reads).
        checkpoint_path: weights of that model; every one has to be there.
        dataset: tells the class names.
        device: where the model goes.
        logger: told what was loaded.
        fuse: merge BatchNorm layers into their convolutions.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: it is unreadable, of another model, or was trained for other classes, or the model has
            another number of classes than the data set.
    """
    checkpoint = load_checkpoint(checkpoint_path)
    trained_for = checkpoint["meta"].get("CLASSES")
    if trained_for is not None and list(trained_for) != list(dataset.CLASSES):
        raise ValueError(
            f"checkpoint {checkpoint_path} was trained for the classes {list(trained_for)}, the config "
            f"has {list(dataset.CLASSES)}: names and order must agree"
        )
    detector = build_detector(cfg, dataset)
    load_weights(detector, checkpoint, checkpoint_path, logger)
    check_provenance(checkpoint, checkpoint_path, cfg, logger)
    set_compute_format(detector, cfg, device, logger)
    if fuse:
        detector = fuse_conv_bn(detector)
    return detector.to(device).eval()


def predict(detector, dataset, device, workers=2):
    """Run a temporal detector over a data set in time order.

    Every process takes whole scenes, so that the memory of a scene is never cut; results are keyed
    by sample token and put back into the order of the data set.

    Args:
        detector: bare model with `reset_memory()`; its train or eval mode is restored afterwards.
        dataset: in test mode, with `data_infos`.
        device: torch.device of the detector.
        workers: data loading processes.

    Returns:
        On rank 0 a list of result dicts, one a sample; None on the other ranks.

    Raises:
        ValueError: frames are left without a result.
    """
    loader = build_test_loader(dataset, workers, pin_memory=device.type == "cuda")
    was_training = detector.training
    detector.eval()
    detector.reset_memory()
    try:
        results = _predict_shard(detector, loader, device)
    finally:
        detector.reset_memory()
        detector.train(was_training)
    shards = all_gather(results)
    if get_rank() != 0:
        return None
    tokens = [info["token"] for info in dataset.data_infos]
    check_samples(
        [token for shard in shards for token in shard],
        tokens,
        "the set of predictions",
        "the data set",
    )
    by_token = {token: result for shard in shards for token, result in shard.items()}
    return [by_token[token] for token in tokens]


@torch.no_grad()
def _predict_shard(detector, loader, device):
    """Sample token -> result of the frames of this process."""
    results = {}
    for data in progress_bar(loader, "evaluating", "frame"):
        batch = to_device(data, device)
        outputs = detector(return_loss=False, **batch)
        results.update(zip(test_sample_tokens(batch["img_metas"]), outputs))
    return results


def format_only(dataset, results, out_dir):
    """Write `results_nusc.json` for the evaluation server, without a score.

    Returns:
        Path of the file.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    dataset.format_results(results, jsonfile_prefix=str(out_dir))
    _lift_result_files(out_dir)
    return out_dir / "results_nusc.json"


def score(dataset, results, out_dir, metric="bbox", **options):
    """Score predictions as the nuScenes benchmark does.

    Args:
        dataset: the data set that was predicted.
        results: one result dict a sample, in its order.
        out_dir: gets `results_nusc.json`, `metrics_summary.json` and `metrics_details.json`.
        metric: handed to `dataset.evaluate`, as are the options.

    Returns:
        dict: content of `metrics_summary.json`.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    dataset.evaluate(results, metric=metric, jsonfile_prefix=str(out_dir), **options)
    _lift_result_files(out_dir)
    with open(out_dir / "metrics_summary.json") as file:
        return json.load(file)


def score_file(dataset, path, out_dir, devkit=False):
    """Score a `results_nusc.json` that is there already.

    Args:
        dataset: of the samples that the file is for.
        path: of the file.
        out_dir: gets `metrics_summary.json` and `metrics_details.json`.
        devkit: let the nuScenes devkit score.

    Returns:
        dict: content of `metrics_summary.json`.
    """
    out_dir = Path(out_dir)
    dataset.evaluate_file(str(path), str(out_dir), devkit=devkit)
    with open(out_dir / "metrics_summary.json") as file:
        return json.load(file)


def _lift_result_files(out_dir):
    """mmdet3d writes into a sub-folder named like the result key; users look in the folder itself."""
    nested = out_dir / "pts_bbox"
    if nested.is_dir():
        for path in nested.iterdir():
            if (out_dir / path.name).is_dir():
                shutil.rmtree(out_dir / path.name)  # the plots of an earlier evaluation
            os.replace(path, out_dir / path.name)
        nested.rmdir()


def headline_metrics(summary):
    """mAP, NDS and the five true-positive errors under their usual names."""
    errors = {short: summary["tp_errors"][name] for name, short in TP_ERRORS.items()}
    return {"mAP": summary["mean_ap"], "NDS": summary["nd_score"], **errors}

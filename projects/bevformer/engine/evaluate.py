"""Predictions for a whole split, independent of the number of processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Mapping

import torch
from mmcv import Config
from mmcv.cnn import fuse_conv_bn

from projects.bevformer.engine.batch import test_sample_tokens, to_device
from projects.bevformer.engine.build import build_detector
from projects.bevformer.engine.checkpoint import load_checkpoint, load_weights
from projects.bevformer.engine.checkpoint_checks import other_classes
from projects.bevformer.engine.data_loading import build_test_loader
from projects.bevformer.engine.distributed import (
    all_gather,
    get_rank,
    note,
    someone_stops,
    wait_for_all,
)
from projects.bevformer.engine.log import progress_bar
from projects.bevformer.engine.precision import set_compute_format
from projects.bevformer.engine.provenance import check_provenance
from projects.bevformer.files.writing import atomic_write, followed
from projects.bevformer.messages import file_name
from projects.bevformer.nuscenes.evaluation.results import check_samples
from projects.bevformer.nuscenes.info_list import column


def evaluation_dir(
    cfg: Config, config_path: str | Path, source: str | Path, options: Mapping[str, Any]
) -> Path:
    """Make the folder for the results of an evaluation, next to the evaluated file.

    It is `eval_<name of the file>`, or with a number where that folder holds another evaluation:
    of another config, other options, or of a file that has been replaced. The config is kept in it.

    Args:
        cfg: mmcv.Config, with overrides.
        config_path: its file.
        source: checkpoint or result file; for a link such as `latest.pth` the name of its target
            counts.
        options: what else the results depend on.

    Raises:
        FileNotFoundError: no such source.
        OSError: the folder cannot be made.
    """
    file = followed(source)
    if not file.exists():
        raise FileNotFoundError(
            f"{source} is not a local file, next to which results would be written: choose a folder "
            "with --work-dir"
        )
    status, name = file.stat(), file.resolve().name
    given = {key: value for key, value in sorted(options.items()) if value}
    text = (
        f"# of {name}: {status.st_size} bytes, {status.st_mtime_ns}; options {given}\n"
        f"{cfg.pretty_text}"
    )
    first = Path(source).parent / file_name(f"eval_{Path(name).stem}")
    number = 1
    while True:
        folder = first if number == 1 else first.with_name(f"{first.name}_{number}")
        kept = folder / f"{Path(config_path).stem}.py"
        try:
            folder.mkdir()
        except FileExistsError:
            if kept.is_file() and kept.read_text() == text:
                return folder
            number += 1
        except OSError as error:
            raise OSError(
                f"{folder} cannot be made ({error}): choose a folder with --work-dir"
            ) from error
        else:
            with atomic_write(kept, size_bytes=len(text)) as file:
                file.write(text)
            return folder


def build_trained_model(cfg, checkpoint_path, dataset, device, logger, fuse=False):
    """The config's model with the weights of a checkpoint, ready for inference.

    Args:
        cfg: config with `model` (and maybe what `set_compute_format` reads).
        checkpoint_path: weights of that model; every one has to be there.
        dataset: has the class names.
        device: where the model goes.
        logger: receives what was loaded.
        fuse: merge BatchNorm layers into their convolutions.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: it is unreadable, of another model, or was trained for other classes, or the model has
            another number of classes than the data set.
    """
    checkpoint = load_checkpoint(checkpoint_path)
    difference = other_classes(checkpoint, checkpoint_path, dataset)
    if difference is not None:
        raise ValueError(f"{difference}: names and order must agree")
    detector = build_detector(cfg, dataset)
    load_weights(detector, checkpoint, checkpoint_path, logger)
    check_provenance(checkpoint, checkpoint_path, cfg, detector, logger)
    set_compute_format(detector, cfg, device, logger)
    if fuse:
        detector = fuse_conv_bn(detector)
    return detector.to(device).eval()


class PredictionStopped(Exception):
    """A signal ended a prediction before its time, on all ranks."""


def predict(
    detector: torch.nn.Module,
    dataset: Any,
    device: torch.device,
    workers: int = 2,
    stop: Callable[[], bool] = lambda: False,
) -> list[dict] | None:
    """Run a temporal detector over a data set in time order.

    Each process takes whole scenes, so that the temporal memory is never cut; results are keyed by sample
    token and put back into the order of the data set.

    Args:
        detector: bare model with `reset_memory()`; its train or eval mode is restored afterwards.
        dataset: in test mode, with `data_infos`.
        device: torch.device of the detector.
        workers: data loading processes.
        stop: asked after each frame whether to stop; all ranks do when it says so on one.

    Returns:
        On rank 0 a list of result dicts, one per sample, with an entry for each head; None on the other
        ranks.

    Raises:
        ValueError: frames are left without a result, or the data set has other cameras than the detector,
            or another order of them.
        PredictionStopped: `stop` said so, on some rank.
    """
    trained, given = getattr(detector, "CAMERAS", None), getattr(dataset, "cameras", None)
    if trained and given and list(trained) != list(given):
        raise ValueError(
            f"the network is for the cameras {', '.join(trained)}, the data set that is predicted has "
            f"{', '.join(given)}: names and order must agree; write the info files with the same order"
        )
    loader = build_test_loader(dataset, workers, pin_memory=device.type == "cuda")
    was_training = detector.training
    detector.eval()
    detector.reset_memory()
    try:
        results = _predict_shard(detector, loader, device, stop)
    finally:
        detector.reset_memory()
        detector.train(was_training)
    wait_for_all()
    shards = all_gather(results)
    if None in shards:
        raise PredictionStopped
    if get_rank() != 0:
        return None
    tokens = column(dataset.data_infos, "token").tolist()
    check_samples(
        [token for shard in shards for token in shard],
        tokens,
        "the set of predictions",
        "the data set",
    )
    by_token = {token: result for shard in shards for token, result in shard.items()}
    return [by_token[token] for token in tokens]


@torch.no_grad()
def _predict_shard(detector, loader, device, stop):
    """Sample token -> result of the frames of this process; None where it was stopped."""
    results = {}
    for data in progress_bar(loader, "evaluating", "frame"):
        note(f"frame {len(results) + 1} of its part of the evaluation", bounded=True)
        batch = to_device(data, device)
        outputs = detector(return_loss=False, **batch)
        results.update(zip(test_sample_tokens(batch["img_metas"]), outputs))
        if someone_stops(stop()):
            return None
    note("the end of the evaluation")
    return results

"""Pictures of samples of a data set, for tools/eval.py, tools/visualize.py and tools/browse_dataset.py."""

from pathlib import Path
from typing import Any, List, Mapping, Optional, Sequence, Union

import numpy as np
from mmcv import Config

from projects.bevformer.datasets.temporal_nuscenes import TemporalNuScenesDataset
from projects.bevformer.engine.bev_inputs import (
    InputFrame,
    bev_head,
    build_preprocessor,
    ego_track,
    network_input,
    seen_cells,
)
from projects.bevformer.engine.log import progress_bar
from projects.bevformer.messages import file_name


def spaced(total: int, count: Optional[int]) -> List[int]:
    """`count` evenly spaced indices of `total` samples, with the first and the last; 0 or None for all."""
    if not count or count >= total:
        return list(range(total))
    return np.linspace(0, total - 1, count).round().astype(int).tolist()


def choose_samples(
    infos: Sequence[Mapping[str, Any]],
    results: Optional[Mapping[str, Any]],
    tokens: Optional[Sequence[str]],
    count: Optional[int],
) -> List[int]:
    """Choose samples to draw, of those that have a result.

    Args:
        infos: `dataset.data_infos`.
        results: sample token -> result, or None to choose from all samples.
        tokens: of the samples, or None for evenly spaced ones.
        count: see `spaced`.

    Returns:
        Indices into `infos`.

    Raises:
        ValueError: a token is not in `infos`, or has no result.
    """
    index_of = {
        info["token"]: i
        for i, info in enumerate(infos)
        if results is None or info["token"] in results
    }
    if tokens is None:
        indices = list(index_of.values())
        return [indices[i] for i in spaced(len(indices), count)]
    missing = [token for token in tokens if token not in index_of]
    if missing:
        where = "the test set" if results is None else "both the test set and the results"
        raise ValueError(
            f"sample {', '.join(missing)} is not in {where}: check the token and the config"
        )
    return [index_of[token] for token in tokens]


def draw_samples(
    dataset: TemporalNuScenesDataset,
    predictions: Mapping[int, Optional[Mapping[str, Any]]],
    out_dir: Union[str, Path],
    score_threshold: float = 0.3,
) -> None:
    """Draw the BEV and the cameras of samples, with predictions and ground truth.

    Args:
        dataset: that the samples are of.
        predictions: index of each sample to draw -> its "pts_bbox" dict, or None.
        out_dir: folder of the pictures.
        score_threshold: predictions below it are left out.
    """
    from projects.bevformer.visualization import draw_sample  # matplotlib is slow to import
    from projects.bevformer.visualization.bev import BEV_RANGE_M

    own, options = getattr(dataset, "own_benchmark", None), {}
    if own is not None:  # all that is scored is drawn
        options["range_m"] = max(BEV_RANGE_M, *own.class_range.values())
    for index, found in progress_bar(predictions.items(), "drawing", "sample"):
        draw_sample(
            out_dir,
            dataset.info_with_paths(index),
            found,
            dataset.ground_truth(index),
            dataset.data_root,
            score_threshold,
            dataset.CLASSES,
            **options,
        )


def draw_network_inputs(
    cfg: Config, dataset: TemporalNuScenesDataset, count: Optional[int], out_dir: Union[str, Path]
) -> List[int]:
    """Draw the input of the network for evenly spaced samples: three files per sample.

    Args:
        cfg: the config that `dataset` was built from.
        dataset: in train or test mode.
        count: see `spaced`.
        out_dir: folder of the pictures.

    Returns:
        Indices of the samples that were drawn; training skips samples without an object.
    """
    from projects.bevformer.visualization.boxes import (
        drawable_boxes,
    )  # matplotlib is slow to import
    from projects.bevformer.visualization.cameras import draw_views
    from projects.bevformer.visualization.network_input import draw_input_bev, draw_queue
    from projects.bevformer.visualization.sample import write_picture

    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    preprocessor, head = build_preprocessor(cfg), bev_head(cfg)
    # All at once: reading the records of nuScenes takes seconds.
    times_us = {info["token"]: info["timestamp"] for info in dataset.data_infos}
    drawn = []
    for index in progress_bar(spaced(len(dataset), count), "drawing", "sample"):
        sample = network_input(dataset, index, preprocessor)
        if sample is None:
            continue
        info, last = dataset.data_infos[index], sample.frames[-1]
        queue = []
        for frame in sample.frames:
            seconds = (times_us[frame.token] - times_us[last.token]) / 1e6
            queue.append((_caption(frame, seconds), dict(zip(sample.cameras, frame.images_bgr))))
        # The boxes are where the network's matrices put them.
        views = dict(zip(sample.cameras, zip(last.images_bgr, last.lidar2img)))
        cameras = draw_views(info, views, drawable_boxes(None, sample.ground_truth, 0.0))
        seen = dict(zip(sample.cameras, seen_cells(head, last)))
        pc_range = head.transformer.encoder.pc_range
        track = ego_track(sample.frames)
        bev = draw_input_bev(info, sample.ground_truth, seen, pc_range, *track, dataset.CLASSES)
        pictures = {"queue": draw_queue(info, queue), "cameras": cameras, "bev": bev}
        for name, picture in pictures.items():
            write_picture(out_dir / file_name(last.token, f"_{name}.png"), picture)
        drawn.append(index)
    return drawn


def _caption(frame: InputFrame, seconds: float) -> str:
    """Time of a frame and the motion since the previous frame that the network gets."""
    if not frame.has_history:
        return f"{seconds:+.2f} s, starts anew"
    moved, turned = np.linalg.norm(frame.can_bus[:2]), frame.can_bus[17]
    return f"{seconds:+.2f} s, moved {moved:.2f} m, turned {turned:+.2f} deg"

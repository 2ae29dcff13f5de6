"""Detections -> boxes in the global frame -> `results_nusc.json`, and back.

Shape legend: M detections, F frames.
"""

from __future__ import annotations

import json
import os
import os.path as osp
import reprlib
from array import array
from collections import Counter
from typing import Any, NamedTuple, Sequence

import numpy as np

from projects.bevformer.files.data_files import load_json
from projects.bevformer.files.writing import atomic_write
from projects.bevformer.geometry import rotations
from projects.bevformer.nuscenes.benchmark import attributes_of, rules_of
from projects.bevformer.nuscenes.evaluation.metrics import Boxes
from projects.bevformer.nuscenes.records import poses_of
from projects.bevformer.nuscenes.spec import SPLIT_OF_SIZE

_MOVING_SPEED = 0.2  # m/s; as in mmdet3d, attributes follow from the class and from moving or not
_RECORD = (
    '{"sample_token": %s, "translation": [%r, %r, %r], "size": [%r, %r, %r], '
    '"rotation": [%r, %r, %r, %r], "velocity": [%r, %r], "detection_name": %s, '
    '"detection_score": %r, "attribute_name": %s}'
)
_LENGTHS = {"translation": 3, "size": 3, "rotation": 4, "velocity": 2}


def attribute_codes(config: Any) -> dict[str, int]:
    """Attribute -> code in `Boxes.attribute`; "" is -1."""
    return {"": -1, **{name: code for code, name in enumerate(attributes_of(config))}}


class Frames:
    """What turns detections of many frames into global boxes.

    Args:
        infos: the F info records.

    Attributes:
        tokens: F sample tokens.
        lidar2ego, ego2global: (F, 4) unit quaternions.
        lidar_in_ego, ego_in_global: (F, 3) metres.
    """

    def __init__(self, infos: Sequence[dict]) -> None:
        self.tokens = [info["token"] for info in infos]
        self.lidar2ego, self.lidar_in_ego = poses_of(infos, "lidar2ego")
        self.ego2global, self.ego_in_global = poses_of(infos, "ego2global")


def detected_boxes(
    detections: Sequence[dict],
    frames: Frames,
    class_names: Sequence[str],
    config: Any,
    velocity: str = "horizontal",
) -> Boxes:
    """Detections of many frames in the global frame.

    Boxes beyond the range in which the benchmark counts their class are dropped.

    Args:
        detections: F dicts: boxes_3d, LiDARInstance3DBoxes with 7 or 9 columns; scores_3d; labels_3d.
        frames: the F frames, in the same order.
        class_names: label -> name.
        config: the devkit's DetectionConfig, or an OwnBenchmark.
        velocity: what is taken for the part of the velocities along the lidar's z axis, which boxes lack.
            "horizontal": the one that makes them horizontal in the global frame; "official": 0, as in the
            original, which loses up to 0.07 m/s at 11 m/s where the lidar is tilted by a few degrees.

    Returns:
        M `Boxes`, frame after frame; `sample` is the index of the frame.

    Raises:
        ValueError: a number is not finite, a size is not positive, there are more boxes in a frame than
            the benchmark accepts, or it has no such class.
    """
    benchmark_names = list(config.class_range)
    unknown = [name for name in class_names if name not in config.class_range]
    if unknown:
        raise ValueError(
            f"the benchmark has no class {', '.join(unknown)}: `classes` of the config may hold "
            f"{', '.join(benchmark_names)}"
        )
    columns = np.concatenate([_columns(found["boxes_3d"]) for found in detections])
    scores = np.concatenate([np.asarray(found["scores_3d"], float) for found in detections])
    labels = np.concatenate([np.asarray(found["labels_3d"], int) for found in detections])
    frame = np.repeat(np.arange(len(detections)), [len(found["scores_3d"]) for found in detections])
    lidar2global = rotations.multiply(frames.ego2global, frames.lidar2ego)

    centers = columns[:, :3].copy()
    centers[:, 2] += columns[:, 5] / 2  # from the bottom to the middle
    centers_ego = rotations.rotate(frames.lidar2ego[frame], centers) + frames.lidar_in_ego[frame]
    velocities = np.zeros((len(columns), 3))
    velocities[:, :2] = columns[:, 7:9]
    if velocity == "horizontal":
        up = rotations.rotate_back(lidar2global, np.array([[0.0, 0.0, 1.0]]))[frame]
        velocities[:, 2] = -(up[:, :2] * velocities[:, :2]).sum(axis=1) / up[:, 2]
    velocities = rotations.rotate(lidar2global[frame], velocities)[:, :2]
    rules, codes = rules_of(config), attribute_codes(config)
    moving = np.hypot(velocities[:, 0], velocities[:, 1]) > _MOVING_SPEED
    boxes = Boxes(
        sample=frame,
        label=np.array([benchmark_names.index(name) for name in class_names], int)[labels],
        box=np.concatenate(
            (
                rotations.rotate(frames.ego2global[frame], centers_ego)
                + frames.ego_in_global[frame],
                columns[:, [4, 3, 5]],
                rotations.multiply(lidar2global[frame], rotations.about_z(columns[:, 6])),
            ),
            axis=1,
        ),
        velocity=velocities,
        attribute=np.where(
            moving,
            *(
                np.array([codes[name] for name in names], int)[labels]
                for names in zip(*(rules[name].attributes or ("", "") for name in class_names))
            ),
        ),
        score=scores,
    )
    _check_boxes(boxes, frames.tokens, "predictions", config, np.isfinite(velocities))
    ranges = np.array([config.class_range[name] for name in class_names])
    return boxes.take(np.hypot(centers_ego[:, 0], centers_ego[:, 1]) <= ranges[labels])


def _columns(boxes):
    """(M, 9) float64, bottom centre; a velocity that is not predicted is 0."""
    columns = boxes.tensor.detach().cpu().double().numpy()
    if columns.shape[1] == 9:
        return columns
    return np.concatenate((columns[:, :7], np.zeros((len(columns), 2))), axis=1)


def _check_boxes(boxes, tokens, source, config, right_velocity):
    """Raise for boxes that the benchmark does not accept, and where `right_velocity` (M, 2) is False."""

    def check(is_right, problem):
        if not is_right.all():
            row = is_right.argmin()
            first = (boxes.sample == boxes.sample[row]).argmax()
            token = tokens[boxes.sample[row]]
            raise ValueError(f"{source}: box {row - first} of sample {token}: {problem}")

    for name, values in (
        ("translation", boxes.box[:, :3]),
        ("size", boxes.box[:, 3:6]),
        ("rotation", boxes.box[:, 6:]),
        ("detection_score", boxes.score[:, None]),
    ):
        check(np.isfinite(values).all(axis=1), f"{name} is not finite")
    check(right_velocity.all(axis=1), "velocity is not finite")
    check((boxes.box[:, 3:6] > 0).all(axis=1), "size is zero or less")
    check(boxes.score >= 0, "detection_score is negative")
    counts = np.bincount(boxes.sample, minlength=1)
    if counts.max() > config.max_boxes_per_sample:
        raise ValueError(
            f"{source}: {counts.max()} boxes for sample {tokens[counts.argmax()]}, the benchmark takes "
            f"{config.max_boxes_per_sample}: lower max_num of the box coder"
        )


def write_result_file(
    boxes: Boxes, tokens: Sequence[str], modality: dict[str, bool], config: Any, path: str
) -> None:
    """Write boxes as a nuScenes submission; the same boxes give the same bytes.

    Args:
        boxes: `Boxes` sorted by sample.
        tokens: sample tokens; all of them are keys of the file.
        modality: dict of use_camera ... use_external.
        config: the devkit's DetectionConfig, or an OwnBenchmark.
        path: of the file; its folder is created if needed.
    """
    os.makedirs(osp.dirname(path) or ".", exist_ok=True)
    names = [json.dumps(name) for name in config.class_range]
    attributes = [json.dumps(name) for name in (*attributes_of(config), "")]  # -1 is the last
    ends = np.searchsorted(boxes.sample, np.arange(len(tokens)), side="right").tolist()
    with atomic_write(path) as file:
        file.write(f'{{"meta": {json.dumps(modality)}, "results": {{')
        for index, (token, start, end) in enumerate(zip(tokens, [0, *ends[:-1]], ends)):
            token = json.dumps(token)
            of_sample = boxes.take(slice(start, end))
            records = (
                _RECORD % (token, *box, *velocity, names[label], score, attributes[attribute])
                for box, velocity, label, score, attribute in zip(
                    of_sample.box.tolist(),
                    of_sample.velocity.tolist(),
                    of_sample.label.tolist(),
                    of_sample.score.tolist(),
                    of_sample.attribute.tolist(),
                )
            )
            file.write(f"{', ' if index else ''}{token}: [{', '.join(records)}]")
        file.write("}}")


def read_result_file(
    path: str, tokens: Sequence[str], config: Any, split: str, whole: bool = True
) -> tuple[Boxes, dict]:
    """Read a nuScenes submission.

    Args:
        path: `results_nusc.json`.
        tokens: sample tokens that it must contain, in any order.
        config: the devkit's DetectionConfig, or an OwnBenchmark.
        split: what the tokens are of, for the message.
        whole: the file must hold no other samples; otherwise they are left out.

    Returns:
        boxes: `Boxes` in the order of the file; `sample` is an index into tokens.
        meta: its "meta".

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a submission; samples are missing, extra or repeated; or a box that the benchmark
            does not accept.
    """
    results, meta, repeated = _parse_file(path, config)
    if not whole:
        wanted = set(tokens)
        results = {token: boxes for token, boxes in results.items() if token in wanted}
        repeated = [token for token in repeated if token in wanted]
    check_samples([*results, *repeated], tokens, path, split)
    return _boxes_of(results, tokens, path, config), meta


def read_results_of(path: str, tokens: Sequence[str], config: Any) -> tuple[Boxes, list[str]]:
    """Read those samples of a nuScenes submission that are among `tokens`; it may hold others.

    Args and errors: as in `read_result_file`.

    Returns:
        boxes: `Boxes`; `sample` is an index into tokens.
        found: list of the tokens that the file holds.
    """
    results, _, _ = _parse_file(path, config)
    found = {token: results[token] for token in tokens if token in results}
    return _boxes_of(found, tokens, path, config), list(found)


def _parse_file(path, config):
    """Sample token -> list of _ParsedBox, "meta", and the tokens that occur more than once."""
    if not osp.isfile(path):
        raise FileNotFoundError(f"result file {path} does not exist: write one with --format-only")
    labels = {name: label for label, name in enumerate(config.class_range)}
    codes, repeated = attribute_codes(config), []

    def parse(pairs):
        """Make boxes compact as soon as they are read: the file of a whole split is large."""
        members = dict(pairs)
        if "sample_token" in members or "translation" in members:
            return _parse_box(members, labels, codes, path)
        if len(members) < len(pairs):
            repeated.extend(key for key, count in Counter(k for k, _ in pairs).items() if count > 1)
        return members

    try:
        with open(path) as file:
            content = load_json(file, object_pairs_hook=parse)
    except (ValueError, RecursionError) as error:
        if str(error).startswith(f"{path}: "):  # of a box
            raise
        raise ValueError(f"{path} is not JSON or is cut off ({error}): write it again") from error
    for key in ("meta", "results"):
        if not isinstance(content, dict) or not isinstance(content.get(key), dict):
            raise ValueError(
                f'{path} has no "{key}", a JSON object: it is not a nuScenes submission'
            )
    return content["results"], content["meta"], repeated


def _boxes_of(results, tokens, path, config):
    """What `_parse_file` read, as `Boxes`."""
    index_of = {token: index for index, token in enumerate(tokens)}
    samples, rows = [], []
    for token, boxes in results.items():
        if not isinstance(boxes, list) or not all(isinstance(box, _ParsedBox) for box in boxes):
            raise ValueError(f"{path}: sample {token} is not a list of boxes")
        if any(box.token != token for box in boxes):
            raise ValueError(f"{path}: a box of sample {token} has another sample_token")
        samples += [index_of[token]] * len(boxes)
        rows += boxes
    numbers = np.array([row.numbers for row in rows], dtype=np.float64).reshape(-1, 13)
    boxes = Boxes(
        sample=np.array(samples, dtype=int),
        label=np.array([row.label for row in rows], dtype=int),
        box=numbers[:, :10],
        velocity=numbers[:, 10:12],
        attribute=np.array([row.attribute for row in rows], dtype=int),
        score=numbers[:, 12],
    )
    # As in the devkit, a velocity may be unknown.
    _check_boxes(boxes, tokens, path, config, ~np.isinf(boxes.velocity))
    return boxes


class _ParsedBox(NamedTuple):
    """A box of a result file."""

    token: str
    label: int
    attribute: int
    numbers: array  # translation, size, rotation, velocity, score


def _parse_box(members, labels, codes, path):
    def fail(problem):
        raise ValueError(f"{path}: a box of sample {members.get('sample_token')}: {problem}")

    fields = ("sample_token", *_LENGTHS, "detection_name", "detection_score", "attribute_name")
    absent = [field for field in fields if field not in members]
    if absent:
        fail(f"it has no {', '.join(absent)}")
    numbers = array("d")
    for field, length in {**_LENGTHS, "detection_score": 1}.items():
        values = [members[field]] if length == 1 else members[field]
        try:
            numbers.extend(values)
        except (TypeError, OverflowError):
            fail(f"{field} is {reprlib.repr(members[field])}, not of numbers")
        if len(values) != length:
            fail(f"{field} has {len(values)} numbers, not {length}")
    name, attribute = members["detection_name"], members["attribute_name"]
    if not isinstance(name, str) or name not in labels:
        fail(f"detection_name {reprlib.repr(name)} is not one of {', '.join(labels)}")
    if not isinstance(attribute, str) or attribute not in codes:
        fail(
            f"attribute_name {reprlib.repr(attribute)} is not one of {', '.join(list(codes)[1:])}, or empty"
        )
    return _ParsedBox(members["sample_token"], labels[name], codes[attribute], numbers)


def check_samples(found: Sequence[str], expected: Sequence[str], source: str, split: str) -> None:
    """Raise if samples are missing, extra or repeated, with what probably went wrong.

    Args:
        found: sample tokens that have results.
        expected: sample tokens of the split.
        source: where the results are from, for the message.
        split: such as "val of v1.0-mini", for the message.

    Raises:
        ValueError: they are not the same.
    """
    missing = len(set(expected) - set(found))
    extra = len(set(found) - set(expected))
    twice = len(found) - len(set(found))
    if not (missing or extra or twice):
        return
    total = len(set(expected))
    if missing == total:
        likely = "they are of another version or split"
    elif extra:
        likely = "they are of a larger version or split, or of several"
    elif missing:
        likely = "the run was cut short, or load_interval is not 1"
    else:
        likely = "the results of several runs were put together"
    if (missing or extra) and len(set(found)) in SPLIT_OF_SIZE:
        likely += f"; {SPLIT_OF_SIZE[len(set(found))]} has {len(set(found))} samples"
    raise ValueError(
        f"{source} does not fit {split}: of its {total} samples {missing} are missing, {extra} results "
        f"are of other samples, and {twice} are there twice; probably {likely}"
    )

"""Ground truth of the benchmark, from info files or from the tables."""

from __future__ import annotations

from typing import Any, Sequence

import numpy as np

from projects.bevformer.geometry import rotations
from projects.bevformer.nuscenes.evaluation.metrics import Boxes, GroundTruth
from projects.bevformer.nuscenes.evaluation.results import attribute_codes
from projects.bevformer.nuscenes.records import boxes_global, velocities_global
from projects.bevformer.nuscenes.spec import BICYCLE_RACK, CATEGORY_TO_CLASS

# What older info files, and those of other projects, do not have.
EVALUATION_FIELDS = ("gt_centers_global", "gt_rotations_global", "gt_attributes")


def has_ground_truth(infos: Sequence[dict]) -> bool:
    """Whether info records contain everything that the benchmark compares with."""
    return all(field in info for info in infos for field in EVALUATION_FIELDS)


def ground_truth_of_infos(infos: Sequence[dict], config: Any) -> GroundTruth:
    """`GroundTruth` of annotated info records.

    Centres and rotations of records without the `EVALUATION_FIELDS` follow from their boxes, their objects
    have no attributes.
    """
    counts = [len(info["gt_names"]) for info in infos]
    return _ground_truth(
        sample=np.repeat(np.arange(len(infos)), counts),
        names=[name for info in infos for name in info["gt_names"].tolist()],
        box=_rows(10, (boxes_global(info) for info in infos)),
        velocity=_rows(2, (velocities_global(info) for info in infos)),
        attributes=[
            name
            for info in infos
            for name in info.get("gt_attributes", [""] * len(info["gt_names"]))
        ],
        points=_rows(1, (info["num_lidar_pts"] + info["num_radar_pts"] for info in infos))[:, 0],
        ego_xy=_rows(3, (info["ego2global_translation"] for info in infos))[:, :2],
        config=config,
    )


def ground_truth_of_tables(nusc: Any, tokens: Sequence[str], config: Any) -> GroundTruth:
    """`GroundTruth` of samples of the devkit's tables."""
    samples = [nusc.get("sample", token) for token in tokens]
    annotations = [nusc.get("sample_annotation", token) for s in samples for token in s["anns"]]
    lidars = [nusc.get("sample_data", sample["data"]["LIDAR_TOP"]) for sample in samples]
    poses = [nusc.get("ego_pose", lidar["ego_pose_token"]) for lidar in lidars]
    return _ground_truth(
        sample=np.repeat(np.arange(len(samples)), [len(sample["anns"]) for sample in samples]),
        names=[CATEGORY_TO_CLASS.get(a["category_name"], a["category_name"]) for a in annotations],
        box=_rows(10, (a["translation"] + a["size"] + a["rotation"] for a in annotations)),
        velocity=_rows(2, (nusc.box_velocity(a["token"])[:2] for a in annotations)),
        attributes=[attribute_name(nusc, annotation) for annotation in annotations],
        points=np.array([a["num_lidar_pts"] + a["num_radar_pts"] for a in annotations]),
        ego_xy=_rows(3, (pose["translation"] for pose in poses))[:, :2],
        config=config,
    )


def attribute_name(nusc: Any, annotation: dict) -> str:
    """Name of an annotation's attribute, empty where it has none.

    Raises:
        ValueError: it has several.
    """
    tokens = annotation["attribute_tokens"]
    if len(tokens) > 1:
        raise ValueError(
            f"annotation {annotation['token']} has {len(tokens)} attributes, nuScenes gives at most "
            "one: the tables are damaged, unpack the metadata again"
        )
    return nusc.get("attribute", tokens[0])["name"] if tokens else ""


def _rows(width, rows):
    """Float array with `width` columns, even without rows."""
    rows = list(rows)
    return np.concatenate([np.zeros(0), *map(np.ravel, rows)]).reshape(-1, width)


def _ground_truth(sample, names, box, velocity, attributes, points, ego_xy, config):
    codes = attribute_codes(config)
    label_of = {name: label for label, name in enumerate(config.class_range)}
    label = np.array([label_of.get(name, -1) for name in names], dtype=int)
    boxes = Boxes(
        sample=sample,
        label=label,
        box=box,
        velocity=velocity,
        attribute=np.array([codes.get(name, len(codes)) for name in attributes], dtype=int),
    )
    racks = boxes.take(np.array([name == BICYCLE_RACK for name in names], dtype=bool))
    racks.box[:, 6:] = rotations.normalise(racks.box[:, 6:])
    return GroundTruth(
        boxes=boxes.take((label >= 0) & (points > 0)),
        ego_xy=ego_xy,
        rack_sample=racks.sample,
        rack_box=racks.box,
    )

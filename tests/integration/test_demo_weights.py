"""The demo weights in the repository fit the code and find objects in the synthetic world."""

import logging

import numpy as np
import pytest
import torch
from tool_runs import DEMO, REPOSITORY, scale_options

from projects.bevformer import compat  # noqa: F401
from projects.bevformer.engine.checkpoint import load_checkpoint
from projects.bevformer.engine.checkpoint_summary import compare
from projects.bevformer.engine.config import load_config
from projects.bevformer.engine.data_loading import build_test_dataset
from projects.bevformer.engine.evaluate import build_trained_model, predict

WEIGHTS = REPOSITORY / "data" / "demo" / "bevformer_demo.pth"
CPU = torch.device("cpu")

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def cfg(synthetic_infos):
    # The pictures of the fixture have the size to which the demo scales its own.
    cfg = load_config(DEMO, synthetic_infos.two_scenes)
    cfg.merge_from_dict(scale_options({"data.test.pipeline": cfg.data.test.pipeline}, scale=1.0))
    return cfg


def test_they_are_small_and_fit_the_demo(cfg):
    assert WEIGHTS.stat().st_size <= 12 * 2**20
    (line,) = compare(load_checkpoint(WEIGHTS), WEIGHTS, cfg)
    assert line == "279 of 279 weights of the model are in the file"


def test_they_find_near_objects(cfg):
    """Of the objects within 20 m that a lidar sees well, most are found within 2 m, by class."""
    dataset = build_test_dataset(cfg)
    detector = build_trained_model(cfg, WEIGHTS, dataset, CPU, logging.getLogger())
    results = predict(detector, dataset, CPU, workers=0)
    found = []
    for info, result in zip(dataset.data_infos, results):
        boxes = result["pts_bbox"]["boxes_3d"].gravity_center.numpy()[:, :2]
        labels, scores = (result["pts_bbox"][key].numpy() for key in ("labels_3d", "scores_3d"))
        near = (np.linalg.norm(info["gt_boxes"][:, :2], axis=1) < 20) & (info["num_lidar_pts"] > 10)
        for centre, name in zip(info["gt_boxes"][near, :2], info["gt_names"][near]):
            same = (labels == dataset.CLASSES.index(name)) & (scores > 0.2)
            distances = np.linalg.norm(boxes[same] - centre, axis=1)
            found.append(bool((distances < 2).any()))
    assert len(found) > 20
    assert np.mean(found) > 0.5, f"{sum(found)} of {len(found)}"

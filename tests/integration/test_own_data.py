"""The worked example of docs/own_data.md: five cameras and three classes of its own, from the info files to the pictures."""

from pathlib import Path

import cv2
import pytest
import torch
from own_data import (
    IMAGE_HW,
    drive_of,
    made_up_object,
    page_blocks,
    page_writer,
    truth_as_results,
    write_pictures,
)
from tiny_bevformer import losses_of

from projects.bevformer import plugin  # noqa: F401
from projects.bevformer.datasets.scenes import keep_scenes
from projects.bevformer.doctor.config import check_config, info_files_of
from projects.bevformer.doctor.data_set import check_data_set
from projects.bevformer.doctor.info_files import check_info_files
from projects.bevformer.engine.build import build_detector
from projects.bevformer.engine.config import load_config
from projects.bevformer.engine.data_loading import build_test_dataset, build_train_dataset
from projects.bevformer.engine.evaluate import predict
from projects.bevformer.engine.hooks import TemporalEvalHook
from projects.bevformer.engine.pictures import draw_network_inputs, draw_samples
from projects.bevformer.visualization import load_results

pytestmark = pytest.mark.integration
CONFIGS = Path(__file__).parents[2] / "configs"
OBJECTS = [
    made_up_object("car", 5.0, 10.0, (3.0, 0.0), "car.driving"),
    made_up_object("worker", -6.0, 4.0, (0.0, 1.0)),
    made_up_object("pedestrian", 2.0, -9.0),
    made_up_object("pylon", 0.0, 6.0),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The data set that the page's code writes, of two drives each."""
    root = tmp_path_factory.mktemp("my_rig")
    writer = page_writer()
    for split in ("train", "val"):
        drives = [drive_of(f"{split}-{i}", OBJECTS, 2, writer.CAMERAS) for i in range(2)]
        writer.write_infos(drives, split, str(root / f"my_rig_infos_temporal_{split}.pkl"))
        write_pictures(root, drives)
    return root


def page_config(tmp_path, root, **options):
    """The page's config on the small network of the demo."""
    text = page_blocks()[1].replace("./config.py", str(CONFIGS / "demo.py"))
    path = tmp_path / "my_rig.py"
    path.write_text(text.replace("data/my_rig/", f"{root}/"))
    return load_config(str(path), {"load_from": None, **options})


def test_the_example_trains_evaluates_and_draws(tmp_path, root):
    cfg = page_config(tmp_path, root)
    train_set, dataset = build_train_dataset(cfg), build_test_dataset(cfg, "test")
    assert dataset.cameras == tuple(page_writer().CAMERAS)
    assert dataset.CLASSES == ["car", "person", "cone"]
    hook = TemporalEvalHook(dataset, torch.device("cpu"), save_best="auto")
    assert hook.best_key == cfg.evaluation.save_best == "mAP_own"

    detector = build_detector(cfg, dataset)
    assert len(detector.pts_bbox_head.transformer.cams_embeds) == 5
    item = train_set.prepare_train_data(1)
    assert item["gt_labels_3d"].data.tolist() == [0, 1, 1, 2]
    sum(losses_of(detector, item).values()).backward()

    results = predict(detector, dataset, torch.device("cpu"), workers=0)
    summary = dataset.evaluator.score(results, str(tmp_path / "scores"))
    assert set(summary["mean_dist_aps"]) == {"car", "person", "cone"}
    assert dataset.evaluator.score(truth_as_results(dataset))["mean_ap"] == pytest.approx(1.0)

    path = tmp_path / "scores" / "results_nusc.json"
    found = load_results(path, dataset.data_infos, dataset.CLASSES, dataset.eval_detection_configs)
    token = dataset.data_infos[0]["token"]
    draw_samples(dataset, {0: found[token]}, tmp_path / "pictures")
    draw_network_inputs(cfg, train_set, 1, tmp_path / "inputs")
    assert len(list((tmp_path / "inputs").iterdir())) == 3
    picture = cv2.imread(str(tmp_path / "pictures" / f"{token}_camera.png"))
    assert picture.shape[1] == 3 * IMAGE_HW[1] + 2 * 6  # three cameras look ahead, two back

    keep_scenes(dataset, ["val-1"])
    part = predict(detector, dataset, torch.device("cpu"), workers=0)
    for one, other in zip(part, results[2:]):
        assert torch.equal(one["pts_bbox"]["scores_3d"], other["pts_bbox"]["scores_3d"])


def test_the_doctor_finds_nothing_in_it(tmp_path, root):
    cfg = page_config(tmp_path, root)
    files = info_files_of(cfg)
    findings = [
        *check_data_set(str(root), info_files=list(files.values())),
        *check_info_files(files, str(root)),
        *check_config(cfg),
    ]
    assert not [finding for finding in findings if finding.level != "ok"]
    assert any("none needed" in finding.what for finding in findings)
    assert any(finding.what.startswith("12 of 40 decoded") for finding in findings)

"""A rig of five cameras from the tables to the pictures: nothing assumes the six of nuScenes."""

from pathlib import Path

import cv2
import pytest
import torch
from tiny_bevformer import losses_of

from projects.bevformer import plugin  # noqa: F401
from projects.bevformer.engine.build import build_detector
from projects.bevformer.engine.config import load_config
from projects.bevformer.engine.data_loading import build_test_dataset, build_train_dataset
from projects.bevformer.engine.evaluate import predict
from projects.bevformer.engine.pictures import draw_network_inputs, draw_samples
from projects.bevformer.nuscenes.create_infos import create_nuscenes_infos
from projects.bevformer.visualization import load_results
from projects.synthetic_nuscenes.cameras import camera_ring
from projects.synthetic_nuscenes.data_set import create_data_set

pytestmark = pytest.mark.integration
CONFIG = Path(__file__).parents[2] / "configs" / "demo.py"


def test_five_cameras_from_tables_to_pictures(tmp_path):
    root = create_data_set(
        tmp_path / "data",
        image_hw=(112, 200),
        frames_per_scene=2,
        scenes=("scene-0061", "scene-0103"),
        workers=1,
        show_progress=False,
        cameras=camera_ring(5),
    )
    create_nuscenes_infos(str(root), str(root), "five", "v1.0-mini", str(root))
    files = {"train": "train", "val": "val", "test": "val"}
    options = {
        f"data.{split}.ann_file": str(root / f"five_infos_temporal_{part}.pkl")
        for split, part in files.items()
    }
    cfg = load_config(str(CONFIG), options, str(root))
    train_set, dataset = build_train_dataset(cfg), build_test_dataset(cfg, "test")
    assert dataset.cameras == ("CAM_0", "CAM_1", "CAM_2", "CAM_3", "CAM_4")

    detector = build_detector(cfg, dataset)
    assert len(detector.pts_bbox_head.transformer.cams_embeds) == 5
    item = train_set.prepare_train_data(0)
    sum(losses_of(detector, item).values()).backward()

    results = predict(detector, dataset, torch.device("cpu"), workers=0)
    metrics = dataset.evaluate(results, jsonfile_prefix=str(tmp_path / "results"))
    assert any(name.endswith("NDS") for name in metrics)

    (path,) = (tmp_path / "results").rglob("results_nusc.json")
    found = load_results(path, dataset.data_infos, dataset.CLASSES)
    token = dataset.data_infos[0]["token"]
    draw_samples(dataset, {0: found[token]}, tmp_path / "pictures")
    draw_network_inputs(cfg, train_set, 1, tmp_path / "inputs")
    assert len(list((tmp_path / "inputs").iterdir())) == 3
    picture = cv2.imread(str(tmp_path / "pictures" / f"{token}_camera.png"))
    assert picture.shape[1] == 3 * 200 + 2 * 6  # CAM_1, CAM_0, CAM_4 above CAM_2, CAM_3

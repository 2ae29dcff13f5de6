import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from dummy_task import DummyDataset, DummyDetector
from mmcv import ConfigDict

from projects.bevformer.engine import evaluate
from projects.bevformer.engine.checkpoint import save_checkpoint
from projects.bevformer.engine.evaluate import (
    build_trained_model,
    predict,
)

CPU = torch.device("cpu")
LOGGER = logging.getLogger("test")


def scores(results):
    return [result["pts_bbox"]["scores_3d"].item() for result in results]


def test_predictions_are_in_the_order_of_the_data_set():
    detector, dataset = DummyDetector(), DummyDataset(test_mode=True)
    results = scores(predict(detector, dataset, CPU, workers=0))
    detector.eval()
    expected = []
    with torch.no_grad():
        for index, info in enumerate(dataset.data_infos):
            own = detector._score(dataset[index]["img"][0].data[None].mean(1)).item()
            first = info["token"].endswith("f0")
            expected.append(own if first else own + 0.5 * expected[-1])
    assert results == pytest.approx(expected)


def test_predicting_twice_is_the_same_and_restores_the_mode():
    detector, dataset = DummyDetector(), DummyDataset(frames_per_scene=(3,), test_mode=True)
    detector.train()
    first = scores(predict(detector, dataset, CPU, workers=0))
    assert detector.training
    detector.eval()
    assert scores(predict(detector, dataset, CPU, workers=0)) == first
    assert not detector.training
    assert detector.memory is None


def test_cameras_in_another_order_are_refused():
    detector, dataset = DummyDetector(), DummyDataset(test_mode=True)
    detector.CAMERAS = list(dataset.cameras)
    predict(detector, dataset, CPU, workers=0)
    detector.CAMERAS.reverse()
    with pytest.raises(ValueError, match="network is for the cameras CAM_BACK_RIGHT, .*same order"):
        predict(detector, dataset, CPU, workers=0)


def test_shards_of_many_processes_give_the_same_list(monkeypatch):
    detector, dataset = DummyDetector(), DummyDataset(test_mode=True)
    alone = scores(predict(detector, dataset, CPU, workers=0))
    shards = []
    for rank in range(2):
        monkeypatch.setattr(
            "projects.bevformer.engine.data_loading.get_rank", lambda rank=rank: rank
        )
        monkeypatch.setattr("projects.bevformer.engine.data_loading.get_world_size", lambda: 2)
        monkeypatch.setattr(evaluate, "all_gather", lambda shard: shards.append(shard) or shards)
        if rank == 0:
            with pytest.raises(ValueError, match="of its 9 samples 4 are missing"):
                predict(detector, dataset, CPU, workers=0)
    shards.reverse()  # the order in which ranks answer must not matter
    assert scores(predict(detector, dataset, CPU, workers=0)) == alone
    assert all(shards)


def test_result_files_lie_in_the_folder_itself(tmp_path):
    dataset = DummyDataset(test_mode=True)
    results = predict(DummyDetector(), dataset, CPU, workers=0)
    summary = dataset.evaluator.score(results, str(tmp_path / "a"))
    written = json.loads((tmp_path / "a" / "metrics_summary.json").read_text())
    np.testing.assert_equal(written, summary)
    assert summary["nd_score"] == pytest.approx(sum(scores(results)) / 9)
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "metrics_summary.json", "results_nusc.json",
    ]  # fmt: skip
    path = dataset.evaluator.write(results, str(tmp_path / "b"))["pts_bbox"]
    assert Path(path).read_bytes() == (tmp_path / "a" / "results_nusc.json").read_bytes()
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["results_nusc.json"]


def test_result_file_is_scored_by_the_data_set(tmp_path):
    dataset = DummyDataset(test_mode=True)
    results = predict(DummyDetector(), dataset, CPU, workers=0)
    summary = dataset.evaluator.score(results, str(tmp_path / "a"))
    path = tmp_path / "a" / "results_nusc.json"
    np.testing.assert_equal(dataset.evaluator.score_file(str(path), str(tmp_path / "b")), summary)
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["metrics_summary.json"]


def test_results_of_other_heads_are_gathered():
    class TwoHeads(DummyDetector):
        def _test(self, img, metas):
            (result,) = super()._test(img, metas)
            return [{**result, "map_head": {"of": metas[0]["sample_idx"]}}]

    dataset = DummyDataset(test_mode=True)
    results = predict(TwoHeads(), dataset, CPU, workers=0)
    assert [result["map_head"]["of"] for result in results] == [
        info["token"] for info in dataset.data_infos
    ]


def config(width=4, fp16=None):
    model = ConfigDict(type="DummyDetector", width=width, pretrained="https://never.read/weights")
    return ConfigDict(model=model, fp16=fp16)


def test_trained_models_load_completely_and_take_the_precision(tmp_path):
    detector, dataset = DummyDetector(), DummyDataset(test_mode=True)
    detector.CLASSES = dataset.CLASSES
    path = tmp_path / "a.pth"
    save_checkpoint(path, detector)
    built = build_trained_model(config(), path, dataset, CPU, LOGGER)
    assert torch.equal(built.head.weight, detector.head.weight)
    assert not built.training
    assert built.autocast_dtype is None
    fp16 = {"loss_scale": 512.0}
    assert (
        build_trained_model(config(fp16=fp16), path, dataset, CPU, LOGGER).autocast_dtype
        is torch.bfloat16
    )
    with pytest.raises(ValueError, match="another config"):
        build_trained_model(config(width=8), path, dataset, CPU, LOGGER)


def test_checkpoints_of_other_classes_are_refused(tmp_path):
    detector, dataset = DummyDetector(), DummyDataset(test_mode=True)
    detector.CLASSES = dataset.CLASSES[::-1]
    save_checkpoint(tmp_path / "a.pth", detector)
    with pytest.raises(ValueError, match="trained for the classes"):
        build_trained_model(config(), tmp_path / "a.pth", dataset, CPU, LOGGER)


def test_heads_for_another_number_of_classes_are_refused(tmp_path):
    save_checkpoint(tmp_path / "a.pth", DummyDetector())
    cfg = config()
    cfg.model.pts_bbox_head = {"num_classes": 3}
    with pytest.raises(ValueError, match="num_classes is 3, but the data set has 10 classes"):
        build_trained_model(cfg, tmp_path / "a.pth", DummyDataset(), CPU, LOGGER)


def test_unknown_model_types_name_the_config_section(tmp_path):
    save_checkpoint(tmp_path / "a.pth", DummyDetector())
    wrong = ConfigDict(model=ConfigDict(type="DummyDetectr"))
    with pytest.raises(ValueError, match="`model`.*DummyDetectr"):
        build_trained_model(wrong, tmp_path / "a.pth", DummyDataset(), CPU, LOGGER)

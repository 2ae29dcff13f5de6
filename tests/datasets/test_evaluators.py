"""Evaluators of heads other than the boxes, and the cost of an evaluation."""

import json
import pickle

import numpy as np
import pytest
import torch
from mmdet3d.core.bbox import LiDARInstance3DBoxes

from projects.bevformer.datasets.evaluators import EVALUATORS
from projects.bevformer.nuscenes import info_list
from projects.bevformer.nuscenes.evaluation.scoring import flat_metrics
from projects.bevformer.nuscenes.records import boxes_global


@EVALUATORS.register_module()
class MeanOfNumbers:
    """Scores a head whose result is a number."""

    def __init__(self, dataset, scale=1.0):
        self.dataset, self.scale = dataset, scale

    def score(self, results, folder=None):
        assert len(results) == len(self.dataset)
        if folder is not None:
            self.write(results, folder)
        return {"mean": self.scale * np.mean(results)}

    def write(self, results, folder):
        with open(f"{folder}/numbers.json", "w") as file:
            tokens = info_list.column(self.dataset.data_infos, "token").tolist()
            json.dump(dict(zip(tokens, results)), file)


@pytest.fixture
def scorable(make_info):
    """Records of a whole split of four frames that can be scored without tables."""
    infos = [make_info(frame=i) for i in range(4)]
    for info in infos:
        boxes = boxes_global(info)
        info["gt_centers_global"], info["gt_rotations_global"] = boxes[:, :3], boxes[:, 6:]
        info["gt_attributes"] = np.array([""] * len(boxes))
    return infos


@pytest.fixture
def dataset(scorable, make_dataset):
    numbers = {"type": "MeanOfNumbers", "scale": 2.0}
    dataset = make_dataset(scorable, test_mode=True, evaluators={"number": numbers})
    dataset.metadata.update(split="val", samples_in_split=4)
    return dataset


def results_of(dataset):
    boxes = LiDARInstance3DBoxes(torch.tensor([[1.0, 2, 0, 4, 2, 1.5, 0, 0, 0]]), box_dim=9)
    found = {"boxes_3d": boxes, "scores_3d": torch.ones(1), "labels_3d": torch.zeros(1).long()}
    return [{"pts_bbox": found, "number": float(i)} for i in range(len(dataset))]


def test_head_is_scored_by_its_evaluator(dataset, tmp_path):
    folder = tmp_path / "scores"
    summary = dataset.evaluator.score(results_of(dataset), str(folder), ["bbox", "number"])
    assert summary["number/mean"] == 3.0
    assert "nd_score" in summary
    assert json.loads((folder / "metrics_summary.json").read_text())["number/mean"] == 3.0
    assert {path.name for path in folder.iterdir()} == {
        "results_nusc.json", "metrics_summary.json", "metrics_details.json", "numbers.json",
    }  # fmt: skip


def test_metric_chooses_the_heads(dataset):
    results = results_of(dataset)
    assert dataset.evaluate(results, metric="number") == {"number/mean": 3.0}
    both = dataset.evaluate(results, metric=["bbox", "number"])
    assert both["number/mean"] == 3.0
    assert "pts_bbox_NuScenes/NDS" in both
    assert not any(name.startswith("number") for name in dataset.evaluate(results))


@pytest.mark.parametrize("metric", ["segm", ["bbox", "segm"], []])
def test_unknown_metrics_are_refused(dataset, metric):
    with pytest.raises(ValueError, match="cannot be evaluated: this data set has bbox, number"):
        dataset.evaluate(results_of(dataset), metric=metric)


def test_head_without_results_is_named(dataset):
    results = [{"pts_bbox": result["pts_bbox"]} for result in results_of(dataset)]
    with pytest.raises(ValueError, match="no results of the head 'number' .* only of 'pts_bbox'"):
        dataset.evaluate(results, metric="number")
    with pytest.raises(ValueError, match="3 results for 4 frames"):
        dataset.evaluate(results_of(dataset)[:3], metric="number")


def test_all_heads_are_written_without_a_score(dataset, tmp_path):
    files, _ = dataset.format_results(results_of(dataset), str(tmp_path))
    assert set(files) == {"pts_bbox", "number"}
    assert {path.name for path in (tmp_path / "pts_bbox").iterdir()} == {
        "results_nusc.json", "numbers.json",
    }  # fmt: skip


def test_evaluator_of_boxes_can_be_exchanged(scorable, make_dataset):
    @EVALUATORS.register_module(force=True)
    class CountBoxes(MeanOfNumbers):
        def score(self, results, folder=None):
            return {"boxes": sum(len(result["boxes_3d"]) for result in results)}

    dataset = make_dataset(
        scorable, test_mode=True, evaluators={"pts_bbox": {"type": "CountBoxes"}}
    )
    assert dataset.evaluate(results_of(dataset)) == {"pts_bbox/boxes": 4.0}
    with pytest.raises(ValueError, match=r"scored by nuScenes' evaluator only.* is CountBoxes"):
        dataset.evaluator.score_file("results_nusc.json", "folder")


def test_unknown_evaluators_are_refused(scorable, make_dataset):
    with pytest.raises(KeyError, match="Nobody"):
        make_dataset(scorable, evaluators={"number": {"type": "Nobody"}})


def test_records_are_read_once(dataset, tmp_path, monkeypatch):
    reads = []
    loads = pickle.loads
    monkeypatch.setattr(
        info_list.pickle, "loads", lambda data: reads.append(len(data)) or loads(data)
    )
    results = results_of(dataset)
    for folder in ("a", "b"):
        dataset.evaluate(results, jsonfile_prefix=str(tmp_path / folder))
        dataset.format_results(results, str(tmp_path / folder))
    assert len(reads) == len(dataset)


def test_other_records_have_another_evaluator(dataset):
    results = results_of(dataset)
    dataset.evaluate(results)
    dataset.data_infos = info_list.InfoList(dataset.data_infos[:2])
    with pytest.raises(ValueError, match="4 results for 2 frames"):
        dataset.evaluate(results)


def test_flat_metrics_without_boxes():
    assert flat_metrics({"number/mean": 1.0}) == {"number/mean": 1.0}

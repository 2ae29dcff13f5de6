"""A part of a split: scores of whole scenes against the matching ground truth."""

import json

import pytest
from own_data import drive_of, made_up_object, page_writer, truth_as_results

from projects.bevformer.datasets import TemporalNuScenesDataset
from projects.bevformer.datasets.samplers import SceneSampler
from projects.bevformer.datasets.scenes import keep_scenes
from projects.bevformer.engine.report import metrics_table
from projects.bevformer.nuscenes.spec import CLASSES

FRAMES = (2, 3, 1, 4)  # of drive-0 to drive-3


@pytest.fixture
def make(tmp_path):
    """Factory of data sets of four drives, each with one class more than the one before."""

    def make(**options):
        writer = page_writer()
        drives = [
            drive_of(
                f"drive-{i}",
                [made_up_object(name, 4.0 * n, 8.0) for n, name in enumerate(CLASSES[: i + 1])],
                frames,
                writer.CAMERAS,
            )
            for i, frames in enumerate(FRAMES)
        ]
        writer.write_infos(drives, "val", str(tmp_path / "infos.pkl"))
        return TemporalNuScenesDataset(
            str(tmp_path / "infos.pkl"),
            data_root=str(tmp_path),
            classes=CLASSES,
            test_mode=True,
            **options,
        )

    return make


def drives_of(dataset):
    return list(dict.fromkeys(info["scene_token"] for info in dataset.data_infos))


def test_the_truth_is_that_of_the_scenes(make, tmp_path):
    dataset = make()
    whole = dataset.evaluator.score(truth_as_results(dataset), str(tmp_path / "whole"))
    assert whole["mean_ap"] == pytest.approx(0.4)  # four of ten classes
    assert "part" not in whole
    line = keep_scenes(dataset, ["drive-1", "drive-0"])
    assert line == "evaluating 2 of 4 scenes, 5 of 10 samples: drive-0, drive-1"
    summary = dataset.evaluator.score(truth_as_results(dataset), str(tmp_path / "part"))
    assert summary["mean_ap"] == pytest.approx(0.2)
    part = {"scenes": ["drive-0", "drive-1"], "of_scenes": 4, "samples": 5, "of_samples": 10}
    written = json.loads((tmp_path / "part" / "metrics_summary.json").read_text())
    assert written["part"] == summary["part"] == part
    submission = json.loads((tmp_path / "part" / "results_nusc.json").read_text())
    assert submission["meta"]["part"] == part
    assert "of a part: 2 of 4 scenes, 5 of 10 samples" in metrics_table(summary)


@pytest.mark.parametrize("folder", ["whole", "part"])
def test_a_result_file_may_hold_the_other_scenes(make, tmp_path, folder):
    dataset = make()
    dataset.evaluator.write(truth_as_results(dataset), str(tmp_path / "whole"))
    keep_scenes(dataset, ["drive-1"])
    expected = dataset.evaluator.score(truth_as_results(dataset), str(tmp_path / "part"))
    path = str(tmp_path / folder / "results_nusc.json")
    found = dataset.evaluator.score_file(path, str(tmp_path / "again"))
    assert found["label_aps"] == expected["label_aps"]
    assert found["part"] == expected["part"]
    with pytest.raises(ValueError, match="of its 10 samples 7 are missing"):
        make().evaluator.score_file(str(tmp_path / "part" / "results_nusc.json"), str(tmp_path))


def test_samples_of_the_scenes_that_a_result_file_lacks_are_named(make, tmp_path):
    dataset = make()
    keep_scenes(dataset, ["drive-1"])
    dataset.evaluator.write(truth_as_results(dataset), str(tmp_path))
    other = make()
    keep_scenes(other, ["drive-1", "drive-3"])
    with pytest.raises(ValueError, match="fit 2 of 4 scenes of val of my_rig: of its 7 samples 4"):
        other.evaluator.score_file(str(tmp_path / "results_nusc.json"), str(tmp_path))


@pytest.mark.parametrize(
    ("fraction", "drives"),
    [(0.01, [2]), (0.25, [2]), (0.5, [1, 3]), (0.75, [0, 2, 3]), (1.0, [0, 1, 2, 3])],
)
def test_a_fraction_is_of_whole_scenes_and_always_the_same(make, fraction, drives):
    for _ in range(2):
        dataset = make()
        keep_scenes(dataset, fraction=fraction)
        assert drives_of(dataset) == [f"drive-{i}" for i in drives]
        assert len(dataset) == sum(FRAMES[i] for i in drives)
        assert (dataset.part is None) == (fraction == 1.0)


def test_processes_share_the_scenes(make):
    dataset = make()
    keep_scenes(dataset, ["drive-1", "drive-2", "drive-3"])
    shares = [list(SceneSampler(dataset, rank, 2)) for rank in range(2)]
    assert sum(shares, []) == list(range(8))
    assert all(shares)


def test_names_are_those_of_the_table(make, tmp_path):
    table = tmp_path / "my_rig" / "scene.json"
    table.parent.mkdir()
    rows = [{"token": f"drive-{i}", "name": f"scene-{i:04d}", "nbr_samples": 1} for i in range(9)]
    table.write_text(json.dumps(rows))
    dataset = make()
    keep_scenes(dataset, ["scene-0002", "drive-0"])
    assert drives_of(dataset) == ["drive-0", "drive-2"]
    assert dataset.part["scenes"] == ["scene-0000", "scene-0002"]
    message = "scene scene-0007 is not in .*infos.pkl, which has scene-0000, .*scene-0003$"
    with pytest.raises(ValueError, match=message):
        keep_scenes(make(), ["scene-0007"])


def test_an_interval_leaves_no_whole_scenes(make):
    dataset = make(load_interval=2)
    keep_scenes(dataset, ["drive-1"])
    with pytest.raises(ValueError, match="5 of the 10 samples .* set load_interval=1"):
        dataset.evaluator.check()

"""Result files that cannot be scored: every one ends in one line that names the file and what is wrong."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from nuscenes.eval.common.config import config_factory

from projects.bevformer.engine import data_loading
from projects.bevformer.nuscenes.evaluation.results import read_result_file
from projects.bevformer.nuscenes.spec import CLASSES

CONFIG = config_factory("detection_cvpr_2019")
TOKENS = ["a", "b", "c", "d"]


def box(token="a", **changes):
    record = {
        "sample_token": token,
        "translation": [1.0, 2.0, 3.0],
        "size": [2.0, 4.0, 1.5],
        "rotation": [1.0, 0.0, 0.0, 0.0],
        "velocity": [0.5, 0.0],
        "detection_name": "car",
        "detection_score": 0.5,
        "attribute_name": "vehicle.moving",
    }
    record.update(changes)
    return {key: value for key, value in record.items() if value is not None}


def submission(first_boxes=(), tokens=TOKENS):
    results = {token: [] for token in tokens}
    results["a"] = list(first_boxes)
    return {"meta": {"use_camera": True}, "results": results}


@pytest.fixture
def read(tmp_path):
    def read(content):
        path = tmp_path / "results_nusc.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return read_result_file(str(path), TOKENS, CONFIG, "val of v1.0-mini")

    return read


TWICE = '{"meta": {}, "results": {"a": [], "b": [], "a": [], "c": [], "d": []}}'
CASES = {
    "fewer": (submission(tokens="abc"), "of its 4 samples 1 are missing, 0 .* cut short"),
    "extra": (submission(tokens="abcde"), "0 are missing, 1 results are of other samples"),
    "duplicate": (TWICE, "0 results are of other samples, and 1 are there twice"),
    "another split": (
        {"meta": {}, "results": {str(i): [] for i in range(6019)}},
        "4 are missing, 6019 .*another version or split; val of v1.0-trainval has 6019",
    ),
    "too many boxes": (submission([box()] * 501), "501 boxes for sample a"),
    "unknown class": (submission([box(detection_name="tram")]), "sample a: detection_name 'tram'"),
    "class is no name": (submission([box(detection_name=["car"])]), "detection_name"),
    "unknown attribute": (submission([box(attribute_name="moving")]), "attribute_name 'moving'"),
    "no field": (submission([box(velocity=None)]), "it has no velocity"),
    "no translation": (submission([box(translation=None)]), "it has no translation"),
    "no token": (submission([box(None)]), "it has no sample_token"),
    "box of another sample": (submission([box("b")]), "sample a has another sample_token"),
    "too short": (submission([box(rotation=[1.0, 0.0])]), "rotation has 2 numbers, not 4"),
    "text": (submission([box(size=["1", "2", "3"])]), "size is .*not of numbers"),
    "nested": (submission([box(translation=[[1], 2, 3])]), "translation is .*not of numbers"),
    "score is null": (submission([box(), {**box(), "detection_score": None}]), "detection_score"),
    "negative score": (submission([box(detection_score=-0.5)]), "detection_score is negative"),
    "size of zero": (submission([box(), box(size=[1, 0, 1])]), "box 1 of sample a: size is zero"),
    "not boxes": ({"meta": {}, "results": {**dict.fromkeys("abcd", []), "b": [1]}}, "list of boxes"),
    "no list": ({"meta": {}, "results": dict.fromkeys("abcd", 1)}, "sample a is not a list"),
    "no results": ({"meta": {}}, 'no "results"'),
    "no meta": ({"results": {}}, 'no "meta"'),
    "a list": ([1, 2], 'no "meta"'),
    "cut off": (json.dumps(submission([box()]))[:150], "not JSON or is cut off"),
    "empty": ("", "not JSON"),
    "lists without end": ("[" * 100_000, "not JSON"),
    "too large for a float": (submission([box(size=[1, 10**400, 1])]), "size is .*not of numbers"),
    **{
        f"{value} in {field}": (
            submission([box(), box(**{field: [value] * length if length > 1 else value})]),
            f"box 1 of sample a: {field} is not finite",
        )
        for field, length in (
            ("translation", 3), ("size", 3), ("rotation", 4), ("detection_score", 1),
        )
        for value in (np.nan, np.inf)
    },
    "infinite velocity": (submission([box(velocity=[0.0, np.inf])]), "velocity is not finite"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_broken_files_are_named(read, name):
    content, message = CASES[name]
    with pytest.raises(ValueError, match=message) as caught:
        read(content)
    assert "results_nusc.json" in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.fixture(scope="module")
def eval_tool():
    path = Path(__file__).parents[2] / "tools" / "eval.py"
    spec = importlib.util.spec_from_file_location("eval_tool", str(path))
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


@pytest.mark.parametrize(
    "name",
    [
        "fewer", "extra", "duplicate", "another split", "too many boxes", "unknown class",
        "nan in translation", "nan in detection_score", "cut off",
    ],
)  # fmt: skip
def test_tool_exits_with_one_line(eval_tool, monkeypatch, tmp_path, name):
    content, message = CASES[name]
    path = tmp_path / "results_nusc.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))

    class Evaluator:
        def score_file(self, path, folder, devkit):
            read_result_file(path, TOKENS, CONFIG, "val of v1.0-mini")

    config = Path(__file__).parents[2] / "configs" / "demo.py"
    arguments = ["eval.py", config, "--results", path, "--work-dir", tmp_path, "--device", "cpu"]
    monkeypatch.setattr("sys.argv", list(map(str, arguments)))
    monkeypatch.setattr(
        data_loading,
        "build_test_dataset",
        lambda cfg, split: SimpleNamespace(evaluator=Evaluator()),
    )
    with pytest.raises(SystemExit, match=message) as caught:
        eval_tool.main()
    # A text as the code of SystemExit is printed, and the exit code is 1.
    assert "results_nusc.json" in caught.value.code
    assert "\n" not in caught.value.code


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.json does not exist"):
        read_result_file(str(tmp_path / "none.json"), TOKENS, CONFIG, "val of v1.0-mini")


def test_valid_file(read):
    content = submission(
        [box(velocity=[np.nan, np.nan]), box(detection_name="bus", attribute_name="")]
    )
    content["results"] = {token: content["results"][token] for token in "dcab"}
    content["results"]["d"] = [box("d", detection_score=1, translation=[7, 8, 9])]
    boxes, meta = read(content)
    assert meta == {"use_camera": True}
    assert boxes.sample.tolist() == [3, 0, 0]
    names = list(CONFIG.class_range)
    assert [names[label] for label in boxes.label] == ["car", "car", "bus"]
    assert boxes.box[0].tolist() == [7, 8, 9, 2, 4, 1.5, 1, 0, 0, 0]
    assert np.isnan(boxes.velocity[1]).all()
    assert boxes.score.tolist() == [1, 0.5, 0.5]
    assert boxes.attribute[2] == -1
    assert boxes.attribute[0] == boxes.attribute[1] >= 0
    assert set(names) == set(CLASSES)


def test_no_boxes_at_all(read):
    boxes, _ = read(submission())
    assert len(boxes) == 0
    assert boxes.box.shape == (0, 10)

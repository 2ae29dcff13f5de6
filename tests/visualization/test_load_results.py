"""Results come back to the lidar frame of their sample, from either file format."""

import io
import json
import pickle

import numpy as np
import pytest
import torch

from projects.bevformer.visualization import load_results

CAR = (3.0, 20.0, -1.0, 4.0, 2.0, 1.5, 0.3, 1.0, 2.0)


@pytest.fixture
def infos(sample):
    """Two samples; the ego vehicle stands at (100, 200, 0) looking along global +y."""
    info = dict(
        sample[0],
        ego2global_rotation=[np.sqrt(0.5), 0.0, 0.0, np.sqrt(0.5)],
        ego2global_translation=[100.0, 200.0, 0.0],
    )
    return [info, dict(info, token="second")]


def global_record(**changes):
    # Ego looks along global +y, so lidar x is global x, lidar y is global y: with the lidar 0.94 m
    # ahead of the ego origin and 1.84 m above it, only the origin differs.
    record = {
        "translation": [100.0 + 3.0, 200.94 + 20.0, 1.84 - 1.0],
        "size": [2.0, 4.0, 1.5],
        "rotation": [np.cos(0.15), 0.0, 0.0, np.sin(0.15)],
        "velocity": [1.0, 2.0],
        "detection_name": "truck",
        "detection_score": 0.75,
    }
    return dict(record, **changes)


def write_json(path, results):
    path.write_text(json.dumps({"meta": {}, "results": results}))
    return path


def test_json_boxes_are_brought_to_the_lidar_frame(infos, tmp_path):
    path = write_json(tmp_path / "results_nusc.json", {"second": [global_record()]})
    results = load_results(path, infos)
    assert list(results) == ["second"]
    boxes = results["second"]["boxes_3d"]
    np.testing.assert_allclose(boxes.gravity_center.numpy()[0], CAR[:3], atol=1e-4)
    np.testing.assert_allclose(boxes.tensor.numpy()[0, 3:], CAR[3:], atol=1e-4)
    assert results["second"]["labels_3d"].tolist() == [1]
    assert results["second"]["scores_3d"].tolist() == [0.75]


def test_json_sample_without_boxes(infos, tmp_path):
    path = write_json(tmp_path / "r.json", {"second": []})
    assert len(load_results(path, infos)["second"]["boxes_3d"]) == 0


def test_pickle_results_are_in_the_order_of_the_infos(infos, make_boxes, tmp_path):
    results = [{"pts_bbox": make_boxes(CAR, scores=[score])} for score in (0.1, 0.2)]
    path = tmp_path / "results.pkl"
    path.write_bytes(pickle.dumps(results))
    loaded = load_results(str(path), infos)
    assert loaded["second"]["scores_3d"].tolist() == pytest.approx([0.2])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pkl", pickle.dumps([{"pts_bbox": {}}]), "1 results, the data set has 2 samples"),
        ("a.pkl", pickle.dumps({"pts_bbox": {}}), "not a list of dicts with 'pts_bbox'"),
        ("a.pkl", b"garbage", "not a list of results"),
        ("a.json", b'{"results": {"other": []}}', "none of the 1 samples"),
        ("a.json", b"[1, 2]", "not a nuScenes results file"),
        ("a.json", b"{", "not a nuScenes results file"),
        ("a.txt", b"", "neither .pkl"),
    ],
)
def test_wrong_files_are_explained(infos, tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_results(path, infos)


class Calls:
    def __reduce__(self):
        return eval, ("open('ran', 'w')",)


def test_code_in_results_is_not_run(infos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trap = io.BytesIO()
    torch.save(Calls(), trap, _use_new_zipfile_serialization=False)

    class Storage:
        """A tensor's bytes, which torch pickles once more inside."""

        def __reduce__(self):
            return torch.storage._load_from_bytes, (trap.getvalue(),)

    for content, message in (
        (Calls(), "it refers to builtins.eval"),
        (Storage(), r"it refers to [\w.]*eval,"),
    ):
        (tmp_path / "r.pkl").write_bytes(pickle.dumps([{"pts_bbox": {"scores_3d": content}}]))
        with pytest.raises(ValueError, match=message):
            load_results(tmp_path / "r.pkl", infos)
    assert not (tmp_path / "ran").exists()


def test_missing_file(infos, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pkl does not exist"):
        load_results(tmp_path / "none.pkl", infos)


def test_unknown_class(infos, tmp_path):
    path = write_json(tmp_path / "r.json", {"second": [global_record(detection_name="tram")]})
    with pytest.raises(ValueError, match="second: unknown detection_name tram"):
        load_results(path, infos)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": None}, r"second: a box is malformed \("),
        ({"velocity": 3.0}, r"second: a box is malformed \("),
        ({"detection_score": "high"}, r"second: a box is malformed \("),
        ({"rotation": [1.0, 0.0]}, r"second: a box is malformed \("),
        ("size", "second: a box lacks 'size'; translation, size"),
    ],
)
def test_malformed_boxes_are_named(infos, tmp_path, change, message):
    record = global_record()
    if isinstance(change, str):
        del record[change]
    else:
        record.update(change)
    path = write_json(tmp_path / "r.json", {"second": [record]})
    with pytest.raises(ValueError, match=message):
        load_results(path, infos)

"""Results are read from either file format, in the lidar frame of their sample."""

import io
import json
import pickle

import numpy as np
import pytest
import torch
from nuscenes.eval.detection.config import config_factory

from projects.bevformer.nuscenes.evaluation.results import Frames, detected_boxes, write_result_file
from projects.bevformer.nuscenes.spec import CLASSES
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
        "sample_token": "second",
        "translation": [100.0 + 3.0, 200.94 + 20.0, 1.84 - 1.0],
        "size": [2.0, 4.0, 1.5],
        "rotation": [np.cos(0.15), 0.0, 0.0, np.sin(0.15)],
        "velocity": [1.0, 2.0],
        "detection_name": "truck",
        "detection_score": 0.75,
        "attribute_name": "",
    }
    return dict(record, **changes)


def write_json(path, results):
    path.write_text(json.dumps({"meta": {}, "results": results}))
    return path


def test_json_boxes_are_transformed_to_the_lidar_frame(infos, tmp_path):
    path = write_json(tmp_path / "results_nusc.json", {"second": [global_record()]})
    results = load_results(path, infos)
    assert list(results) == ["second"]
    boxes = results["second"]["boxes_3d"]
    np.testing.assert_allclose(boxes.gravity_center.numpy()[0], CAR[:3], atol=1e-4)
    np.testing.assert_allclose(boxes.tensor.numpy()[0, 3:], CAR[3:], atol=1e-4)
    assert results["second"]["labels_3d"].tolist() == [1]
    assert results["second"]["scores_3d"].tolist() == [0.75]


def test_json_with_unknown_velocity(infos, tmp_path):
    record = global_record(velocity=[float("nan")] * 2)
    boxes = load_results(write_json(tmp_path / "r.json", {"second": [record]}), infos)["second"]
    assert np.isnan(boxes["boxes_3d"].tensor[0, 7:].numpy()).all()


def test_global_frame_round_trip_keeps_detections(infos, make_boxes, tmp_path):
    tilted = [0.7, 0.05, -0.04, 0.71]  # of the lidar; boxes stay upright in its frame only roughly
    infos = [dict(info, lidar2ego_rotation=tilted, token=f"t{i}") for i, info in enumerate(infos)]
    rows = np.random.default_rng(0).normal(0, 5, (2, 7, 9))
    rows[..., 3:6] = np.abs(rows[..., 3:6]) + 0.5
    found = [
        make_boxes(*r.tolist(), scores=[0.1 * i for i in range(7)], labels=[3] * 7) for r in rows
    ]
    config = config_factory("detection_cvpr_2019")
    boxes = detected_boxes(found, Frames(infos), CLASSES, config)
    path = tmp_path / "results_nusc.json"
    write_result_file(boxes, ["t0", "t1"], {}, config, str(path))
    loaded = load_results(path, infos)
    for info, before in zip(infos, found):
        after = loaded[info["token"]]
        assert after["labels_3d"].tolist() == [3] * 7
        np.testing.assert_allclose(after["scores_3d"], before["scores_3d"])
        columns = after["boxes_3d"].tensor.numpy(), before["boxes_3d"].tensor.numpy()
        np.testing.assert_allclose(columns[0][:, :6], columns[1][:, :6], atol=1e-4)
        turn = columns[0][:, 6] - columns[1][:, 6]
        np.testing.assert_allclose(np.sin(turn), 0, atol=1e-5)
        np.testing.assert_allclose(np.cos(turn), 1, atol=1e-5)


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
        (
            "a.json",
            b'{"meta": {}, "results": {"other": []}}',
            "none of the samples of .*a.json is among the 2",
        ),
        ("a.json", b"[1, 2]", "not a nuScenes submission"),
        ("a.json", b"{", "not JSON or is cut off"),
        ("a.txt", b"", "neither .pkl"),
    ],
)
def test_wrong_files_are_refused(infos, tmp_path, name, content, message):
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
        (Calls(), "it names builtins.eval"),
        (Storage(), r"it names [\w.]*eval,"),
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
    with pytest.raises(ValueError, match="second: detection_name 'tram' is not one of car, "):
        load_results(path, infos)
    path = write_json(tmp_path / "r.json", {"second": [global_record()]})
    with pytest.raises(
        ValueError, match=r"detection_name truck is not a class of the data set \(car"
    ):
        load_results(path, infos, ("car", "bus"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": None}, "second: size is None, not of numbers"),
        ({"velocity": 3.0}, "second: velocity is 3.0, not of numbers"),
        ({"detection_score": "high"}, "second: detection_score is 'high', not of numbers"),
        ({"rotation": [1.0, 0.0]}, "second: rotation has 2 numbers, not 4"),
        ({"sample_token": "third"}, "second has another sample_token"),
        ("size", "second: it has no size"),
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

"""The project's scores against those of the installed devkit: every number, within 1e-9."""

import json
import logging
import shutil

import numpy as np
import pytest
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.detection.evaluate import DetectionEval
from nuscenes.nuscenes import NuScenes

from projects.bevformer.datasets import TemporalNuScenesDataset
from projects.bevformer.nuscenes.create_infos import create_nuscenes_infos
from projects.bevformer.nuscenes.spec import ATTRIBUTES, CATEGORY_TO_CLASS, CLASSES

CONFIG = config_factory("detection_cvpr_2019")
LOGGER = logging.getLogger("test")
# On a grid, equal distances and distances that are exactly a threshold are frequent.
GRID = 0.25


@pytest.fixture(scope="module")
def tables(synthetic_root, tmp_path_factory):
    """Tables with what is rare or absent in the synthetic world, without pictures."""
    root = tmp_path_factory.mktemp("edited")
    for name in ("maps", "can_bus", "samples"):
        (root / name).symlink_to(synthetic_root / name)
    shutil.copytree(str(synthetic_root / "v1.0-mini"), str(root / "v1.0-mini"))

    def edit(name, change):
        path = root / "v1.0-mini" / f"{name}.json"
        rows = json.loads(path.read_text())
        change(rows)
        path.write_text(json.dumps(rows))

    rng = np.random.RandomState(0)
    categories = json.loads((root / "v1.0-mini" / "category.json").read_text())
    category_of = {row["token"]: row["name"] for row in categories}
    instances = json.loads((root / "v1.0-mini" / "instance.json").read_text())
    name_of = {row["token"]: category_of[row["category_token"]] for row in instances}
    rack = next(row["token"] for row in categories if row["name"] == "static_object.bicycle_rack")

    def annotations(rows):
        racks = []
        for row in rows:
            row["translation"][:2] = (
                np.round(np.divide(row["translation"][:2], GRID)) * GRID
            ).tolist()
            if rng.rand() < 0.2:
                row["prev"] = row["next"] = ""  # a velocity that nobody knows
            if rng.rand() < 0.1:
                row["num_lidar_pts"] = row["num_radar_pts"] = 0
            elif rng.rand() < 0.1:
                row["num_lidar_pts"], row["num_radar_pts"] = 0, 1
            if rng.rand() < 0.1:
                row["attribute_tokens"] = []
            if "cycle" in name_of[row["instance_token"]] and rng.rand() < 0.3:
                racks.append({**row, "token": f"rack_of_{row['token']}", "instance_token": "rack"})
                racks[-1].update(size=[1.0, 4.0, 3.0], prev="", next="", attribute_tokens=[])
        assert len(racks) >= 3
        rows += racks

    edit("sample_annotation", annotations)
    edit("instance", lambda rows: rows.append({**rows[0], "token": "rack", "category_token": rack}))
    return root


@pytest.fixture(scope="module")
def nusc(tables):
    return NuScenes("v1.0-mini", str(tables), verbose=False)


@pytest.fixture(scope="module")
def dataset(tables, tmp_path_factory):
    folder = tmp_path_factory.mktemp("infos")
    create_nuscenes_infos(str(tables), str(folder), "t", "v1.0-mini", str(tables))
    dataset = TemporalNuScenesDataset(
        str(folder / "t_infos_temporal_val.pkl"),
        data_root="nowhere",  # the tables are not needed
        classes=CLASSES,
        test_mode=True,
    )
    return dataset


def random_results(nusc, tokens, seed):
    """Sample token -> predictions: around objects, around racks, and anywhere."""
    rng = np.random.RandomState(seed)

    def record(token, name, center, size, rotation, velocity):
        turn = rng.normal(scale=0.3, size=4) * [1, 0.1, 0.1, 1]
        name = name if rng.rand() < 0.9 else rng.choice(CLASSES)
        noisy = np.add(center, [*rng.normal(scale=rng.choice([0.3, 2.0]), size=2), 0])
        return {
            "sample_token": token,
            "translation": (np.round(noisy / GRID) * GRID).tolist(),
            "size": (np.array(size) * rng.uniform(0.7, 1.4, 3)).tolist(),
            "rotation": (np.add(rotation, turn) * rng.choice([1, 2, -1])).tolist(),
            "velocity": [np.nan, np.nan]
            if rng.rand() < 0.1
            else (velocity + rng.randn(2)).tolist(),
            "detection_name": name,
            "detection_score": float(np.round(rng.rand(), 1)),  # many are equal, some are 0
            "attribute_name": str(rng.choice([*ATTRIBUTES, ""])),
        }

    results = {}
    for token in tokens:
        sample = nusc.get("sample", token)
        lidar = nusc.get("sample_data", sample["data"]["LIDAR_TOP"])
        ego = nusc.get("ego_pose", lidar["ego_pose_token"])["translation"]
        boxes = []
        for annotation in [nusc.get("sample_annotation", a) for a in sample["anns"]]:
            name = CATEGORY_TO_CLASS.get(annotation["category_name"], "bicycle")
            velocity = np.nan_to_num(nusc.box_velocity(annotation["token"])[:2])
            for _ in range(rng.randint(4)):
                pose = [annotation[key] for key in ("translation", "size", "rotation")]
                boxes.append(record(token, name, *pose, velocity))
        for _ in range(40):
            center = np.add(ego, [*rng.uniform(-60, 60, 2), 1])
            boxes.append(
                record(token, rng.choice(CLASSES), center, [2, 4, 2], [1, 0, 0, 0], np.zeros(2))
            )
        rng.shuffle(boxes)
        results[token] = boxes
    return results


def devkits_scores(nusc, path, folder, eval_set="mini_val"):
    evaluation = DetectionEval(nusc, CONFIG, str(path), eval_set, str(folder), verbose=False)
    metrics, details = evaluation.evaluate()
    return json.loads(json.dumps(metrics.serialize())), details.serialize(), evaluation


def own_scores(dataset, path, folder):
    dataset.evaluator.score_file(str(path), str(folder), LOGGER)
    return [
        json.loads((folder / f"metrics_{name}.json").read_text()) for name in ("summary", "details")
    ]


def assert_same(own, devkits, where=""):
    """Same keys, same numbers within 1e-9, NaN where there is NaN."""
    assert type(own) is type(devkits), where
    if isinstance(own, dict):
        assert list(own) == list(devkits), where
        for key in own:
            assert_same(own[key], devkits[key], f"{where}/{key}")
    elif isinstance(own, (list, float, int)):
        np.testing.assert_allclose(own, devkits, rtol=0, atol=1e-9, equal_nan=True, err_msg=where)
    else:
        assert own == devkits, where


def compare(dataset, nusc, results, tmp_path):
    """Both score the same file; returns the devkit's evaluation and the summary."""
    path = tmp_path / "results_nusc.json"
    path.write_text(json.dumps({"meta": {"use_camera": True}, "results": results}))
    summary, details = own_scores(dataset, path, tmp_path / "own")
    expected_summary, expected_details, evaluation = devkits_scores(nusc, path, tmp_path / "devkit")
    assert summary.pop("meta") == {"use_camera": True}
    del summary["eval_time"], expected_summary["eval_time"]
    assert_same(summary, expected_summary)
    assert_same(details, expected_details)
    return evaluation, summary


@pytest.fixture(scope="module")
def tokens(dataset):
    return [info["token"] for info in dataset.data_infos]


@pytest.mark.parametrize("seed", range(4))
def test_random_predictions(dataset, nusc, tokens, tmp_path, seed):
    evaluation, summary = compare(dataset, nusc, random_results(nusc, tokens, seed), tmp_path)
    assert 0.05 < summary["mean_ap"] < 0.9
    assert {box.detection_name for box in evaluation.gt_boxes.all} == set(CLASSES)
    # The rare things do occur.
    assert any(np.isnan(box.velocity).all() for box in evaluation.gt_boxes.all)
    assert any(np.isnan(box.velocity).all() for box in evaluation.pred_boxes.all)
    assert any(box.num_pts == 1 for box in evaluation.gt_boxes.all)
    scores = [box.detection_score for box in evaluation.pred_boxes.all]
    assert len(set(scores)) < len(scores) / 10


def test_boxes_in_bicycle_racks_are_ignored(dataset, nusc, tokens, tmp_path, monkeypatch):
    results = random_results(nusc, tokens, 5)
    _, summary = compare(dataset, nusc, results, tmp_path)
    without = dataset.data_infos[:]
    for info in without:
        racks = info["gt_names"] == "static_object.bicycle_rack"
        info["gt_names"] = np.where(racks, "animal", info["gt_names"])
    monkeypatch.setattr(dataset, "data_infos", without)
    without_racks, _ = own_scores(dataset, tmp_path / "results_nusc.json", tmp_path / "other")
    changed = [
        name for name in CLASSES
        if summary["mean_dist_aps"][name] != without_racks["mean_dist_aps"][name]
    ]  # fmt: skip
    assert changed
    assert set(changed) <= {"bicycle", "motorcycle"}


def test_sample_order_matters_only_for_equal_scores(dataset, nusc, tokens, tmp_path):
    results = random_results(nusc, tokens, 6)
    backwards = {token: results[token] for token in reversed(tokens)}
    compare(dataset, nusc, backwards, tmp_path)
    for i, box in enumerate(box for boxes in results.values() for box in boxes):
        box["detection_score"] = 1.0 / (i + 2)
    _, summary = compare(dataset, nusc, results, tmp_path)
    _, of_backwards = compare(dataset, nusc, backwards, tmp_path)
    assert_same(summary, of_backwards)


def test_samples_and_classes_without_predictions(dataset, nusc, tokens, tmp_path):
    results = random_results(nusc, tokens, 7)
    for boxes in results.values():
        boxes[:] = [box for box in boxes if box["detection_name"] not in ("bus", "barrier")]
    results[tokens[1]] = []
    _, summary = compare(dataset, nusc, results, tmp_path)
    assert summary["mean_dist_aps"]["bus"] == 0
    assert summary["label_tp_errors"]["bus"]["trans_err"] == 1


def test_predictions_without_matches(dataset, nusc, tokens, tmp_path):
    results = random_results(nusc, tokens, 8)
    for boxes in results.values():
        for box in boxes:
            box["detection_score"] = 0.0
            if box["detection_name"] == "car":
                box["translation"][0] += 4.0
    compare(dataset, nusc, results, tmp_path)


def test_classes_and_samples_without_ground_truth(
    tables, nusc, dataset, tokens, tmp_path, monkeypatch
):
    results = random_results(nusc, tokens, 9)
    # Without points there is no ground truth: the same edit in the tables and in the infos.
    infos = list(dataset.data_infos)
    for index, info in enumerate(infos):
        gone = (info["gt_names"] == "bus") | (info["gt_names"] == "trailer") | (index == 2)
        for key in ("num_lidar_pts", "num_radar_pts"):
            info[key] = np.where(gone, 0, info[key])
            for row in np.flatnonzero(gone):
                token = nusc.get("sample", info["token"])["anns"][row]
                monkeypatch.setitem(nusc.get("sample_annotation", token), key, 0)
    monkeypatch.setattr(dataset, "data_infos", infos)
    evaluation, summary = compare(dataset, nusc, results, tmp_path)
    assert summary["mean_dist_aps"]["bus"] == 0
    assert not evaluation.gt_boxes[tokens[2]]


def test_ground_truth_as_prediction(dataset, nusc, tokens, tmp_path):
    results = random_results(nusc, tokens, 10)
    for token in tokens:
        rows = [nusc.get("sample_annotation", a) for a in nusc.get("sample", token)["anns"]]
        results[token] = [
            {
                **{key: row[key] for key in ("translation", "size", "rotation")},
                "sample_token": token,
                "velocity": nusc.box_velocity(row["token"])[:2].tolist(),
                "detection_name": CATEGORY_TO_CLASS[row["category_name"]],
                "detection_score": 1.0,
                "attribute_name": nusc.get("attribute", row["attribute_tokens"][0])["name"]
                if row["attribute_tokens"]
                else "",
            }
            for row in rows
            if row["category_name"] in CATEGORY_TO_CLASS
            and row["num_lidar_pts"] + row["num_radar_pts"] > 0
        ]
    _, summary = compare(dataset, nusc, results, tmp_path)
    assert summary["mean_ap"] == pytest.approx(1.0, abs=1e-9)


def test_other_benchmark_settings(dataset, nusc, tokens, tmp_path, monkeypatch):
    for key, value in {
        "min_recall": 0.0, "min_precision": 0.2, "dist_ths": [1.0, 3.0], "dist_th_tp": 3.0,
        "mean_ap_weight": 3,
    }.items():  # fmt: skip
        monkeypatch.setattr(CONFIG, key, value)
        monkeypatch.setattr(dataset.eval_detection_configs, key, value)
    compare(dataset, nusc, random_results(nusc, tokens, 11), tmp_path)


def test_ground_truth_of_tables_equals_that_of_infos(
    dataset, tables, nusc, tokens, tmp_path, caplog, monkeypatch
):
    """Info files without the fields: a warning, then the same numbers."""
    path = tmp_path / "results_nusc.json"
    results = random_results(nusc, tokens, 12)
    path.write_text(json.dumps({"meta": {}, "results": results}))
    expected = own_scores(dataset, path, tmp_path / "infos")
    assert not caplog.records
    older = [
        {key: value for key, value in info.items() if key != "gt_attributes"}
        for info in dataset.data_infos
    ]
    monkeypatch.setattr(dataset, "data_infos", older)
    monkeypatch.setattr(dataset, "data_root", str(tables))
    found = own_scores(dataset, path, tmp_path / "tables")
    for summary in (expected[0], found[0]):
        del summary["eval_time"]
    for scores, expected_scores in zip(found, expected):
        assert_same(scores, expected_scores)
    (record,) = [r for r in caplog.records if r.levelname == "WARNING"]
    assert "tools/create_data.py" in record.getMessage()


@pytest.mark.slow
def test_the_devkit_draws_its_curves(dataset, tables, nusc, tokens, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset.evaluator.evaluators["pts_bbox"], "data_root", str(tables))
    path = tmp_path / "results_nusc.json"
    path.write_text(json.dumps({"meta": {}, "results": random_results(nusc, tokens, 13)}))
    summary = dataset.evaluator.score_file(str(path), str(tmp_path / "devkit"), LOGGER, devkit=True)
    own, _ = own_scores(dataset, path, tmp_path / "own")
    assert own["nd_score"] == pytest.approx(summary["nd_score"], abs=1e-9)
    curves = [file.stem for file in (tmp_path / "devkit" / "plots").glob("*.pdf")]
    assert "summary" in curves
    assert {f"{name}_pr" for name in CLASSES} <= set(curves)

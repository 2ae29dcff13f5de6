"""Own classes: how a config says them, how info files name them, and how they are scored."""

import json
import logging

import cv2
import numpy as np
import pytest
import torch
from nuscenes.eval.common.config import config_factory
from own_data import (
    IMAGE_HW,
    drive_of,
    made_up_object,
    page_writer,
    truth_as_results,
    write_pictures,
)

from projects.bevformer.datasets import TemporalNuScenesDataset
from projects.bevformer.engine.hooks import TemporalEvalHook
from projects.bevformer.engine.pictures import draw_samples
from projects.bevformer.engine.report import headline_metrics, metrics_table
from projects.bevformer.nuscenes.benchmark import own_benchmark
from projects.bevformer.nuscenes.evaluation.metrics import detection_metrics
from projects.bevformer.nuscenes.spec import CLASSES
from projects.bevformer.visualization import sample
from projects.bevformer.visualization.cameras import camera_rows

LOGGER = logging.getLogger("test")
OBJECTS = [
    made_up_object("car", 5.0, 10.0, (3.0, 0.0), "car.driving"),
    made_up_object("pedestrian", -6.0, 4.0, (0.0, 1.0)),
    made_up_object("worker", -12.0, 4.0, (np.nan, np.nan)),
    made_up_object("animal", 0.0, 25.0),
    made_up_object("animal", 0.0, 45.0),
    made_up_object("tree", 3.0, 3.0),
]
SETTINGS = {
    "distances": [1.0, 3.0],
    "error_distance": 3.0,
    "classes": {
        "car": {"attributes": ["car.driving", "car.standing"]},
        "person": {"names": ["pedestrian", "worker"], "range": 30.0},
        "animal": {"range": 40, "velocity": False, "orientation": "half"},
    },
}
NAMES = ["car", "person", "animal"]


@pytest.fixture
def make_own(tmp_path):
    """Factory of data sets over the page's info files."""

    def make(objects=OBJECTS, classes=NAMES, benchmark=SETTINGS, drives=1, cameras=None, **options):
        writer = page_writer(cameras)
        drives = [drive_of(f"drive-{i}", objects, 2, writer.CAMERAS) for i in range(drives)]
        path = tmp_path / "infos.pkl"
        writer.write_infos(drives, "val", str(path))
        write_pictures(tmp_path, drives if cameras else [])
        return TemporalNuScenesDataset(
            str(path), data_root=str(tmp_path), classes=classes, benchmark=benchmark,
            **{"test_mode": True, **options},
        )  # fmt: skip

    return make


def moved(results, label, x=0.0, yaw=0.0, speed=0.0):
    """The detections of a class, displaced."""
    for result in results:
        found = result["pts_bbox"]
        rows = found["labels_3d"] == label
        found["boxes_3d"].tensor[rows, 0] += x
        found["boxes_3d"].tensor[rows, 6] += yaw
        found["boxes_3d"].tensor[rows, 7] += speed
    return results


def test_truth_scores_one_and_undefined_errors_are_left_out(make_own, tmp_path, caplog):
    dataset = make_own()
    summary = dataset.evaluator.score(truth_as_results(dataset), str(tmp_path / "out"))
    assert summary["mean_ap"] == pytest.approx(1.0)
    assert not {"nd_score", "tp_scores"} & set(summary)
    errors = summary["label_tp_errors"]
    assert errors["car"]["attr_err"] == pytest.approx(0.0)
    assert errors["person"]["attr_err"] != errors["person"]["attr_err"]  # NaN
    assert errors["animal"]["vel_err"] != errors["animal"]["vel_err"]
    assert all(value < 1e-2 for value in summary["tp_errors"].values())
    assert headline_metrics(summary)["mAP_own"] == pytest.approx(1.0)
    assert "| mAP_own" in metrics_table(summary)
    flat = dataset.evaluate(truth_as_results(dataset))
    assert flat["pts_bbox_own/mAP_own"] == pytest.approx(1.0)
    assert flat["pts_bbox_own/animal_AP_dist_3.0"] == pytest.approx(1.0)
    assert not any("NDS" in name for name in flat)
    assert "own classes val of my_rig: mAP_own 1.0000" in caplog.text


def test_ranges_distances_headings_and_speeds_by_hand(make_own):
    dataset = make_own()
    results = moved(truth_as_results(dataset), NAMES.index("animal"), x=2.0, yaw=np.pi, speed=9.0)
    summary = dataset.evaluator.score(results)
    # Two metres off: not within one metre, within three. The animal at 45 m does not count at all.
    assert summary["label_aps"]["animal"] == pytest.approx({1.0: 0.0, 3.0: 1.0})
    assert summary["label_tp_errors"]["animal"]["trans_err"] == pytest.approx(2.0, abs=1e-5)
    assert summary["label_tp_errors"]["animal"]["orient_err"] == pytest.approx(0.0, abs=1e-5)
    assert summary["mean_ap"] == pytest.approx((1 + 1 + 0.5) / 3)
    turned = dataset.evaluator.score(moved(truth_as_results(dataset), 0, yaw=np.pi, speed=9.0))
    assert turned["label_tp_errors"]["car"]["orient_err"] == pytest.approx(np.pi, abs=1e-5)
    assert turned["label_tp_errors"]["car"]["vel_err"] == pytest.approx(9.0, abs=1e-4)


def test_attributes_follow_from_the_speed(make_own):
    dataset = make_own()
    summary = dataset.evaluator.score(moved(truth_as_results(dataset), 0, speed=-3.0))
    assert summary["label_tp_errors"]["car"]["attr_err"] == 1.0  # it stands: car.standing


def test_other_names_are_the_class_in_training_too(make_own):
    dataset = make_own(test_mode=False, filter_empty_gt=False)
    labels = dataset.get_ann_info(0)["gt_labels_3d"].tolist()
    assert labels == [0, 1, 1, 2, 2, -1]
    assert sorted(dataset.get_cat_ids(0)) == [0, 1, 2]


def test_result_file_is_read_again_and_says_that_it_is_no_submission(make_own, tmp_path):
    dataset = make_own()
    summary = dataset.evaluator.score(truth_as_results(dataset), str(tmp_path))
    path = tmp_path / "results_nusc.json"
    content = json.loads(path.read_text())
    assert content["meta"]["own_classes"] == NAMES
    boxes = [box for boxes in content["results"].values() for box in boxes]
    assert {(b["detection_name"], b["attribute_name"]) for b in boxes} == {
        ("car", "car.driving"), ("person", ""), ("animal", ""),
    }  # fmt: skip
    again = dataset.evaluator.score_file(str(path), str(tmp_path / "again"))
    assert again["label_aps"] == summary["label_aps"]
    written = json.loads((tmp_path / "again" / "metrics_summary.json").read_text())
    assert written["cfg"]["rules"]["animal"]["orientation"] == "half"


def test_eleven_classes_of_which_ten_are_those_of_nuscenes(make_own):
    objects = [made_up_object(name, 3.0 * i, 6.0, (1.0, 0.0)) for i, name in enumerate(CLASSES)]
    objects.append(made_up_object("human.pedestrian.stroller", -9.0, 5.0))
    names = [*CLASSES, "stroller"]
    settings = {"classes": {"stroller": {"names": ["human.pedestrian.stroller"]}}}
    dataset = make_own(objects, names, settings)
    summary = dataset.evaluator.score(truth_as_results(dataset))
    assert summary["mean_ap"] == pytest.approx(1.0)
    assert list(summary["mean_dist_aps"]) == names
    of_benchmark = config_factory("detection_cvpr_2019").class_range
    assert {n: summary["cfg"]["class_range"][n] for n in CLASSES} == of_benchmark


def test_matching_equals_the_benchmark_for_the_ten(make_own):
    """Random detections, scored with `benchmark=dict()` and by the benchmark."""
    rng = np.random.RandomState(0)
    objects = [
        made_up_object(name, *rng.uniform(-25, 25, 2), rng.uniform(-2, 2, 2), "vehicle.moving")
        for name in CLASSES * 3
    ]
    scores = []
    for settings in (None, {}):
        dataset = make_own(objects, list(CLASSES), settings, drives=2)
        results = truth_as_results(dataset)
        rng.seed(1)
        for result in results:
            found = result["pts_bbox"]
            found["boxes_3d"].tensor[:] += rng.normal(0, 0.7, found["boxes_3d"].tensor.shape)
            found["boxes_3d"].tensor[:, 3:6].clamp_(min=0.5)
            found["scores_3d"][:] = found["scores_3d"].new_tensor(rng.rand(len(objects)))
        scores.append(dataset.evaluator.score(results))
    theirs, own = scores
    assert 0 < own["mean_ap"] < 1
    assert "nd_score" in theirs
    for part in ("label_aps", "label_tp_errors"):
        for name in CLASSES:
            np.testing.assert_equal(own[part][name], theirs[part][name])
    assert own["mean_ap"] == pytest.approx(theirs["mean_ap"])
    assert own["tp_errors"] == pytest.approx(theirs["tp_errors"])


def test_ground_truth_follows_from_the_boxes_of_the_file(make_own):
    dataset = make_own()
    evaluator = dataset.evaluator.evaluators["pts_bbox"]
    boxes = evaluator.boxes([result["pts_bbox"] for result in truth_as_results(dataset)])
    truth = evaluator.ground_truth(LOGGER)
    kept = boxes.label != NAMES.index("animal")
    of_truth = truth.boxes.take(truth.boxes.label != NAMES.index("animal"))
    np.testing.assert_allclose(boxes.take(kept).box, of_truth.box, atol=1e-5)
    assert detection_metrics(boxes, truth, evaluator.config)[0]["mean_ap"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classez": {}}, "benchmark has 'classez'.*did you mean 'classes'"),
        ({"classes": {"animl": {}}}, "benchmark.classes has 'animl'.*did you mean 'animal'"),
        ({"classes": {"animal": {"rnge": 4}}}, "animal has 'rnge'.*did you mean 'range'"),
        ({"classes": {"animal": 4}}, "benchmark.classes.animal is 4, not a dict"),
        ({"classes": {"animal": {"range": 0}}}, "animal.range is 0, not a positive number"),
        ({"classes": {"animal": {"velocity": "no"}}}, "animal.velocity is 'no'.*True, False"),
        ({"classes": {"animal": {"orientation": 180}}}, "orientation is 180.*full, half, none"),
        ({"classes": {"animal": {"attributes": ["a"]}}}, "attributes is .'a'.: it must be two"),
        ({"classes": {"person": {"names": "worker"}}}, "person.names is 'worker', not a list"),
        ({"classes": {"person": {"names": ["car"]}}}, "'car', which is the class 'car' already"),
        ({"distances": []}, "benchmark.distances is .., not a list"),
        ({"distances": [1.0, 3.0]}, "error_distance is 2.0, which is not one of .*1.0, 3.0"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        own_benchmark(NAMES, settings)


@pytest.mark.parametrize("classes", [CLASSES, CLASSES[:3]])
def test_classes_of_nuscenes_have_its_benchmark(classes):
    assert own_benchmark(list(classes), None) is None


def test_defaults_of_a_class_that_is_not_named(make_own, caplog):
    caplog.set_level(logging.INFO)
    make_own(benchmark=None)
    assert "mAP_own is over 3 classes at 0.5, 1.0, 2.0, 4.0 m" in caplog.text
    assert "ranges in m: car 50, person 50, animal 50" in caplog.text


def test_what_is_missing_in_the_file_is_named(make_own, caplog):
    make_own(classes=["car", "person", "animal", "bicyle_"], benchmark={})
    assert (
        "infos.pkl has no object with lidar or radar points of 2 of 4 classes, which are not learned and "
        "whose AP is 0: person, bicyle_; it has pedestrian, worker, tree"
    ) in caplog.text
    assert "no object with one of the attributes of car: that error will be 1" in caplog.text
    caplog.clear()
    make_own([made_up_object("animal", 1.0, 2.0, (np.nan, np.nan))], ["animal"], {})
    assert "no known velocity of animal: that error will be 1; velocity=False" in caplog.text
    caplog.clear()
    make_own(benchmark={"classes": {"person": {"names": ["pedestrian", "workr"]}}})
    assert "no object of a name that benchmark.classes has: workr (person)" in caplog.text
    caplog.clear()
    make_own(classes=["car"], benchmark=None)  # the NDS of own data
    assert "no object with one of the attributes of car: that error will be 1" in caplog.text
    caplog.clear()
    make_own()
    make_own(benchmark={}, classes=["car", "tree"], test_mode=False)
    assert "WARNING" not in caplog.text


def test_the_devkit_is_refused_before_anything_is_predicted(make_own):
    with pytest.raises(ValueError, match="devkit scores the ten classes .* not own classes: leave"):
        make_own().evaluator.check("bbox", devkit=True)
    ten = make_own([made_up_object("car", 1.0, 2.0)], list(CLASSES), None)
    ten.evaluator.check("bbox")
    with pytest.raises(ValueError, match="whole split of it, not val of my_rig"):
        ten.evaluator.check("bbox", devkit=True)


def test_the_best_checkpoint_goes_by_the_own_map(make_own):
    hook = TemporalEvalHook(make_own(), torch.device("cpu"), save_best="auto")
    assert (hook.best_key, hook.rule) == ("mAP_own", "greater")
    with pytest.raises(ValueError, match="save_best is 'NDS': it must be mAP_own, mATE"):
        TemporalEvalHook(make_own(), torch.device("cpu"), save_best="NDS")


def test_files_without_annotations_are_refused_before_anything_is_predicted(make_own):
    dataset = make_own()
    dataset.data_infos = [
        {key: value for key, value in info.items() if not key.startswith("gt_")}
        for info in dataset.data_infos
    ]
    with pytest.raises(ValueError, match="has no annotations .gt_boxes. to score with"):
        dataset.evaluator.check()


def test_seven_cameras_and_a_long_range_are_drawn(make_own, tmp_path, monkeypatch):
    cameras = ["NOSE", "LEFT", "RIGHT", "TAIL_LEFT", "TAIL_RIGHT", "DOOR_LEFT", "DOOR_RIGHT"]
    settings = {"classes": {"car": {"range": 90.0}}}
    dataset = make_own(benchmark=settings, cameras=cameras)
    assert dataset.cameras == tuple(cameras)
    assert camera_rows(dataset.data_infos[0]) == [
        ["LEFT", "NOSE", "RIGHT"], ["DOOR_LEFT", "TAIL_LEFT", "TAIL_RIGHT", "DOOR_RIGHT"],
    ]  # fmt: skip
    figures, draw = [], sample.draw_bev
    monkeypatch.setattr(sample, "draw_bev", lambda *a: figures.append(draw(*a)) or figures[-1])
    draw_samples(dataset, {0: truth_as_results(dataset)[0]["pts_bbox"]}, tmp_path / "out")
    (axes,) = figures[0].axes
    assert axes.get_xlim() == (-90.0, 90.0)
    assert {"car", "animal"} <= {text.get_text() for text in axes.texts}
    picture = cv2.imread(str(next((tmp_path / "out").glob("*_camera.png"))))
    assert picture.shape[1] == 4 * IMAGE_HW[1] + 3 * 6

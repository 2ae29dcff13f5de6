"""Result files, their scores, and what keeps them from being scored."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet3d.core.bbox import LiDARInstance3DBoxes
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.detection.evaluate import DetectionEval
from nuscenes.eval.detection.utils import category_to_detection_name
from nuscenes.nuscenes import NuScenes
from nuscenes.utils.data_classes import Box
from pyquaternion import Quaternion

from projects.bevformer.datasets import TemporalNuScenesDataset
from projects.bevformer.nuscenes.create_infos import create_nuscenes_infos
from projects.bevformer.nuscenes.evaluation.evaluator import NuScenesEvaluator
from projects.bevformer.nuscenes.evaluation.results import Frames, detected_boxes
from projects.bevformer.nuscenes.spec import CLASSES

CONFIG = config_factory("detection_cvpr_2019")
CLASS_RANGE = CONFIG.class_range
PREFIX = "pts_bbox_NuScenes"


@pytest.fixture
def dataset(info_folder, nuscenes_root):
    return TemporalNuScenesDataset(
        str(info_folder / "test_infos_temporal_val.pkl"),
        data_root=str(nuscenes_root),
        classes=CLASSES,
        test_mode=True,
        use_valid_flag=True,
    )


def detections(boxes, labels, scores=None):
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 9)
    return {
        "boxes_3d": LiDARInstance3DBoxes(boxes, box_dim=9),
        "scores_3d": torch.ones(len(boxes)) if scores is None else torch.as_tensor(scores),
        "labels_3d": torch.as_tensor(labels, dtype=torch.long),
    }


def perfect_results(dataset):
    """The ground truth as detections."""
    results = []
    for index in range(len(dataset)):
        annotations = dataset.get_ann_info(index)
        known = annotations["gt_labels_3d"] >= 0
        boxes = annotations["gt_bboxes_3d"].tensor[torch.from_numpy(known)]
        results.append({"pts_bbox": detections(boxes, annotations["gt_labels_3d"][known])})
    return results


def submission(results, infos, folder, class_names=CLASSES, **options):
    """Sample token -> submitted boxes, of detections of some frames."""
    metadata = {"version": "v1.0-mini"}
    evaluator = NuScenesEvaluator(infos, metadata, class_names, CONFIG, "infos.pkl", **options)
    return json.loads(Path(evaluator.write(results, str(folder))).read_text())["results"]


@pytest.fixture
def submit(make_info, tmp_path):
    """Submitted boxes of the detections of one frame."""

    def submit(found, info=None, class_names=CLASSES):
        info = make_info() if info is None else info
        return submission([found], [info], tmp_path, class_names)[info["token"]]

    return submit


def no_results(dataset):
    return [{"pts_bbox": detections([], [])} for _ in range(len(dataset))]


def test_ground_truth_scores_perfectly(dataset, tmp_path):
    metrics = dataset.evaluate(perfect_results(dataset), jsonfile_prefix=str(tmp_path))
    in_range = {
        CLASSES[label]
        for result in perfect_results(dataset)
        for box, label in zip(
            result["pts_bbox"]["boxes_3d"].tensor, result["pts_bbox"]["labels_3d"]
        )
        if box[:2].norm()
        < CLASS_RANGE[CLASSES[label]] - 2  # the lidar is a metre from the ego origin
    }
    scored = {name for name in CLASSES if metrics[f"{PREFIX}/{name}_AP_dist_4.0"] > 0}
    assert in_range <= scored
    assert len(scored) >= 3
    for name in scored:
        assert metrics[f"{PREFIX}/{name}_AP_dist_0.5"] == pytest.approx(1.0, abs=1e-3)
        assert metrics[f"{PREFIX}/{name}_trans_err"] < 1e-3
        assert metrics[f"{PREFIX}/{name}_scale_err"] < 1e-3
        if name != "traffic_cone":
            assert metrics[f"{PREFIX}/{name}_orient_err"] < 0.01
        if name not in ("traffic_cone", "barrier"):
            assert metrics[f"{PREFIX}/{name}_vel_err"] < 0.01
    for name in set(CLASSES) - scored:
        assert metrics[f"{PREFIX}/{name}_trans_err"] == 1
    for name in ("results_nusc.json", "metrics_summary.json", "metrics_details.json"):
        assert (tmp_path / "pts_bbox" / name).is_file()
    summary = json.loads((tmp_path / "pts_bbox" / "metrics_summary.json").read_text())
    assert metrics[f"{PREFIX}/NDS"] == summary["nd_score"]
    assert metrics[f"{PREFIX}/mAP"] == summary["mean_ap"]


def test_true_velocities_are_submitted_without_loss(dataset, nusc):
    """Boxes hold velocities along x and y of a tilted lidar, the benchmark along those of the map."""
    results = [result["pts_bbox"] for result in perfect_results(dataset)]
    losses = {}
    for velocity in ("horizontal", "official"):
        boxes = replace(dataset.evaluator.evaluators["pts_bbox"], velocity=velocity).boxes(results)
        losses[velocity] = []
        for index, info in enumerate(dataset.data_infos):
            found = boxes.take(np.flatnonzero(boxes.sample == index))
            for token in nusc.get("sample", info["token"])["anns"]:
                place = np.array(nusc.get("sample_annotation", token)["translation"])
                row = np.linalg.norm(found.box[:, :3] - place, axis=1) < 1e-3
                true = nusc.box_velocity(token)[:2]
                if row.any() and np.isfinite(true).all():
                    losses[velocity].append(np.linalg.norm(found.velocity[row] - true))
    assert len(losses["horizontal"]) > 20
    assert max(losses["horizontal"]) < 0.001
    if "real" in dataset.data_root:
        assert max(losses["official"]) > 0.05


def test_metric_keys_are_mmdet3ds(dataset):
    metrics = dataset.evaluate(perfect_results(dataset))
    expected = {
        f"{PREFIX}/{name}" for name in ("NDS", "mAP", "mATE", "mASE", "mAOE", "mAVE", "mAAE")
    }
    for name in CLASSES:
        expected |= {f"{PREFIX}/{name}_AP_dist_{d}" for d in ("0.5", "1.0", "2.0", "4.0")}
        errors = ("trans_err", "scale_err", "orient_err", "vel_err", "attr_err")
        expected |= {f"{PREFIX}/{name}_{error}" for error in errors}
    assert set(metrics) == expected


def test_result_file_matches_the_annotations(dataset, nusc, tmp_path):
    files, tmp_dir = dataset.format_results(perfect_results(dataset), str(tmp_path))
    assert tmp_dir is None
    content = json.loads(Path(files["pts_bbox"]).read_text())
    assert content["meta"]["use_camera"] is True
    assert list(content["results"]) == [info["token"] for info in dataset.data_infos]
    count = 0
    for token, boxes in content["results"].items():
        annotated = [nusc.get_box(t) for t in nusc.get("sample", token)["anns"]]
        for box in boxes:
            distances = [np.linalg.norm(box["translation"] - a.center) for a in annotated]
            annotation = annotated[int(np.argmin(distances))]
            assert min(distances) < 1e-3
            np.testing.assert_allclose(box["size"], annotation.wlh, atol=1e-5)
            count += 1
    assert count > 0


@pytest.fixture
def real_dataset(real_root, tmp_path):
    create_nuscenes_infos(str(real_root), str(tmp_path), "real", "v1.0-mini", str(real_root.parent))
    return TemporalNuScenesDataset(
        str(tmp_path / "real_infos_temporal_val.pkl"),
        data_root=str(real_root),
        classes=CLASSES,
        test_mode=True,
    )


def test_golden_score(real_root, real_dataset, tmp_path):
    """All annotations with their attributes, as submitted: NDS on both devkits (1.1.11 and 1.2.0)."""
    nusc = NuScenes("v1.0-mini", str(real_root), verbose=False)
    attribute_names = {row["token"]: row["name"] for row in nusc.attribute}
    results = {}
    for sample in nusc.sample:
        results[sample["token"]] = []
        for token in sample["anns"]:
            annotation = nusc.get("sample_annotation", token)
            name = category_to_detection_name(annotation["category_name"])
            attributes = [attribute_names[a] for a in annotation["attribute_tokens"]]
            if name is not None:
                results[sample["token"]].append(
                    {
                        "sample_token": sample["token"],
                        "translation": annotation["translation"],
                        "size": annotation["size"],
                        "rotation": annotation["rotation"],
                        "velocity": np.nan_to_num(nusc.box_velocity(token)[:2]).tolist(),
                        "detection_name": name,
                        "detection_score": 1.0,
                        "attribute_name": (attributes or [""])[0],
                    }
                )
    path = tmp_path / "results_nusc.json"
    path.write_text(json.dumps({"meta": {"use_camera": True}, "results": results}))
    golden = pytest.approx(0.28121366123705016, abs=1e-9)
    devkit = DetectionEval(nusc, CONFIG, str(path), "mini_val", str(tmp_path), verbose=False)
    assert devkit.evaluate()[0].nd_score == golden
    assert real_dataset.evaluator.score_file(str(path), str(tmp_path))["nd_score"] == golden


def test_train_split_can_be_evaluated(synthetic_root, tmp_path):
    create_nuscenes_infos(str(synthetic_root), str(tmp_path), "t", "v1.0-mini", str(synthetic_root))
    dataset = TemporalNuScenesDataset(
        str(tmp_path / "t_infos_temporal_train.pkl"),
        data_root=str(synthetic_root),
        classes=CLASSES,
        test_mode=True,
        use_valid_flag=True,
    )
    metrics = dataset.evaluate(perfect_results(dataset))
    assert metrics[f"{PREFIX}/car_AP_dist_0.5"] == pytest.approx(1.0, abs=1e-3)


def test_no_detections_score_zero(dataset, tmp_path):
    metrics = dataset.evaluate(no_results(dataset), jsonfile_prefix=str(tmp_path))
    assert metrics[f"{PREFIX}/NDS"] == metrics[f"{PREFIX}/mAP"] == 0
    written = json.loads((tmp_path / "pts_bbox" / "results_nusc.json").read_text())
    assert not any(written["results"].values())


def test_temporary_folder_is_removed_with_its_handle(dataset):
    files, tmp_dir = dataset.format_results(no_results(dataset))
    assert json.loads(Path(files["pts_bbox"]).read_text())["results"]
    tmp_dir.cleanup()
    assert not Path(files["pts_bbox"]).exists()


# One frame


@pytest.mark.parametrize(
    ("name", "speed", "attribute"),
    [
        ("car", 0.3, "vehicle.moving"),
        ("car", 0.1, "vehicle.parked"),
        ("truck", 0.1, "vehicle.parked"),
        ("bus", 0.1, "vehicle.stopped"),
        ("trailer", 0.3, "vehicle.moving"),
        ("construction_vehicle", 0.3, "vehicle.moving"),
        ("bicycle", 0.3, "cycle.with_rider"),
        ("motorcycle", 0.1, "cycle.without_rider"),
        ("pedestrian", 0.3, "pedestrian.moving"),
        ("pedestrian", 0.1, "pedestrian.standing"),
        ("barrier", 0.3, ""),
        ("traffic_cone", 0.1, ""),
    ],
)
def test_attributes(submit, name, speed, attribute):
    box = [1, 2, 0, 4, 2, 1.5, 0, 0, speed]
    submitted = submit(detections(box, [CLASSES.index(name)]))
    assert submitted[0]["attribute_name"] == attribute


def test_box_by_hand(submit, make_info):
    """The lidar sits 0.9 m before the ego origin and looks right; the ego vehicle heads 90 degrees."""
    half = np.deg2rad(90) / 2
    info = {**make_info(), "ego2global_rotation": [np.cos(half), 0, 0, np.sin(half)]}
    box = [1.0, 2.0, -1.0, 4.0, 2.0, 1.5, 0.5, 3.0, 4.0]
    (submitted,) = submit(detections(box, [0], [0.25]), info)
    # lidar (x right, y forward) -> ego (x forward, y left): (2 + 0.9, -1); -> global: (1, 2.9).
    np.testing.assert_allclose(
        submitted["translation"], [101.0, 202.9, 1.8 - 1.0 + 0.75], atol=1e-5
    )
    assert submitted["size"] == [2.0, 4.0, 1.5]
    # With the lidar's -90 and the ego's 90 degrees, yaw stays.
    np.testing.assert_allclose(submitted["rotation"], [np.cos(0.25), 0, 0, np.sin(0.25)], atol=1e-6)
    np.testing.assert_allclose(submitted["velocity"], [3.0, 4.0], atol=1e-5)
    assert submitted["detection_score"] == 0.25
    assert submitted["detection_name"] == "car"


@pytest.mark.parametrize("velocity", ["horizontal", "official"])
def test_velocities_of_a_tilted_lidar(make_info, velocity):
    tilted = Quaternion(axis=[0, 0, 1], degrees=-90) * Quaternion(axis=[1, 2, 0], degrees=4)
    ego = Quaternion(axis=[0, 0, 1], degrees=65) * Quaternion(axis=[0, 1, 0], degrees=-3)
    info = {**make_info(), "lidar2ego_rotation": list(tilted), "ego2global_rotation": list(ego)}
    true = np.array([9.0, -7.0, 0.0])
    in_lidar = (ego * tilted).inverse.rotate(true)
    box = [1.0, 2.0, -1.0, 4.0, 2.0, 1.5, 0.5, *in_lidar[:2]]
    boxes = detected_boxes([detections(box, [0])], Frames([info]), CLASSES, CONFIG, velocity)
    lost = np.linalg.norm(boxes.velocity[0] - true[:2])
    without_z = (ego * tilted).rotate([*in_lidar[:2], 0.0])[:2]
    expected = true[:2] if velocity == "horizontal" else without_z
    np.testing.assert_allclose(boxes.velocity[0], expected, atol=1e-5)
    assert (lost < 0.001) == (velocity == "horizontal")


def test_tilted_poses_against_the_devkits_box(make_info, tmp_path):
    """With the original's velocities, what mmdet3d submits."""
    info = {
        **make_info(),
        "lidar2ego_rotation": list(Quaternion(axis=[1, 2, 3], degrees=50)),
        "ego2global_rotation": list(Quaternion(axis=[-2, 1, 1], degrees=70)),
    }
    box = [1.0, 2.0, -1.0, 4.0, 2.0, 1.5, 0.5, 3.0, 4.0]
    found = [detections(box, [0])]
    ((submitted,),) = submission(found, [info], tmp_path, velocity="official").values()
    yaw = Quaternion(axis=[0, 0, 1], radians=0.5)
    expected = Box([1.0, 2.0, -0.25], [2.0, 4.0, 1.5], yaw, velocity=(3.0, 4.0, 0.0))
    for pose in ("lidar2ego", "ego2global"):
        expected.rotate(Quaternion(info[f"{pose}_rotation"]))
        expected.translate(np.array(info[f"{pose}_translation"]))
    np.testing.assert_allclose(submitted["translation"], expected.center, atol=1e-5)
    np.testing.assert_allclose(submitted["velocity"], expected.velocity[:2], atol=1e-5)
    same_rotation = Quaternion(submitted["rotation"]).rotation_matrix
    np.testing.assert_allclose(same_rotation, expected.rotation_matrix, atol=1e-6)


def test_frames_in_a_batch_equal_single_frames(make_info, tmp_path):
    infos = [make_info("scene_a", i) for i in range(3)]
    rng = np.random.RandomState(0)
    counts = (2, 0, 3)
    results = [
        detections(rng.uniform(1, 5, (n, 9)), rng.randint(10, size=n), rng.rand(n)) for n in counts
    ]
    together = submission(results, infos, tmp_path)
    assert [len(boxes) for boxes in together.values()] == list(counts)
    for result, info in zip(results, infos):
        alone = submission([result], [info], tmp_path)
        assert alone == {info["token"]: together[info["token"]]}


def test_boxes_beyond_the_class_range_are_left_out(submit):
    for label, name in enumerate(CLASSES):
        limit = CLASS_RANGE[name]
        # Distance counts from the ego origin, 0.9 m behind the lidar.
        inside = [0, limit - 1.0, 0, 1, 1, 1, 0, 0, 0]
        outside = [0, limit - 0.8, 0, 1, 1, 1, 0, 0, 0]
        found = detections([inside, outside], [label, label], [0.1, 0.2])
        kept = submit(found)
        assert [box["detection_score"] for box in kept] == pytest.approx([0.1])


def test_labels_follow_the_class_order_of_the_config(submit):
    found = detections([1, 2, 0, 4, 2, 1.5, 0, 0, 0], [1])
    (submitted,) = submit(found, class_names=("bus", "pedestrian"))
    assert submitted["detection_name"] == "pedestrian"


def test_boxes_without_velocity(submit):
    boxes = LiDARInstance3DBoxes(torch.tensor([[1.0, 2, 0, 4, 2, 1.5, 0]]))
    found = {"boxes_3d": boxes, "scores_3d": torch.ones(1), "labels_3d": torch.zeros(1).long()}
    (submitted,) = submit(found)
    assert submitted["velocity"] == [0, 0]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (0, np.nan, "translation is not finite"),
        (4, np.inf, "size is not finite"),
        (6, np.nan, "rotation is not finite"),
        (8, np.nan, "velocity is not finite"),
        (3, 0.0, "size is zero or less"),
    ],
)
def test_impossible_boxes_are_refused(submit, column, value, message):
    boxes = np.tile([1, 2, 0, 4, 2, 1.5, 0, 0, 0], (2, 1))
    boxes[1, column] = value
    with pytest.raises(ValueError, match=message) as caught:
        submit(detections(boxes, [0, 0]))
    assert "box 1 of sample scene_a_0" in str(caught.value)


def test_scores_that_are_nan_are_refused(submit):
    with pytest.raises(
        ValueError, match="box 0 of sample scene_a_0: detection_score is not finite"
    ):
        submit(detections([1, 2, 0, 4, 2, 1.5, 0, 0, 0], [0], [np.nan]))


def test_too_many_boxes_are_refused(submit):
    boxes = [[1, 2, 0, 4, 2, 1.5, 0, 0, 0]] * 501
    with pytest.raises(ValueError, match="501 boxes for sample scene_a_0.*max_num"):
        submit(detections(boxes, [0] * 501))


def test_unknown_classes_are_refused(submit):
    with pytest.raises(ValueError, match="no class tram"):
        submit(detections([], []), class_names=("car", "tram"))


# Samples that do not fit


def test_number_of_results(dataset):
    with pytest.raises(ValueError, match="3 results for 4 frames"):
        dataset.format_results(no_results(dataset)[:3])


def every_second_frame(info_folder, nuscenes_root):
    return TemporalNuScenesDataset(
        str(info_folder / "test_infos_temporal_val.pkl"),
        data_root=str(nuscenes_root),
        classes=CLASSES,
        test_mode=True,
        load_interval=2,
    )


@pytest.mark.parametrize("devkit", [False, True])
def test_missing_samples(info_folder, nuscenes_root, devkit):
    dataset = every_second_frame(info_folder, nuscenes_root)
    message = "val of v1.0-mini: of its 4 samples 2 are missing, 0 .*load_interval"
    with pytest.raises(ValueError, match=message):
        dataset.evaluate(no_results(dataset), devkit=devkit)


def test_partial_splits_are_refused(dataset):
    dataset.metadata["samples_in_split"] = 81
    with pytest.raises(
        ValueError, match="holds 4 samples, val of v1.0-mini has 81.*scenes without"
    ):
        dataset.evaluate(no_results(dataset))


def test_samples_of_another_split(make_dataset, nuscenes_root, two_scenes):
    """Info records without the fields for evaluation are compared with the tables."""
    dataset = make_dataset(two_scenes, test_mode=True, data_root=str(nuscenes_root))
    with pytest.raises(ValueError, match="of its 4 samples 4 are missing, 6 .*another version"):
        dataset.evaluate(no_results(dataset))


@pytest.mark.parametrize("devkit", [False, True])
def test_test_split_cannot_be_evaluated(dataset, devkit):
    dataset.version = dataset.metadata["version"] = "v1.0-test"
    dataset.metadata["split"] = "test"
    with pytest.raises(ValueError, match="--format-only"):
        dataset.evaluate(no_results(dataset), devkit=devkit)


def test_devkit_needs_the_tables(dataset, tmp_path):
    dataset.data_root = str(tmp_path)
    dataset.evaluate(no_results(dataset))
    with pytest.raises(FileNotFoundError, match="data_root"):
        dataset.evaluate(no_results(dataset), devkit=True)


def test_older_info_files_need_the_tables(make_dataset, two_scenes, tmp_path):
    dataset = make_dataset(two_scenes, test_mode=True, data_root=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="tools/create_data.py"):
        dataset.evaluate(no_results(dataset))


def test_only_bbox(dataset):
    with pytest.raises(ValueError, match="segm"):
        dataset.evaluate(no_results(dataset), metric="segm")


@pytest.mark.parametrize("nothing", [False, True])
def test_devkit_flag_gives_equal_scores_and_files(dataset, tmp_path, nothing, monkeypatch):
    monkeypatch.setattr(
        DetectionEval, "render", lambda self, metrics, details: None
    )  # takes seconds
    results = no_results(dataset) if nothing else perfect_results(dataset)
    own = dataset.evaluate(results, jsonfile_prefix=str(tmp_path / "own"))
    devkits = dataset.evaluate(results, jsonfile_prefix=str(tmp_path / "devkit"), devkit=True)
    assert own == pytest.approx(devkits, abs=1e-9, nan_ok=True)
    own, devkits = (tmp_path / name / "pts_bbox" for name in ("own", "devkit"))
    assert {path.name for path in own.iterdir()} == {
        "results_nusc.json", "metrics_summary.json", "metrics_details.json",
    }  # fmt: skip
    assert {path.name for path in devkits.iterdir()} == {path.name for path in own.iterdir()} | {
        "plots"
    }
    for name in ("metrics_summary.json", "results_nusc.json"):
        layouts = [json.loads((folder / name).read_text()) for folder in (own, devkits)]
        assert list(layouts[0]) == list(layouts[1])
    assert (own / "results_nusc.json").read_bytes() == (devkits / "results_nusc.json").read_bytes()


def test_devkit_accepts_the_result_file(dataset, nusc, tmp_path):
    """--format-only, then the devkit by hand, gives what evaluate gives."""
    results = perfect_results(dataset)
    files, _ = dataset.format_results(results, str(tmp_path / "a"))
    by_hand = DetectionEval(
        nusc, CONFIG, files["pts_bbox"], "mini_val", str(tmp_path / "b"), verbose=False
    )
    expected = by_hand.evaluate()[0].nd_score
    assert dataset.evaluate(results)[f"{PREFIX}/NDS"] == pytest.approx(expected, abs=1e-9)

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from dummy_task import REPOSITORY
from mmcv.parallel import DataContainer, collate
from mmdet3d.core.bbox import LiDARInstance3DBoxes
from mmdet3d.datasets.builder import DATASETS, PIPELINES
from mmdet3d.datasets.pipelines import RandomFlip3D

from projects.bevformer.datasets import TemporalNuScenesDataset
from projects.bevformer.datasets.motion import relative_metas
from projects.bevformer.datasets.pipelines import check_steps
from projects.bevformer.engine.config import load_config
from projects.bevformer.geometry.can_bus import (
    CAN_ORIENTATION,
    CAN_POSITION,
    CAN_YAW_DEG,
    CAN_YAW_RAD,
)
from projects.bevformer.model import BEVState, Frame
from projects.bevformer.nuscenes.spec import CAMERAS, CLASSES


def frames_of(example):
    return [meta["sample_idx"] for meta in example["img_metas"].data.values()]


def test_both_names_are_registered():
    for name in ("TemporalNuScenesDataset", "CustomNuScenesDataset"):
        assert DATASETS.get(name) is TemporalNuScenesDataset


# Queue


def test_queue_drops_one_of_the_previous_frames(make_dataset, make_info):
    dataset = make_dataset([make_info(frame=i) for i in range(8)], queue_length=4)
    np.random.seed(0)
    queues = {tuple(frames_of(dataset[6])) for _ in range(60)}
    expected = {
        tuple(f"scene_a_{i}" for i in (*(j for j in range(2, 6) if j != dropped), 6))
        for dropped in range(2, 6)
    }
    assert queues == expected


def test_queue_at_the_start_repeats_frame_0(make_dataset, two_scenes):
    example = make_dataset(two_scenes, queue_length=4)[0]
    assert frames_of(example) == ["scene_a_0"] * 4
    metas = example["img_metas"].data
    assert [metas[i]["prev_bev_exists"] for i in range(4)] == [False, True, True, True]
    for i in range(4):
        assert not metas[i]["can_bus"][CAN_POSITION].any()
        assert metas[i]["can_bus"][CAN_YAW_DEG] == 0
        np.testing.assert_allclose(metas[i]["can_bus"][CAN_YAW_RAD], np.deg2rad(10))
    arrays = [metas[i]["can_bus"] for i in range(4)]
    assert len({id(array) for array in arrays}) == 4
    assert not any(np.shares_memory(a, b) for a, b in zip(arrays, arrays[1:]))


def test_queue_of_one_frame(make_dataset, two_scenes):
    example = make_dataset(two_scenes, queue_length=1)[2]
    assert frames_of(example) == ["scene_a_2"]
    assert example["img"].data.shape == (1, 6, 3, 2, 2)
    assert not example["img_metas"].data[0]["can_bus"][CAN_POSITION].any()


def test_deltas_are_between_the_chosen_frames(make_dataset, two_scenes):
    dataset = make_dataset(two_scenes, queue_length=2)
    np.random.seed(0)
    seen = set()
    for _ in range(20):
        metas = dataset[2]["img_metas"].data
        gap = 2 - int(metas[0]["sample_idx"][-1])
        seen.add(gap)
        np.testing.assert_allclose(metas[1]["can_bus"][CAN_POSITION], [2 * gap, gap, 0])
        np.testing.assert_allclose(metas[1]["can_bus"][CAN_YAW_DEG], 10 * gap)
        np.testing.assert_allclose(metas[1]["can_bus"][CAN_YAW_RAD], np.deg2rad(30))
    assert seen == {1, 2}


def test_change_of_scene_resets(make_dataset, two_scenes):
    np.random.seed(0)
    example = make_dataset(two_scenes, queue_length=3)[3]  # the first frame of the second scene
    metas = example["img_metas"].data
    assert [metas[i]["prev_bev_exists"] for i in range(3)] == [False, True, False]
    assert not metas[2]["can_bus"][CAN_POSITION].any()
    assert metas[2]["can_bus"][CAN_YAW_DEG] == 0


def test_relative_metas_does_not_edit_its_input():
    metas = [{"scene_token": "s", "can_bus": np.full(18, float(i))} for i in (3, 5)]
    queue = relative_metas(metas)
    assert queue[1]["can_bus"][CAN_POSITION].tolist() == [2, 2, 2]
    assert queue[1]["can_bus"][CAN_YAW_DEG] == 2
    assert queue[1]["can_bus"][CAN_YAW_RAD] == 5
    assert metas[1]["can_bus"].tolist() == [5.0] * 18
    assert "prev_bev_exists" not in metas[0]


def test_training_item(make_dataset, two_scenes):
    example = make_dataset(two_scenes)[2]
    assert example["img"].data.shape == (3, 6, 3, 2, 2)
    assert example["img"].data[-1].unique().tolist() == [2.0]  # the last frame is the current one
    assert list(example["img_metas"].data) == [0, 1, 2]
    assert len(example["gt_bboxes_3d"].data) == 1  # one car has lidar points
    assert example["gt_labels_3d"].data.tolist() == [0]


def test_collated_batch(make_dataset, two_scenes):
    dataset = make_dataset(two_scenes)
    batch = collate([dataset[2], dataset[5]], samples_per_gpu=2)
    assert batch["img"].data[0].shape == (2, 3, 6, 3, 2, 2)
    assert [sorted(metas) for metas in batch["img_metas"].data[0]] == [[0, 1, 2]] * 2
    assert isinstance(batch["gt_bboxes_3d"].data[0][1], LiDARInstance3DBoxes)


def test_draws_follow_the_numpy_seed(make_dataset, make_info):
    dataset = make_dataset([make_info(frame=i) for i in range(8)])

    def draws():
        np.random.seed(5)
        return [frames_of(dataset[7]) for _ in range(5)]

    assert draws() == draws()


# Frames without objects


def test_current_frame_without_objects_is_redrawn(make_dataset, two_scenes):
    two_scenes[2]["gt_names"][:] = "animal"
    dataset = make_dataset(two_scenes)
    np.random.seed(0)
    assert all(frames_of(dataset[2])[-1] != "scene_a_2" for _ in range(10))
    kept = make_dataset(two_scenes, filter_empty_gt=False)[2]
    assert frames_of(kept)[-1] == "scene_a_2"
    assert kept["gt_labels_3d"].data.dtype == torch.int64
    assert kept["gt_bboxes_3d"].data.tensor.shape == (0, 9)


def test_history_needs_no_objects(make_dataset, two_scenes):
    for info in two_scenes[:2]:
        info["gt_names"][:] = "animal"
    assert frames_of(make_dataset(two_scenes, queue_length=3)[2])[-1] == "scene_a_2"


def test_no_objects_at_all_is_an_error(make_dataset, two_scenes):
    with pytest.raises(ValueError, match="100 frames.*classes"):
        make_dataset(two_scenes, classes=["barrier"])[0]


# Annotations


def test_annotations(make_dataset, two_scenes):
    annotations = make_dataset(two_scenes, use_valid_flag=True).get_ann_info(0)
    assert annotations["gt_labels_3d"].tolist() == [0, 0, -1]
    assert annotations["gt_labels_3d"].dtype == np.int64
    boxes = annotations["gt_bboxes_3d"]
    np.testing.assert_allclose(boxes.gravity_center[0], [5, 10, -1], atol=1e-6)
    np.testing.assert_allclose(boxes.tensor[0, 2:], [-1.8, 4.5, 1.9, 1.6, 0.3, 1, 2], rtol=1e-6)
    assert boxes.tensor[1, 7:].tolist() == [0, 0]  # unknown velocity


def test_ground_truth_has_the_layout_of_results(make_dataset, two_scenes):
    dataset = make_dataset(two_scenes, test_mode=True)
    truth, found = dataset.ground_truth(0), dataset.get_ann_info(0)
    assert set(truth) == {"boxes_3d", "labels_3d"}
    assert truth["boxes_3d"].tensor.equal(found["gt_bboxes_3d"].tensor)
    assert truth["labels_3d"].tolist() == found["gt_labels_3d"].tolist()


def test_annotations_without_velocity(make_dataset, two_scenes):
    annotations = make_dataset(two_scenes, with_velocity=False).get_ann_info(0)
    assert annotations["gt_bboxes_3d"].tensor.shape == (2, 7)  # those with lidar points


def test_test_split_has_no_annotations(make_dataset, make_info):
    info = make_info()
    del info["gt_boxes"]
    dataset = make_dataset([info], test_mode=True)
    assert "ann_info" not in dataset.get_data_info(0)
    assert dataset.ground_truth(0) is None
    with pytest.raises(ValueError, match="test split"):
        dataset.get_ann_info(0)


# CAN bus


def test_can_bus_of_a_test_frame_is_absolute(make_dataset, two_scenes):
    meta = make_dataset(two_scenes, test_mode=True)[1]["img_metas"].data
    yaw = np.deg2rad(20)
    np.testing.assert_allclose(meta["can_bus"][CAN_POSITION], [102, 201, 0])
    expected = [np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]
    np.testing.assert_allclose(meta["can_bus"][CAN_ORIENTATION], expected)
    np.testing.assert_allclose(meta["can_bus"][7:16], np.arange(7, 16))
    np.testing.assert_allclose(meta["can_bus"][16:], [yaw, 20])
    assert "prev_bev_exists" not in meta


@pytest.mark.parametrize("yaw_deg", [-170.0, -1.0, 0.0, 135.0])
def test_yaw_is_not_negative(make_dataset, make_info, yaw_deg):
    half = np.deg2rad(yaw_deg) / 2
    info = {**make_info(), "ego2global_rotation": [np.cos(half), 0, 0, np.sin(half)]}
    can_bus = make_dataset([info], test_mode=True).get_data_info(0)["can_bus"]
    np.testing.assert_allclose(can_bus[CAN_YAW_DEG], yaw_deg % 360, atol=1e-9)
    np.testing.assert_allclose(can_bus[CAN_YAW_RAD], np.deg2rad(yaw_deg % 360), atol=1e-9)


def test_official_quirks_of_the_can_bus(make_dataset, two_scenes):
    dataset = make_dataset(
        two_scenes, test_mode=True, can_bus_quaternion="official", can_bus_message="official"
    )
    can_bus = dataset.get_data_info(1)["can_bus"]
    np.testing.assert_allclose(can_bus[CAN_ORIENTATION], [np.cos(np.deg2rad(10))] * 4)
    np.testing.assert_allclose(can_bus[7:16], -np.arange(9.0))


def test_info_file_of_the_original_gives_a_warning(make_dataset, two_scenes, caplog):
    for info in two_scenes:
        del info["can_bus_motion_after"]
    can_bus = make_dataset(two_scenes, can_bus_message="official").get_data_info(0)["can_bus"]
    np.testing.assert_allclose(can_bus[7:16], np.arange(7, 16))
    assert "can_bus_message" not in caplog.text
    make_dataset(two_scenes)
    assert "can_bus_message" in caplog.text


# Geometry and files


def test_matrices_and_files_follow_the_camera_order(make_dataset, two_scenes):
    info = two_scenes[0]
    for i, name in enumerate(CAMERAS):
        info["cams"][name]["data_path"] = f"samples/{name}.jpg"
        info["cams"][name]["cam_intrinsic"] = np.diag([100.0 + i, 100.0, 1.0])
    info["cams"] = dict(reversed(list(info["cams"].items())))
    frame = make_dataset(two_scenes).get_data_info(0)
    assert frame["img_filename"] == [f"root/samples/{name}.jpg" for name in CAMERAS]
    assert [matrix[0, 0] for matrix in frame["cam2img"]] == [100 + i for i in range(6)]


def test_projection_by_hand(make_dataset, two_scenes):
    # The camera looks along +y of the lidar frame, half a metre in front and 0.3 m below it.
    lidar2img = make_dataset(two_scenes).get_data_info(0)["lidar2img"][0]
    u, v, depth, _ = lidar2img @ [1.0, 10.5, 1.7, 1.0]
    np.testing.assert_allclose([u / depth, v / depth, depth], [200 + 10, 112 - 20, 10], rtol=1e-12)


@pytest.mark.parametrize(
    ("root", "path", "joined"),
    [
        ("data/nuscenes/", "samples/a.jpg", "data/nuscenes/samples/a.jpg"),
        ("data/nuscenes", "./data/nuscenes/samples/a.jpg", "./data/nuscenes/samples/a.jpg"),
        ("data/nuscenes", "/elsewhere/samples/a.jpg", "/elsewhere/samples/a.jpg"),
        (None, "samples/a.jpg", "samples/a.jpg"),
    ],
)
def test_paths(make_dataset, two_scenes, root, path, joined):
    two_scenes[0]["lidar_path"] = path
    assert make_dataset(two_scenes, data_root=root).get_data_info(0)["pts_filename"] == joined


def test_queue_of_different_sizes_is_refused(make_dataset, two_scenes):
    dataset = make_dataset(two_scenes)

    def pipeline(frame):
        image = torch.zeros(6, 3, 4 if frame["sample_idx"] == "scene_a_2" else 2, 2)
        labels = DataContainer(torch.zeros(1))
        metas = {key: frame[key] for key in ("can_bus", "scene_token", "sample_idx")}
        metas = DataContainer(dict(metas, filename=frame["img_filename"]))
        return {"img": DataContainer(image), "img_metas": metas, "gt_labels_3d": labels}

    dataset.pipeline = pipeline
    dataset[0]
    first, last = "root/samples/CAM/0.jpg", "root/samples/CAM/0.jpg"
    with pytest.raises(
        ValueError, match=rf"\({first}\) are \(2, 2\).*scene_a_2 \({last}\) are \(4, 2"
    ):
        dataset[2]


# The dataset as a whole


def test_nothing_is_edited(make_dataset, two_scenes):
    for options in ({}, {"test_mode": True}):
        dataset = make_dataset(two_scenes, use_valid_flag=True, **options)
        before = pickle.dumps(dataset.data_infos)
        for i in range(len(dataset)):
            item = dataset[i]
            metas = item["img_metas"].data
            for meta in [metas] if options else metas.values():
                meta["can_bus"][:] = -1
                meta["lidar2img"][0][:] = -1
            if not options:
                item["gt_bboxes_3d"].data.tensor[:] = -1
        dataset.get_ann_info(0)["gt_bboxes_3d"].tensor[:] = -1
        assert pickle.dumps(dataset.data_infos) == before


def test_test_frames_come_in_time_order(make_dataset, two_scenes):
    dataset = make_dataset(two_scenes[::-1], test_mode=True)
    order = [dataset[i]["img_metas"].data["sample_idx"] for i in range(6)]
    assert order == [f"scene_{scene}_{i}" for scene in "ab" for i in range(3)]


def test_load_interval(make_dataset, two_scenes):
    dataset = make_dataset(two_scenes, load_interval=2)
    assert [info["token"][-1] for info in dataset.data_infos] == ["0", "2", "1"]


def test_workers_may_be_spawned(write_infos, two_scenes):
    dataset = TemporalNuScenesDataset(write_infos(two_scenes), classes=CLASSES)
    assert len(pickle.loads(pickle.dumps(dataset))) == 6


def test_empty_info_file_is_refused(write_infos):
    with pytest.raises(ValueError, match="no frames"):
        TemporalNuScenesDataset(write_infos([]))


def test_missing_info_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="create_data.py"):
        TemporalNuScenesDataset(str(tmp_path / "none.pkl"))


@pytest.mark.parametrize(
    "options",
    [
        {"queue_length": 0},
        {"can_bus_quaternion": "xyzw"},
        {"can_bus_message": "next"},
        {"can_bus_heading": "radians"},
        {"lidar_axes": "ego"},
        {"result_velocity": "none"},
    ],
)
def test_unknown_options(make_dataset, two_scenes, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        make_dataset(two_scenes, **options)


# Paths


@pytest.mark.parametrize("old_root", ["/other/machine/nuscenes", "./data/elsewhere"])
def test_files_of_another_machine_are_found_below_data_root(
    make_dataset, two_scenes, tmp_path, old_root
):
    for info in two_scenes:
        for name, camera in info["cams"].items():
            camera["data_path"] = f"{old_root}/samples/{name}/{info['frame_idx']}.jpg"
    picture = tmp_path / "samples" / CAMERAS[0] / "0.jpg"
    picture.parent.mkdir(parents=True)
    picture.touch()
    dataset = make_dataset(two_scenes, data_root=str(tmp_path))
    expected = f"{tmp_path}/samples/{CAMERAS[2]}/1.jpg"
    assert dataset.get_data_info(1)["img_filename"][2] == expected
    assert dataset.info_with_paths(1)["cams"][CAMERAS[2]]["data_path"] == expected
    assert dataset.data_infos[1]["cams"][CAMERAS[2]]["data_path"].startswith(old_root)
    picture.unlink()  # neither here nor there: the path stays what the file says
    dataset = make_dataset(two_scenes, data_root=str(tmp_path))
    assert old_root.lstrip("./") in dataset.get_data_info(1)["img_filename"][2]


def test_correct_paths_are_unchanged(make_dataset, two_scenes, tmp_path):
    for folder in ("here", "there"):
        picture = tmp_path / folder / "samples" / CAMERAS[0] / "0.jpg"
        picture.parent.mkdir(parents=True)
        picture.touch()
    for info in two_scenes:
        info["cams"][CAMERAS[0]]["data_path"] = str(picture)
    dataset = make_dataset(two_scenes, data_root=str(tmp_path / "here"))
    assert dataset.get_data_info(0)["img_filename"][0] == str(picture)


# Motion, and steps that move something


def heading_north(make_info):
    """Two frames of a scene; the heading goes from 359.9 to 0.1 degrees."""
    infos = [make_info(frame=i) for i in range(2)]
    for info, yaw_deg in zip(infos, (359.9, 0.1)):
        half = np.deg2rad(yaw_deg) / 2
        info["ego2global_rotation"] = [np.cos(half), 0.0, 0.0, np.sin(half)]
    return infos


@pytest.mark.parametrize(("option", "turn"), [("wrapped", 0.2), ("official", -359.8)])
def test_a_turn_past_north_is_the_same_in_queues_and_streams(make_dataset, make_info, option, turn):
    infos = heading_north(make_info)
    np.random.seed(0)
    queue = make_dataset(infos, queue_length=2, can_bus_heading=option)[1]["img_metas"].data
    assert queue[1]["can_bus"][CAN_YAW_DEG] == pytest.approx(turn)
    stream = make_dataset(infos, test_mode=True, can_bus_heading=option)
    metas = [dict(stream[i]["img_metas"].data, img_shape=[(2, 2, 3)] * 6) for i in range(2)]
    state = BEVState().updated([metas[0]], torch.zeros(1, 4, 2))
    frame = Frame.from_metas([metas[1]], state.read([metas[1]])[1])
    assert frame.can_bus[0, CAN_YAW_DEG].item() == pytest.approx(turn)
    assert frame.motion.turn_deg.item() == pytest.approx(turn)


def test_lidar_axes_are_those_of_the_info_file_unless_official(make_dataset, two_scenes):
    """The pipeline of these data sets collects neither key."""
    for options in ({"queue_length": 1}, {"test_mode": True}):
        meta = metas_of(make_dataset(two_scenes, **options)[1])
        np.testing.assert_allclose(meta["lidar2ego"][:2, 3], [0.9, 0.0])
        np.testing.assert_allclose(meta["lidar2ego"][:2, :2], [[0, 1], [-1, 0]], atol=1e-12)
        assert "lidar2ego" not in metas_of(
            make_dataset(two_scenes, lidar_axes="official", **options)[1]
        )


def metas_of(example):
    meta = example["img_metas"].data
    return meta.get(0, meta)


def test_the_lidars_place_and_axes_reach_the_network(make_dataset, two_scenes):
    """A lidar that looks ahead, 2 m left of the ego origin: y grows to the left."""
    for info in two_scenes:
        info.update(lidar2ego_rotation=[1, 0, 0, 0], lidar2ego_translation=[0, 2.0, 1.8])
    np.random.seed(0)
    (_, meta) = make_dataset(two_scenes, queue_length=2)[2]["img_metas"].data.values()
    frame = Frame.from_metas([dict(meta, img_shape=[(2, 2, 3)] * 6)])
    turn, yaw = np.deg2rad(meta["can_bus"][CAN_YAW_DEG]), meta["can_bus"][CAN_YAW_RAD]
    dx, dy, _ = meta["can_bus"][CAN_POSITION]
    ahead, left = np.cos(yaw) * dx + np.sin(yaw) * dy, np.cos(yaw) * dy - np.sin(yaw) * dx
    expected = [ahead - 2 * np.sin(turn), left + 2 - 2 * np.cos(turn)]
    np.testing.assert_allclose(frame.motion.delta_xy_lidar()[0], expected, atol=1e-9)


def test_draws_that_move_pixels_are_made_once_per_queue(make_dataset, two_scenes, collect):
    conf = {"reisze": [2, 3, 4], "crop": (0, 0, 4, 4), "H": 4, "W": 4, "rand_flip": True}
    step = PIPELINES.build(dict(type="CropResizeFlipImage", data_aug_conf=conf))

    def load_and_crop(frame):
        shapes = [np.zeros((4, 4, 3), np.float32)] * 6
        return collect(step(dict(frame, img=shapes)))

    dataset, seen = make_dataset(two_scenes, pipeline=[load_and_crop]), set()
    for seed in range(20):
        np.random.seed(seed)
        queue = dataset[2]["img_metas"].data
        cameras = {tuple(np.ravel(meta["lidar2img"])) for meta in queue.values()}
        flips = {meta["image_flip"] for meta in queue.values()}
        assert len(cameras) == len(flips) == 1
        seen |= flips
    assert seen == {True, False}


@pytest.mark.parametrize(
    "step",
    [
        dict(type="RandomFlip3D", flip_ratio_bev_horizontal=1.0),
        dict(type="GlobalRotScaleTrans"),
        dict(type="MultiViewWrapper", transforms=[dict(type="Resize", img_scale=(8, 8))]),
        dict(type="mmdet.RandomCrop", crop_size=(2, 2)),
        dict(type="Pad", size_divisor=32),
        dict(type="GlobalRotScaleTransImage"),
        dict(type="MirroredByASubclass"),
    ],
    ids=lambda step: step["type"],
)
def test_steps_that_the_rest_does_not_follow_are_refused_by_name(make_dataset, two_scenes, step):
    name = step.get("transforms", [step])[0]["type"]
    with pytest.raises(ValueError, match=f"pipeline step {name}.*do not.*follow.*remove it"):
        make_dataset(two_scenes, pipeline=[step])


@PIPELINES.register_module()
class MirroredByASubclass(RandomFlip3D):
    """Of a fork."""


@pytest.mark.parametrize(
    "option",
    [
        dict(flip=True),
        dict(pcd_vertical_flip=True),
        dict(pts_scale_ratio=[0.9, 1.1]),
        dict(pts_scale_ratio=1.1),
        dict(img_scale=[(1600, 900), (800, 450)]),
        dict(flip_direction=["horizontal", "vertical"]),
    ],
)
def test_versions_of_a_test_frame_are_refused(make_dataset, two_scenes, option):
    step = dict(type="MultiScaleFlipAug3D", transforms=[], img_scale=(1600, 900), pts_scale_ratio=1)
    make_dataset(two_scenes, pipeline=[dict(step, flip=False, pts_scale_ratio=[1.0])])
    make_dataset(two_scenes, pipeline=[dict(step, img_scale=[1600, 900])])  # of JSON and YAML
    (name,) = option
    with pytest.raises(ValueError, match=rf"MultiScaleFlipAug3D\({name}=.*tests each frame once"):
        make_dataset(two_scenes, pipeline=[dict(step, **option)])


def test_every_published_recipe_has_steps_that_are_followed():
    for path in sorted(Path(REPOSITORY, "configs").glob("bevformer*/*.py")):
        for part in load_config(str(path)).data.values():
            if isinstance(part, dict) and "pipeline" in part:
                check_steps(part["pipeline"], part["type"], "V2" in part["type"])

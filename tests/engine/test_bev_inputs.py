"""The network's input: pixels, matrices, motion and visibility agree with the files and the tables."""

import cv2
import numpy as np
import pytest
import torch
from mmcv import ConfigDict

from projects.bevformer import plugin  # noqa: F401
from projects.bevformer.datasets import TemporalNuScenesDataset
from projects.bevformer.datasets.fused_frames import CustomNuScenesDatasetV2
from projects.bevformer.engine import bev_inputs, pictures
from projects.bevformer.engine.bev_inputs import (
    InputFrame,
    bev_head,
    build_preprocessor,
    ego_track,
    network_input,
    seen_cells,
)
from projects.bevformer.geometry.poses import inverse_poses
from projects.bevformer.nuscenes.create_infos import create_nuscenes_infos
from projects.bevformer.nuscenes.records import lidar2global_of, lidar2img_of_camera
from projects.bevformer.nuscenes.spec import CAMERAS, CLASSES

NORM = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
LOAD = [
    dict(type="LoadMultiViewImageFromFiles", to_float32=True),
    dict(type="RandomScaleImageMultiViewImage", scales=[0.5]),
]
LABELS = dict(type="LoadAnnotations3D", with_bbox_3d=True, with_label_3d=True)
SIZE = [
    dict(type="NormalizeMultiviewImage", **NORM),
    dict(type="PadMultiViewImage", size_divisor=32),
]
BUNDLE = dict(type="DefaultFormatBundle3D", class_names=CLASSES)
TRAIN = [
    *LOAD, LABELS, *SIZE, BUNDLE,
    dict(type="CustomCollect3D", keys=["gt_bboxes_3d", "gt_labels_3d", "img"]),
]  # fmt: skip
TEST = [
    *LOAD, *SIZE,
    dict(
        type="MultiScaleFlipAug3D", img_scale=(1, 1), pts_scale_ratio=1, flip=False,
        transforms=[dict(BUNDLE, with_label=False), dict(type="CustomCollect3D", keys=["img"])],
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def ann_file(synthetic_root, tmp_path_factory):
    out_dir = tmp_path_factory.mktemp("infos")
    create_nuscenes_infos(str(synthetic_root), str(out_dir), "t", "v1.0-mini", str(synthetic_root))
    return str(out_dir / "t_infos_temporal_train.pkl")


BYTES = [
    dict(type="LoadMultiViewImageFromFiles"),
    LABELS,
    dict(type="ByteImageFormatBundle3D", class_names=CLASSES, stack=False),
    dict(type="CustomCollect3D", keys=["gt_bboxes_3d", "gt_labels_3d", "img"]),
]
PIPELINES = {"train": TRAIN, "test": TEST, "bytes": BYTES}


@pytest.fixture(params=list(PIPELINES))
def dataset(request, ann_file, synthetic_root):
    return TemporalNuScenesDataset(
        ann_file,
        pipeline=PIPELINES[request.param],
        data_root=str(synthetic_root),
        classes=CLASSES,
        queue_length=3,
        test_mode=request.param == "test",
    )


@pytest.fixture
def preprocessor(dataset):
    """What a model with the pipeline "bytes" has."""
    if dataset.pipeline.transforms[-2].__class__.__name__ != "ByteImageFormatBundle3D":
        return None
    settings = dict(type="ImagePreprocessor", scale=0.5, size_divisor=32, **NORM)
    return build_preprocessor(ConfigDict(model=dict(data_preprocessor=settings)))


@pytest.fixture
def sample(dataset, preprocessor):
    np.random.seed(0)
    return network_input(dataset, 3, preprocessor)


def test_the_queue(dataset, sample):
    tokens = [info["token"] for info in dataset.data_infos]
    indices = [tokens.index(frame.token) for frame in sample.frames]
    assert indices[-1] == 3
    assert indices == ([2, 3] if dataset.test_mode else sorted(set(indices)))
    assert [frame.has_history for frame in sample.frames] == [i > 0 for i in range(len(indices))]
    assert len(sample.ground_truth["boxes_3d"]) == len(sample.ground_truth["labels_3d"]) > 0
    assert sample.cameras == CAMERAS


def test_pixels_match_the_file(dataset, sample, synthetic_root):
    info = dataset.data_infos[3]
    for i, name in enumerate(CAMERAS):
        original = cv2.imread(str(synthetic_root / info["cams"][name]["data_path"]))
        height, width = 112, 200
        small = cv2.resize(original, (width, height), interpolation=cv2.INTER_LINEAR)
        pixels = sample.frames[-1].images_bgr[i]
        assert pixels.shape == (128, 224, 3)
        assert pixels.dtype == np.uint8
        assert np.abs(pixels[:height, :width].astype(int) - small).max() <= 1
        mean_bgr = np.round(NORM["mean"][::-1])
        np.testing.assert_array_equal(pixels[height:], np.broadcast_to(mean_bgr, (16, 224, 3)))


def test_matrices_fit_the_pixels(dataset, sample):
    point = np.array([1.0, 20.0, -1.0, 1.0])  # ahead of the lidar
    u, v, depth, _ = lidar2img_of_camera(dataset.data_infos[3]["cams"]["CAM_FRONT"]) @ point
    x, y, z, _ = sample.frames[-1].lidar2img[0] @ point
    # 225 rows become 112: the true ratio is a little below a half.
    np.testing.assert_allclose([x / z, y / z], [u / depth / 2, v / depth * 112 / 225], rtol=1e-6)


def test_track_matches_the_tables(dataset, sample):
    infos = {info["token"]: info for info in dataset.data_infos}
    positions, yaws = ego_track(sample.frames)
    assert len(positions) == len(sample.frames)
    last = infos[sample.frames[-1].token]
    to_last = inverse_poses(lidar2global_of(last))
    for frame, position in zip(sample.frames, positions):
        moved = to_last @ lidar2global_of(infos[frame.token])
        np.testing.assert_allclose(position, moved[:2, 3], atol=0.02)
    np.testing.assert_array_equal(positions[-1], [0, 0])
    assert np.linalg.norm(positions[0]) > 0.5


def motion(dx, dy, yaw_deg, turned_deg, has_history=True):
    can_bus = np.zeros(18)
    can_bus[:2] = dx, dy
    can_bus[16], can_bus[17] = np.deg2rad(yaw_deg), turned_deg
    return InputFrame("", np.zeros((1, 1, 1, 3)), np.zeros((1, 4, 4)), can_bus, has_history)


def test_track_computed_by_hand():
    # 5 m along global x, then a turn to the left on the spot, then 2 m along global y.
    frames = [
        motion(9, 9, 0, 9, has_history=False),
        motion(5, 0, 0, 0),
        motion(0, 0, 90, 90),
        motion(0, 2, 90, 0),
    ]
    positions, yaws = ego_track(frames)
    # Seen from the end, looking along global y: global x is to the right.
    np.testing.assert_allclose(positions, [[-5, -2], [0, -2], [0, -2], [0, 0]], atol=1e-5)
    np.testing.assert_allclose(np.rad2deg(yaws), [-90, -90, 0, 0], atol=1e-5)


def test_track_stops_at_a_new_scene():
    positions, _ = ego_track([motion(5, 0, 0, 0), motion(1, 0, 0, 0, has_history=False)])
    assert positions.tolist() == [[0, 0]]


def bev_config(**encoder):
    encoder = dict(pc_range=[-10, -20, -1, 10, 20, 1], num_points_in_pillar=2, **encoder)
    head = dict(bev_h=4, bev_w=2, transformer=dict(encoder=encoder))
    return ConfigDict(model=dict(pts_bbox_head=head))


def test_seen_cells_by_hand():
    # A camera at the lidar that looks ahead: 90 degrees wide and high.
    lidar2img = np.array([[50.0, 50, 0, 0], [0, 50, -50, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    frame = InputFrame(
        "", np.zeros((2, 100, 100, 3)), np.stack([lidar2img, -lidar2img]), np.zeros(18), False
    )
    head = bev_head(bev_config())
    seen = seen_cells(head, frame)
    # Cell centres lie at x = -5, 5 and y = -15, -5, 5, 15.
    assert seen.shape == (2, 4, 2)
    assert seen[0].tolist() == [[False] * 2, [False] * 2, [False] * 2, [True] * 2]
    with pytest.raises(ValueError, match="config section `model`"):
        bev_head(ConfigDict(model=dict()))
    with pytest.raises(ValueError, match="model.pts_bbox_head"):
        seen_cells(ConfigDict(), frame)


def test_a_grid_that_the_config_does_not_have_is_read_from_the_network(monkeypatch):
    config, built = bev_config(), bev_config()
    del config.model.pts_bbox_head["bev_w"]
    monkeypatch.setattr(bev_inputs, "build_detector", lambda cfg: built.model)
    assert bev_head(config) is built.model.pts_bbox_head


def test_a_sample_without_objects_is_skipped_in_training(dataset):
    if dataset.test_mode:
        return
    dataset.cat2id = {}
    assert network_input(dataset, 3) is None


def test_frames_of_the_first_sample(dataset, preprocessor):
    frames = network_input(dataset, 0, preprocessor).frames
    assert not frames[0].has_history
    assert torch.is_tensor(
        dataset[0]["img"][0].data if dataset.test_mode else dataset[0]["img"].data
    )


@pytest.mark.parametrize("split", ["train", "test"])
def test_frames_at_offsets(ann_file, synthetic_root, split):
    pipeline = PIPELINES[split]
    if split == "train":  # as the published pipelines do
        collect = dict(pipeline[-1], keys=[*pipeline[-1]["keys"], "mono_input_dict", "aug_param"])
        pipeline = [*pipeline[:-1], collect]

    def sample(index, frames):
        dataset = CustomNuScenesDatasetV2(
            ann_file,
            frames=frames,
            pipeline=pipeline,
            data_root=str(synthetic_root),
            classes=CLASSES,
            test_mode=split == "test",
        )
        tokens = [info["token"] for info in dataset.data_infos]
        drawn = network_input(dataset, index)
        assert len(drawn.ground_truth["boxes_3d"]) > 0
        return [tokens.index(frame.token) for frame in drawn.frames], drawn.frames

    indices, frames = sample(3, (-2, -1, 0))
    assert indices == [1, 2, 3]
    assert [frame.has_history for frame in frames] == [False, True, True]
    assert len(ego_track(frames)[0]) == 3
    assert sample(1, (-2, -1, 0))[0] == [0, 1]
    assert sample(1, (0,))[0] == [1]
    with pytest.raises(ValueError, match="queues that end with frame 0"):
        sample(1, (0, 1))


@pytest.mark.parametrize("dataset", ["bytes"], indirect=True)
def test_pictures_of_the_input(dataset, preprocessor, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "build_preprocessor", lambda cfg: preprocessor)
    np.random.seed(0)
    assert pictures.draw_network_inputs(bev_config(), dataset, 1, tmp_path) == [0]
    token = dataset.data_infos[0]["token"]
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{token}_{kind}.png" for kind in ("queue", "cameras", "bev")
    }
    dataset.cat2id = {}  # no object is left
    assert pictures.draw_network_inputs(bev_config(), dataset, 2, tmp_path) == []


@pytest.mark.parametrize(
    ("total", "count", "indices"),
    [(5, 3, [0, 2, 4]), (5, 1, [0]), (3, 3, [0, 1, 2]), (3, 9, [0, 1, 2]), (3, None, [0, 1, 2]),
     (3, 0, [0, 1, 2]), (0, 2, [])],
)  # fmt: skip
def test_spaced(total, count, indices):
    assert pictures.spaced(total, count) == indices

"""Frames at fixed offsets: which, from whose point of view, and alike in their augmentation."""

import copy

import numpy as np
import pytest
import torch
from mmcv.parallel import collate
from mmdet3d.datasets.builder import PIPELINES

from projects.bevformer.datasets import CustomNuScenesDatasetV2
from projects.bevformer.geometry.poses import pose_matrix
from projects.bevformer.nuscenes.create_infos import create_nuscenes_infos
from projects.bevformer.nuscenes.spec import CLASSES


@pytest.fixture
def make_dataset(write_infos, collect):
    """Factory of datasets over handmade infos that open no file."""

    def make(infos, **options):
        options = {"data_root": "root", "classes": CLASSES, "pipeline": [collect], **options}
        return CustomNuScenesDatasetV2(write_infos(infos), **options)

    return make


def metas_of(example):
    return example["img_metas"].data


def test_frames_in_the_middle_of_a_scene(make_dataset, make_info):
    dataset = make_dataset([make_info(frame=i) for i in range(6)], frames=(-2, 0, 1))
    example = dataset[3]
    metas = metas_of(example)
    assert [meta["sample_idx"] for meta in metas.values()] == [
        "scene_a_1",
        "scene_a_3",
        "scene_a_4",
    ]
    assert list(metas) == [-2, 0, 1]
    assert all(meta["frame_exists"] for meta in metas.values())
    assert example["img"].data[:, 0, 0, 0, 0].tolist() == [1.0, 3.0, 4.0]
    assert len(example["gt_labels_3d"].data) == len(example["gt_bboxes_3d"].data) == 1


def test_frames_of_other_scenes_do_not_exist(make_dataset, two_scenes):
    dataset = make_dataset(two_scenes, frames=(-1, 0, 1))
    at_end, at_start = metas_of(dataset[2]), metas_of(dataset[3])
    assert [meta["frame_exists"] for meta in at_end.values()] == [True, True, False]
    assert [meta["frame_exists"] for meta in at_start.values()] == [False, True, True]
    assert [meta["frame_exists"] for meta in metas_of(dataset[0]).values()] == [False, True, True]
    assert [meta["frame_exists"] for meta in metas_of(dataset[5]).values()] == [True, True, False]
    assert dataset[3]["img"].data.shape[0] == 3  # the current frame stands in


def lidar2global(info):
    lidar2ego = pose_matrix(info["lidar2ego_rotation"], info["lidar2ego_translation"])
    return pose_matrix(info["ego2global_rotation"], info["ego2global_translation"]) @ lidar2ego


def test_cameras_of_other_frames_project_from_the_current_lidar(make_dataset, make_info):
    infos = [make_info(frame=i) for i in range(4)]
    metas = metas_of(make_dataset(infos, frames=(-2, 0))[3])
    raw = make_dataset(infos, frames=(0,)).get_data_info(1)
    place = lidar2global(infos[3]) @ [4.0, 20.0, 1.0, 1.0]
    seen_then = raw["lidar2img"][0] @ np.linalg.inv(lidar2global(infos[1])) @ place
    seen_now = metas[-2]["lidar2img"][0] @ [4.0, 20.0, 1.0, 1.0]
    np.testing.assert_allclose(seen_now, seen_then, atol=1e-6)
    own = make_dataset(infos, frames=(0,)).get_data_info(3)
    np.testing.assert_array_equal(metas[0]["lidar2img"], own["lidar2img"])


def test_infos_are_not_edited(make_dataset, two_scenes, collect):
    def with_objects(results):
        return dict(collect(results), mono_input_dict=results["mono_input_dict"])

    dataset = make_dataset(two_scenes, frames=(-1, 0), mono_cfg={}, pipeline=[with_objects])
    before = copy.deepcopy([dataset.data_infos[i] for i in range(len(dataset))])
    dataset[1]
    for i, old in enumerate(before):
        np.testing.assert_equal(dataset.data_infos[i], old)


class Draw:
    """A step that draws a number for all frames of an item, before the step that collects."""

    def __call__(self, results):
        results["aug_param"].setdefault(
            "GlobalRotScaleTransImage",
            {"matrix": np.eye(3) * np.random.rand(), "only_gt": True},
        )
        results["aug_param"].setdefault("CropResizeFlipImage", {"flip": True})
        return results


def test_frames_share_augmentation_and_items_do_not(make_dataset, make_info, collect):
    infos = [make_info(frame=i) for i in range(3)]
    dataset = make_dataset(infos, frames=(-1, 0), pipeline=[Draw(), collect])
    first, second = metas_of(dataset[1]), metas_of(dataset[1])
    np.testing.assert_array_equal(first[-1]["bev_augmentation"], first[0]["bev_augmentation"])
    assert not np.allclose(first[0]["bev_augmentation"], second[0]["bev_augmentation"])
    assert first[-1]["image_flip"]
    assert first[0]["image_flip"]


def test_metas_without_augmentation(make_dataset, make_info):
    metas = metas_of(make_dataset([make_info()], frames=(0,))[0])
    assert not {"bev_augmentation", "image_flip"} & set(metas[0])


def test_frame_without_visible_objects_is_redrawn(make_dataset, two_scenes, collect):
    def nothing_seen_in_the_first(results):
        if results["sample_idx"] == "scene_a_0":
            return None
        return dict(collect(results), mono_input_dict={3: "objects"})

    dataset = make_dataset(two_scenes, pipeline=[nothing_seen_in_the_first], mono_cfg={})
    assert dataset.prepare_train_data(0) is None
    meta = metas_of(dataset[0])[0]
    assert meta["sample_idx"] != "scene_a_0"
    assert meta["mono_objects"] == {3: "objects"}


def test_model_without_can_bus_needs_no_warning(make_dataset, two_scenes, caplog):
    for info in two_scenes:
        del info["can_bus_motion_after"]
    make_dataset(two_scenes)
    assert "can_bus takes" not in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [({"frames": (0, -1)}, "time order"), ({"overlap_test": True}, "overlap_test")],
)
def test_unsupported_options(make_dataset, two_scenes, options, message):
    with pytest.raises(ValueError, match=message):
        make_dataset(two_scenes, **options)


# The steps of published recipes with augmentation, on synthetic pictures of 225 x 400.

IDA = {"reisze": [64, 96], "crop": (0, 65, 400, 225), "H": 225, "W": 400, "rand_flip": True}
NORMALIZE = {"type": "NormalizeMultiviewImage", "mean": [103.5, 116.3, 123.7], "std": [1.0] * 3}
POSES = ["ego2global_translation", "ego2global_rotation", "lidar2ego_translation"]
POSES += ["lidar2ego_rotation", "timestamp"]
TRAIN = [
    {"type": "LoadMultiViewImageFromFiles", "to_float32": True},
    {"type": "PhotoMetricDistortionMultiViewImage"},
    {"type": "LoadAnnotations3D", "with_bbox_3d": True, "with_label_3d": True},
    {
        "type": "GlobalRotScaleTransImage",
        "rot_range": [-22.5, 22.5],
        "scale_ratio_range": [0.95, 1.05],
        "translation_std": [0, 0, 0],
        "reverse_angle": True,
        "training": True,
        "flip_dx_ratio": 0.5,
        "flip_dy_ratio": 0.5,
        "only_gt": True,
    },
    {"type": "ObjectRangeFilter", "point_cloud_range": [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]},
    {"type": "ObjectNameFilter", "classes": CLASSES},
    {"type": "CropResizeFlipImage", "data_aug_conf": IDA, "training": True, "debug": False},
    {**NORMALIZE, "to_rgb": False},
    {"type": "PadMultiViewImage", "size_divisor": 32},
    {"type": "DefaultFormatBundle3D", "class_names": CLASSES},
    {
        "type": "CustomCollect3D",
        "keys": ["gt_bboxes_3d", "gt_labels_3d", "img", *POSES]
        + ["mono_input_dict", "mono_ann_idx", "aug_param"],
    },
    {"type": "DD3DMapper", "is_train": True, "tasks": {"box2d_on": True, "box3d_on": True}},
]
TEST = [
    TRAIN[0],
    {
        "type": "CropResizeFlipImage",
        "data_aug_conf": {**IDA, "reisze": [64]},
        "training": False,
    },
    *TRAIN[7:9],
    {
        "type": "MultiScaleFlipAug3D",
        "img_scale": (400, 64),
        "pts_scale_ratio": 1,
        "flip": False,
        "transforms": [
            {"type": "DefaultFormatBundle3D", "class_names": CLASSES, "with_label": False},
            {"type": "CustomCollect3D", "keys": ["img", *POSES]},
        ],
    },
]


@pytest.fixture
def build(synthetic_root, tmp_path):
    create_nuscenes_infos(str(synthetic_root), str(tmp_path), "t", "v1.0-mini", str(synthetic_root))

    def build(pipeline, **options):
        return CustomNuScenesDatasetV2(
            str(tmp_path / "t_infos_temporal_val.pkl"),
            frames=(-1, 0),
            pipeline=copy.deepcopy(pipeline),
            data_root=str(synthetic_root),
            classes=CLASSES,
            use_valid_flag=True,
            **options,
        )

    return build


def test_published_training_steps(build):
    mono_cfg = {"name": "nusc_trainval", "data_root": "data/nuscenes/", "min_box_visibility": 0.2}
    dataset = build(TRAIN, mono_cfg=mono_cfg)
    np.random.seed(0)
    batch = collate([dataset[2]], samples_per_gpu=1)
    assert set(batch) == {"img", "img_metas", "gt_bboxes_3d", "gt_labels_3d"}
    metas = batch["img_metas"].data[0][0]
    height, width, _ = metas[0]["ori_shape"][0]
    padded = tuple(-(-size // 32) * 32 for size in (height, width))
    assert batch["img"].data[0].shape == (1, 2, 6, 3, *padded)
    assert isinstance(batch["img"].data[0], torch.Tensor)
    assert metas[0]["bev_augmentation"].shape == (3, 3)
    objects = metas[0]["mono_objects"]
    assert objects
    for camera, targets in objects.items():
        np.testing.assert_allclose(targets["intrinsics"], metas[0]["cam2img"][camera][:3, :3])
        assert len(targets["bbox"]) == len(targets["label"]) > 0
        assert (targets["bbox"].min(axis=0) >= 0).all()
        assert (targets["bbox"][:, 2:] <= [width, height]).all()
        # The centre of an object projects near the box around its corners.
        uvd = targets["center"] @ targets["intrinsics"].T
        uv = uvd[:, :2] / uvd[:, 2:]
        whole = (uv > 1) & (uv < np.array([width, height]) - 1)
        slack = 0.5 * (targets["bbox"][:, 2:] - targets["bbox"][:, :2]) + 1
        low, high = targets["bbox"][:, :2] - slack, targets["bbox"][:, 2:] + slack
        assert ((uv >= low) & (uv <= high))[whole].all()


def test_published_test_steps(build):
    dataset = build(TEST, test_mode=True)
    batch = collate([dataset[1]], samples_per_gpu=1)
    (meta,) = batch["img_metas"][0].data[0]
    assert set(batch) == {"img", "img_metas"}
    assert batch["img"][0].data[0].shape == (1, 2, 6, 3, 64, 160)
    assert meta["sample_idx"] == dataset.data_infos[1]["token"]
    assert [m["sample_idx"] for m in meta["frames"].values()] == [
        dataset.data_infos[i]["token"] for i in (0, 1)
    ]


def test_objects_of_single_cameras_need_the_crop_step(build):
    without_crop = [step for step in TRAIN if step["type"] != "CropResizeFlipImage"]
    with pytest.raises(ValueError, match="CropResizeFlipImage"):
        build(without_crop, mono_cfg={})[0]


@pytest.mark.parametrize("options", [{"is_train": False}, {"tasks": {"box2d_on": False}}])
def test_unsupported_mapper_options(options):
    with pytest.raises(ValueError, match="DD3DMapper"):
        PIPELINES.build(dict(type="DD3DMapper", **options))

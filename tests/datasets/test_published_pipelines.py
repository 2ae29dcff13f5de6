"""The published order of the steps, on the images of the synthetic data set."""

import copy
import pickle

import numpy as np
import pytest
from mmcv import Config
from mmcv.parallel import collate
from mmdet3d.datasets import build_dataset

from projects.bevformer.datasets import TemporalNuScenesDataset
from projects.bevformer.datasets.pipelines.format import META_KEYS
from projects.bevformer.nuscenes.create_infos import create_nuscenes_infos
from projects.bevformer.nuscenes.spec import CLASSES

PC_RANGE = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]
LOAD = {"type": "LoadMultiViewImageFromFiles", "to_float32": True}
NORMALIZE = {
    "type": "NormalizeMultiviewImage",
    "mean": [103.53, 116.28, 123.675],
    "std": [1.0, 1.0, 1.0],
    "to_rgb": False,
}
SCALE_AND_PAD = [
    {"type": "RandomScaleImageMultiViewImage", "scales": [0.5]},
    {"type": "PadMultiViewImage", "size_divisor": 32},
]
TRAIN = [
    LOAD,
    {"type": "PhotoMetricDistortionMultiViewImage"},
    {
        "type": "LoadAnnotations3D",
        "with_bbox_3d": True,
        "with_label_3d": True,
        "with_attr_label": False,
    },
    {"type": "ObjectRangeFilter", "point_cloud_range": PC_RANGE},
    {"type": "ObjectNameFilter", "classes": CLASSES},
    NORMALIZE,
    *SCALE_AND_PAD,
    {"type": "DefaultFormatBundle3D", "class_names": CLASSES},
    {"type": "CustomCollect3D", "keys": ["gt_bboxes_3d", "gt_labels_3d", "img"]},
]
TEST = [
    LOAD,
    NORMALIZE,
    {
        "type": "MultiScaleFlipAug3D",
        "img_scale": (1600, 900),
        "pts_scale_ratio": 1,
        "flip": False,
        "transforms": [
            *SCALE_AND_PAD,
            {"type": "DefaultFormatBundle3D", "class_names": CLASSES, "with_label": False},
            {"type": "CustomCollect3D", "keys": ["img"]},
        ],
    },
]


@pytest.fixture
def build(synthetic_root, tmp_path):
    create_nuscenes_infos(str(synthetic_root), str(tmp_path), "t", "v1.0-mini", str(synthetic_root))

    def build(pipeline, **options):
        return TemporalNuScenesDataset(
            str(tmp_path / "t_infos_temporal_val.pkl"),
            pipeline=copy.deepcopy(pipeline),
            data_root=str(synthetic_root),
            classes=CLASSES,
            queue_length=3,
            use_valid_flag=True,
            **options,
        )

    return build


def padded(size):
    return -(-size // 32) * 32


def test_training_batch(build):
    dataset = build(TRAIN)
    raw = dataset.get_data_info(3)
    batch = collate([dataset[3], dataset[0]], samples_per_gpu=2)
    images = batch["img"].data[0]
    meta = batch["img_metas"].data[0][0][2]
    height, width, _ = meta["ori_shape"][0]
    assert images.shape == (2, 3, 6, 3, padded(height), padded(width))
    assert meta["img_shape"] == meta["pad_shape"] == [(padded(height), padded(width), 3)] * 6
    assert str(images.dtype) == "torch.float32"
    assert (images[:, :, :, :, height:] == 0).all()
    assert images[..., :height, :width].std() > 10
    np.testing.assert_allclose(meta["lidar2img"][2][:2] * 2, raw["lidar2img"][2][:2], rtol=1e-2)
    for meta_of_frame in batch["img_metas"].data[0][0].values():
        # MultiScaleFlipAug3D sets "flip", the queue "prev_bev_exists".
        expected = {*META_KEYS, "lidar2ego", "prev_bev_exists"} - {"flip"}
        assert set(meta_of_frame) == expected
    boxes = batch["gt_bboxes_3d"].data[0][0]
    assert len(boxes) == len(batch["gt_labels_3d"].data[0][0]) > 0
    assert boxes.tensor[:, :2].abs().max() < 51.2


def test_test_batch(build):
    dataset = build(TEST, test_mode=True)
    batch = collate([dataset[0]], samples_per_gpu=1)
    assert len(batch["img"]) == len(batch["img_metas"]) == 1  # one augmentation
    (meta,) = batch["img_metas"][0].data[0]
    height, width, _ = meta["ori_shape"][0]
    assert batch["img"][0].data[0].shape == (1, 6, 3, padded(height), padded(width))
    assert set(meta) == {*META_KEYS, "lidar2ego"}
    assert meta["flip"] is False
    assert meta["sample_idx"] == dataset.data_infos[0]["token"]


def test_nothing_is_edited(build):
    for dataset in (build(TRAIN), build(TEST, test_mode=True)):
        before = pickle.dumps(dataset.data_infos)
        first = dataset[0]
        dataset[1]
        assert pickle.dumps(dataset.data_infos) == before
        if dataset.test_mode:
            again = dataset[0]
            assert (first["img"][0].data == again["img"][0].data).all()
            np.testing.assert_equal(
                first["img_metas"][0].data["can_bus"], again["img_metas"][0].data["can_bus"]
            )


def test_build_dataset_of_mmdet3d_uses_our_steps(synthetic_root, tmp_path):
    """A published config, read with plain mmcv and built without this package's engine."""
    create_nuscenes_infos(str(synthetic_root), str(tmp_path), "t", "v1.0-mini", str(synthetic_root))
    wrapped = copy.deepcopy(TEST)
    wrapped[2]["transforms"].insert(0, wrapped.pop(0))
    for pipeline in (TRAIN, wrapped):
        dataset = {
            "type": "CustomNuScenesDataset",
            "ann_file": str(tmp_path / "t_infos_temporal_val.pkl"),
            "pipeline": copy.deepcopy(pipeline),
            "bev_size": (50, 50),
        }
        config = Config({"dataset": dataset})
        steps = build_dataset(config.dataset).pipeline.transforms
        wrappers = [step.transforms for step in steps if hasattr(step, "transforms")]
        steps += [step for wrapper in wrappers for step in wrapper.transforms]
        names = [type(step).__name__ for step in steps]
        assert "LoadCameraImages" in names
        assert "LoadMultiViewImageFromFiles" not in names
        assert "ObjectRangeFilter" not in names

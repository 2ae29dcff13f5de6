"""The uint8 path against the published pipeline steps, on the same draws."""

import cv2
import numpy as np
import pytest
import torch
from mmcv.parallel import collate

from projects.bevformer.datasets import pipelines  # noqa: F401
from projects.bevformer.model.image_preprocessor import ImagePreprocessor

from mmdet3d.datasets.pipelines import Compose  # isort: skip

CAFFE = {"mean": [103.53, 116.28, 123.675], "std": [1.0, 1.0, 1.0], "to_rgb": False}
TORCHVISION = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "to_rgb": True}
LOAD = {"type": "LoadCameraImages"}
HEIGHT, WIDTH, CAMERAS = 90, 161, 3


@pytest.fixture(scope="module")
def frame(tmp_path_factory):
    """What the dataset hands to a pipeline: pictures with saturated, dark and grey parts."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    filenames = []
    for camera in range(CAMERAS):
        coarse = random.integers(0, 256, (10, 18, 3), dtype=np.uint8)
        coarse[:2] = 255 * random.integers(0, 2, (2, 18, 3), dtype=np.uint8)
        coarse[3] = coarse[3, :, :1]
        picture = cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)
        filenames.append(str(folder / f"{camera}.png"))
        cv2.imwrite(filenames[-1], picture)
    matrix = np.array([[100.0, 0, 80, 0], [0, 90, 45, 0], [0, 0, 1, 0], [0, 0, 0, 1]])

    def make():
        return {
            "img_filename": filenames,
            "lidar2img": [matrix + camera for camera in range(CAMERAS)],
            "cam2img": [matrix.copy() for _ in range(CAMERAS)],
            "scene_token": "s",
        }

    return make


def published(frame, norm, scale, distort, seed):
    """Images and meta of the published order of the steps."""
    steps = [{**LOAD, "to_float32": True}, {"type": "NormalizeMultiviewImage", **norm}]
    if distort:
        steps.insert(1, {"type": "PhotoMetricDistortionMultiViewImage"})
    if scale != 1:
        steps.append({"type": "RandomScaleImageMultiViewImage", "scales": [scale]})
    steps += [
        {"type": "PadMultiViewImage", "size_divisor": 32},
        {"type": "DefaultFormatBundle3D", "class_names": [], "with_label": False},
        {"type": "CustomCollect3D", "keys": ["img"]},
    ]
    np.random.seed(seed)
    item = Compose(steps)(frame())
    return item["img"].data, item["img_metas"].data


def bytes_of(frame, seed, distort=True):
    """Images and meta of the pipeline that does not change the pixels."""
    steps = [
        LOAD,
        {"type": "ByteImageFormatBundle3D", "class_names": [], "with_label": False},
        {"type": "CustomCollect3D", "keys": ["img"]},
    ]
    if distort:
        steps.insert(1, {"type": "DrawColorDistortion"})
    np.random.seed(seed)
    item = Compose(steps)(frame())
    return item["img"].data, item["img_metas"].data


@pytest.mark.parametrize("norm", [CAFFE, TORCHVISION], ids=["caffe", "torchvision"])
@pytest.mark.parametrize("scale", [1.0, 0.5, 0.8])
@pytest.mark.parametrize("distort", [True, False])
def test_it_equals_the_published_pipeline(frame, norm, scale, distort):
    preprocessor = ImagePreprocessor(**norm, scale=scale, size_divisor=32)
    grey_level = 1 / min(norm["std"])
    for seed in range(12 if distort else 1):
        expected, expected_meta = published(frame, norm, scale, distort, seed)
        raw, meta = bytes_of(frame, seed, distort)
        images = preprocessor(raw[None], [meta])
        (meta,) = preprocessor.describe([meta], raw.shape[1:3])
        assert images.shape == (1, *expected.shape)
        assert images.dtype == torch.float32
        torch.testing.assert_close(images[0], expected, rtol=1e-4, atol=1e-2 * grey_level)
        for key in ("ori_shape", "img_shape", "pad_shape"):
            assert [tuple(shape) for shape in meta[key]] == expected_meta[key]
        for key in ("lidar2img", "cam2img"):
            np.testing.assert_allclose(meta[key], expected_meta[key], rtol=1e-12)
        np.testing.assert_equal(meta["img_norm_cfg"], expected_meta["img_norm_cfg"])
        assert meta["scene_token"] == "s"


def test_distortion_changes_images(frame):
    preprocessor = ImagePreprocessor(**CAFFE)
    (raw, meta), (_, plain) = bytes_of(frame, seed=3), bytes_of(frame, seed=3, distort=False)
    distorted, as_it_is = (preprocessor(raw[None], [m]) for m in (meta, plain))
    assert (distorted - as_it_is).abs().mean() > 5


def test_preprocessed_batch_equals_single_samples(frame):
    preprocessor = ImagePreprocessor(**TORCHVISION, scale=0.5, size_divisor=16)
    samples = [bytes_of(frame, seed) for seed in (1, 2)]
    together = preprocessor(torch.stack([raw for raw, _ in samples]), [meta for _, meta in samples])
    for (raw, meta), images in zip(samples, together):
        assert torch.equal(preprocessor(raw[None], [meta])[0], images)


def test_preprocessor_does_not_edit_its_input(frame):
    raw, meta = bytes_of(frame, seed=1)
    before, matrices = raw.clone(), [matrix.copy() for matrix in meta["lidar2img"]]
    preprocessor = ImagePreprocessor(**CAFFE, scale=0.5, size_divisor=32)
    preprocessor(raw[None], preprocessor.describe([meta], raw.shape[1:3]))
    assert torch.equal(raw, before)
    np.testing.assert_array_equal(meta["lidar2img"], matrices)
    assert meta["img_shape"] == [(HEIGHT, WIDTH, 3)] * CAMERAS


def test_preprocessor_adds_nothing_to_checkpoints():
    assert not ImagePreprocessor(**CAFFE).state_dict()


@pytest.mark.parametrize(
    "images", [torch.zeros(1, 2, 3, 8, 8), torch.zeros(1, 2, 3, 8, 8, dtype=torch.uint8)]
)
def test_preprocessor_refuses_other_images(images):
    with pytest.raises(ValueError, match="ByteImageFormatBundle3D.*data_preprocessor=None"):
        ImagePreprocessor(**CAFFE)(images, [{}])


def test_format_refuses_float_images(frame):
    steps = [
        {**LOAD, "to_float32": True},
        {"type": "ByteImageFormatBundle3D", "class_names": [], "with_label": False},
    ]
    with pytest.raises(ValueError, match="to_float32=False"):
        Compose(steps)(frame())


def test_unstacked_images_are_not_copied(frame):
    formatted = {"type": "ByteImageFormatBundle3D", "class_names": [], "with_label": False}
    loaded = Compose([LOAD])(frame())
    images = loaded["img"]
    item = Compose([{**formatted, "stack": False}])(dict(loaded))
    assert all(a is b for a, b in zip(item["img"].data, images))


def test_collating_copies_no_padding(frame):
    raw, _ = bytes_of(frame, seed=1)
    item = Compose(
        [LOAD, {"type": "ByteImageFormatBundle3D", "class_names": [], "with_label": False}]
    )(frame())
    batch = collate([{"img": item["img"]}] * 2, samples_per_gpu=2)
    assert batch["img"].data[0].shape == (2, CAMERAS, HEIGHT, WIDTH, 3)
    assert torch.equal(batch["img"].data[0][1], raw)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(mean=[1.0, 2.0]), r"mean \(\[1\.0, 2\.0\]\) and std must be three numbers each"),
        (dict(std=[1.0, 0.0, 1.0]), r"std \(\[1\.0, 0\.0, 1\.0\]\).* positive"),
        (dict(scale=0), r"scale \(0\)"),
        (dict(size_divisor=0), r"size_divisor \(0\)"),
    ],
)
def test_invalid_preprocessor_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ImagePreprocessor(**{**CAFFE, **options})

import logging
import sys
from copy import deepcopy

import cv2
import mmcv
import numpy as np
import pytest
import torch
from mmdet3d.core.bbox import LiDARInstance3DBoxes
from mmdet3d.datasets.builder import PIPELINES
from mmdet3d.datasets.pipelines import Compose

from projects.bevformer.datasets.pipelines import with_own_steps


def step(name, **options):
    return PIPELINES.build(dict(type=name, **options))


def frame(height=9, width=16, cameras=2, seed=0):
    random = np.random.RandomState(seed)
    matrix = np.array([[10.0, 0, 8, 0], [0, 10, 4.5, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    return {
        "img": [random.rand(height, width, 3).astype(np.float32) * 255 for _ in range(cameras)],
        "lidar2img": [matrix.copy() for _ in range(cameras)],
        "cam2img": [matrix.copy() for _ in range(cameras)],
    }


def assert_leaves_inputs_alone(pipeline_step):
    results = frame()
    before = [array for key in results for array in results[key]]
    copies = [array.copy() for array in before]
    pipeline_step(results)
    for array, copy in zip(before, copies):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("PhotoMetricDistortionMultiViewImage", {}),
        ("NormalizeMultiviewImage", {"mean": [1, 2, 3], "std": [1, 1, 1]}),
        ("RandomScaleImageMultiViewImage", {"scales": [0.5]}),
        ("PadMultiViewImage", {"size_divisor": 32}),
    ],
)
def test_inputs_are_not_edited(name, options):
    for seed in range(5):
        np.random.seed(seed)
        assert_leaves_inputs_alone(step(name, **options))


# Loading


def write_images(folder, shapes):
    paths = [str(folder / f"{i}.png") for i in range(len(shapes))]
    for i, (path, shape) in enumerate(zip(paths, shapes)):
        cv2.imwrite(path, np.full(shape, 10 * i, np.uint8))
    return paths


def test_load(tmp_path):
    paths = write_images(tmp_path, [(4, 6, 3)] * 3)
    results = step("LoadCameraImages", to_float32=True)({"img_filename": paths})
    assert [image.mean() for image in results["img"]] == [0, 10, 20]
    assert all(image.dtype == np.float32 and image.flags.c_contiguous for image in results["img"])
    assert results["filename"] == paths
    assert results["img_shape"] == results["ori_shape"] == [(4, 6, 3)] * 3


@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_load_names_the_broken_file(tmp_path, content):
    paths = write_images(tmp_path, [(4, 6, 3)] * 2)
    if content is None:
        with open(paths[1], "rb") as file:
            content = file.read()[:20]
    with open(paths[1], "wb") as file:
        file.write(content)
    with pytest.raises(ValueError, match="1.png (cannot be decoded|is empty)"):
        step("LoadCameraImages")({"img_filename": paths})


def test_load_names_a_damaged_jpeg(tmp_path):
    path = str(tmp_path / "0.jpg")
    cv2.imwrite(path, np.random.RandomState(0).randint(0, 255, (90, 160, 3), np.uint8))
    with open(path, "rb") as file:
        content = file.read()
    with open(path, "wb") as file:
        file.write(content[: len(content) // 2])
    with pytest.raises(ValueError, match="0.jpg is cut off"):
        step("LoadCameraImages")({"img_filename": [path]})


def test_load_refuses_images_that_do_not_fit_the_camera_matrix(tmp_path):
    paths = write_images(tmp_path, [(90, 160, 3)] * 2)
    fits = np.array([[100.0, 0, 82], [0, 100, 44], [0, 0, 1]])
    for halved, message in ((0, "160 x 90.*\\(164, 44\\)"), (1, "160 x 90.*\\(82, 90\\)")):
        too_large = fits.copy()
        too_large[halved, 2] = 164 if halved == 0 else 90
        results = {"img_filename": paths, "cam2img": [fits, too_large]}
        with pytest.raises(ValueError, match=f"1.png is {message}"):
            step("LoadCameraImages")(results)
    step("LoadCameraImages")({"img_filename": paths, "cam2img": [fits, fits]})


@pytest.mark.parametrize("recorded", [(200, 113), (161, 90), (90, 160)])
def test_load_refuses_images_of_another_size_than_recorded(tmp_path, recorded):
    paths = write_images(tmp_path, [(90, 160, 3)] * 2)
    results = {"img_filename": paths, "cam2img": [np.eye(3)] * 2, "image_size": [(160, 90)] * 2}
    step("LoadCameraImages")(dict(results))
    results["image_size"][1] = recorded
    with pytest.raises(
        ValueError, match="1.png is 160 x 90, but the info file says {} x {}:".format(*recorded)
    ):
        step("LoadCameraImages")(results)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("NormalizeMultiviewImage", dict(mean=1, std=[1] * 3), "must be three numbers each"),
        (
            "NormalizeMultiviewImage",
            dict(mean=[1, 2], std=[1] * 3),
            "must be three numbers each",
        ),
        ("NormalizeMultiviewImage", dict(mean=[1] * 3, std=[1, 0, 1]), "std positive"),
        (
            "RandomScaleImageMultiViewImage",
            dict(scales=[0]),
            r"scales is \[0\]: it must be positive",
        ),
        ("PadMultiViewImage", dict(size_divisor=-32), "size_divisor is -32: it must be at least 1"),
    ],
)
def test_numbers_that_make_no_image_are_refused_when_built(name, options, says):
    with pytest.raises(ValueError, match=says):
        step(name, **options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(backend="petrel", path_mapping={}), "disk.* or dict.*lmdb.*no other backend"),
        (dict(backend="disk", path_mapping={}), "no other backend or argument"),
        (dict(backend="lmdb", db_path="."), "package is missing: pip install lmdb"),
    ],
)
@pytest.mark.parametrize("name", ["LoadMultiViewImageFromFiles", "LoadAnnotations3D"])
def test_other_file_clients_are_refused_when_built(monkeypatch, name, options, says):
    monkeypatch.setitem(sys.modules, "lmdb", None)
    pipeline = [dict(type=name, file_client_args=options)]
    with pytest.raises(ValueError, match=says):
        Compose(with_own_steps(pipeline, logging.getLogger("steps")))


@pytest.fixture
def lmdb(tmp_path, monkeypatch):
    """A package lmdb that takes a folder of files, named by their keys, for a database."""
    source = """
import contextlib, pathlib
def open(path, readonly, lock, readahead):
    return Environment(pathlib.Path(path))
class Environment:
    def __init__(self, folder):
        self.folder = folder
    def begin(self, write):
        return contextlib.nullcontext(self)
    def get(self, key):
        path = self.folder / key.decode().replace("/", "+")
        return path.read_bytes() if path.is_file() else None
"""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "lmdb.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    yield tmp_path / "database"
    sys.modules.pop("lmdb", None)


@pytest.mark.parametrize("key", ["/root/samples/CAM/0.png", "samples/CAM/0.png"])
def test_load_from_lmdb(tmp_path, lmdb, key):
    lmdb.mkdir()
    (path,) = write_images(tmp_path, [(4, 6, 3)])
    options = dict(backend="lmdb", db_path=str(lmdb))
    load = step("LoadCameraImages", file_client_args=options)
    name = "/root/samples/CAM/0.png"
    with pytest.raises(FileNotFoundError, match=f"image {name} is not in {lmdb}, .*'samples/CAM"):
        load({"img_filename": [name]})
    record = lmdb / key.replace("/", "+")
    with open(path, "rb") as file:
        record.write_bytes(file.read())
    np.testing.assert_array_equal(
        load({"img_filename": [name]})["img"],
        step("LoadCameraImages")({"img_filename": [path]})["img"],
    )
    record.write_bytes(b"not an image")
    with pytest.raises(ValueError, match=f"image {name} in {lmdb} cannot be decoded"):
        load({"img_filename": [name]})
    with pytest.raises(ValueError, match="db_path '/gone' does not exist"):
        step("LoadCameraImages", file_client_args=dict(backend="lmdb", db_path="/gone"))


def test_disk_is_the_default_file_client(tmp_path):
    paths = write_images(tmp_path, [(4, 6, 3)])
    for options in (None, {}, dict(backend="disk")):
        step("LoadCameraImages", file_client_args=options)({"img_filename": paths})


def test_load_names_the_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.jpg.*data_root"):
        step("LoadCameraImages")({"img_filename": [str(tmp_path / "gone.jpg")]})


@pytest.mark.parametrize("shape", [(5, 6, 3), (4, 6)])
def test_load_names_the_image_of_another_shape(tmp_path, shape):
    paths = write_images(tmp_path, [(4, 6, 3), shape])
    with pytest.raises(ValueError, match="1.png is"):
        step("LoadCameraImages")({"img_filename": paths})


# Colour


def test_distortion_equals_the_published_step():
    """mmdet's single-image step on the same draws is the reference."""
    from mmdet.datasets.builder import PIPELINES as MMDET_PIPELINES

    ours = step("PhotoMetricDistortionMultiViewImage")
    reference = MMDET_PIPELINES.build({"type": "PhotoMetricDistortion"})
    for seed in range(20):
        images = frame(seed=seed)["img"]
        np.random.seed(seed)
        distorted = ours({"img": images})["img"]
        np.random.seed(seed)
        expected = [reference({"img": image})["img"] for image in images]
        for image, wanted in zip(distorted, expected):
            assert image.dtype == np.float32
            np.testing.assert_allclose(image, wanted, rtol=1e-4, atol=1e-2)


def test_distortion_draws_for_each_camera():
    image = frame()["img"][0]
    np.random.seed(0)
    distorted = step("PhotoMetricDistortionMultiViewImage")({"img": [image] * 6})["img"]
    assert len({array.tobytes() for array in distorted}) > 1


def test_distortion_needs_float32():
    with pytest.raises(ValueError, match="to_float32"):
        step("PhotoMetricDistortionMultiViewImage")({"img": [np.zeros((2, 2, 3), np.uint8)]})


@pytest.mark.parametrize("to_rgb", [False, True])
def test_normalize(to_rgb):
    image = np.full((2, 2, 3), (10, 20, 30), np.float32)
    results = step("NormalizeMultiviewImage", mean=[1, 2, 3], std=[1, 2, 4], to_rgb=to_rgb)(
        {"img": [image]}
    )
    channels = (30, 20, 10) if to_rgb else (10, 20, 30)
    expected = [(channels[0] - 1) / 1, (channels[1] - 2) / 2, (channels[2] - 3) / 4]
    np.testing.assert_allclose(results["img"][0][0, 0], expected, rtol=1e-6)
    assert results["img_norm_cfg"]["to_rgb"] is to_rgb


# Size


def test_scale_moves_pixels_with_the_images():
    results = step("RandomScaleImageMultiViewImage", scales=[0.5])(frame(height=8, width=16))
    assert results["img_shape"] == [(4, 8, 3)] * 2
    for key in ("lidar2img", "cam2img"):
        np.testing.assert_allclose(results[key][1][:2], [[5, 0, 4, 0], [0, 5, 2.25, 0]])
        np.testing.assert_array_equal(results[key][1][2:], np.eye(4)[2:])


def test_scale_uses_the_ratio_of_the_rounded_size():
    results = step("RandomScaleImageMultiViewImage", scales=[0.5])(frame(height=9, width=16))
    assert results["img"][0].shape == (4, 8, 3)
    np.testing.assert_allclose(results["lidar2img"][0][1], [0, 10 * 4 / 9, 2, 0])


@pytest.mark.parametrize(("scale", "size"), [(0.5, (450, 800)), (0.8, (720, 1280))])
def test_published_sizes(scale, size):
    results = step("RandomScaleImageMultiViewImage", scales=[scale])(frame(900, 1600, cameras=1))
    assert results["img"][0].shape[:2] == size
    np.testing.assert_allclose(results["lidar2img"][0][0, 0], 10 * scale, rtol=1e-12)


@pytest.mark.parametrize("scales", [[], [0.5, 0.6]])
def test_scale_takes_one_factor(scales):
    with pytest.raises(ValueError, match="one scale"):
        step("RandomScaleImageMultiViewImage", scales=scales)


@pytest.mark.parametrize("options", [{"size_divisor": 32}, {"size": (32, 32)}])
def test_pad_right_and_bottom(options):
    results = frame()
    image = results["img"][0]
    results = step("PadMultiViewImage", pad_val=7, **options)(results)
    padded = results["img"][0]
    np.testing.assert_array_equal(padded[:9, :16], image)
    assert (padded[9:] == 7).all()
    assert (padded[:, 16:] == 7).all()
    assert results["img_shape"] == results["pad_shape"] == [(32, 32, 3)] * 2
    assert results["ori_shape"] == [(9, 16, 3)] * 2


@pytest.mark.parametrize("options", [{}, {"size": (32, 32), "size_divisor": 32}])
def test_pad_takes_one_of_two(options):
    with pytest.raises(ValueError, match="either"):
        step("PadMultiViewImage", **options)


def test_pad_refuses_larger_images():
    with pytest.raises(ValueError, match=r"\(9, 16\)"):
        step("PadMultiViewImage", size=(8, 32))(frame())


# Objects and collecting


def test_object_range_filter():
    boxes = torch.zeros(3, 9)
    boxes[:, 3:6] = 1
    boxes[:, 0] = torch.tensor([0.0, 60.0, -50.0])
    boxes[:, 2] = 100.0  # the range is that seen from above
    boxes[:, 6] = 4.0
    labels = np.array([4, 5, 6])
    given = LiDARInstance3DBoxes(boxes, box_dim=9)
    results = {"gt_bboxes_3d": given, "gt_labels_3d": labels}
    results = step("FilterObjectsByRange", point_cloud_range=[-51.2, -51.2, -5, 51.2, 51.2, 3])(
        results
    )
    assert results["gt_labels_3d"].tolist() == [4, 6]
    np.testing.assert_allclose(results["gt_bboxes_3d"].tensor[:, 6], 4.0 - 2 * np.pi, rtol=1e-6)
    assert (given.tensor[:, 6] == 4.0).all()


def test_object_range_filter_without_objects():
    results = {
        "gt_bboxes_3d": LiDARInstance3DBoxes(torch.zeros(0, 9), box_dim=9),
        "gt_labels_3d": np.zeros(0, np.int64),
    }
    results = step("FilterObjectsByRange", point_cloud_range=[-1, -1, -1, 1, 1, 1])(results)
    assert len(results["gt_bboxes_3d"]) == len(results["gt_labels_3d"]) == 0


def test_collect_keeps_the_temporal_keys():
    results = {"img": 1, "can_bus": 2, "scene_token": 3, "prev_idx": 4, "something": 5}
    collected = step("CustomCollect3D", keys=["img"])(results)
    assert collected["img"] == 1
    assert collected["img_metas"].data == {"can_bus": 2, "scene_token": 3, "prev_idx": 4}


def test_steps_of_mmdet3d_stay_registered():
    for name in ("LoadMultiViewImageFromFiles", "ObjectRangeFilter"):
        assert PIPELINES.get(name).__module__.startswith("mmdet3d.")


PUBLISHED = [
    {"type": "LoadMultiViewImageFromFiles", "to_float32": True},
    {"type": "MultiScaleFlipAug3D", "transforms": [{"type": "ObjectRangeFilter", "x": 1}]},
]


def test_published_steps_are_replaced_also_in_wrappers(caplog):
    before = deepcopy(PUBLISHED)
    with caplog.at_level("INFO"):
        ours = with_own_steps(PUBLISHED, logging.getLogger("test"))
    assert before == PUBLISHED
    assert ours == [
        {"type": "LoadCameraImages", "to_float32": True},
        {"type": "MultiScaleFlipAug3D", "transforms": [{"type": "FilterObjectsByRange", "x": 1}]},
    ]
    (record,) = caplog.records
    assert "LoadMultiViewImageFromFiles -> LoadCameraImages" in record.getMessage()


def test_steps_registered_by_others_are_kept(monkeypatch):
    monkeypatch.setitem(PIPELINES.module_dict, "ObjectRangeFilter", object)
    steps = [{"type": "ObjectRangeFilter"}]
    assert with_own_steps(steps, logging.getLogger("test")) == steps


def test_imread_is_bgr(tmp_path):
    """The published means are in BGR order."""
    path = str(tmp_path / "blue.png")
    mmcv.imwrite(np.full((2, 2, 3), (255, 0, 0), np.uint8), path)
    image = step("LoadCameraImages")({"img_filename": [path]})["img"][0]
    assert image[0, 0].tolist() == [255, 0, 0]

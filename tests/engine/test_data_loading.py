"""Training batches of the synthetic data set, through the loader that `train` uses."""

import pickle

import mmcv
import numpy as np
import pytest
import torch
from dummy_task import DummyDataset
from mmcv import Config

from projects.bevformer import compat  # noqa: F401
from projects.bevformer.engine import sample_loader
from projects.bevformer.engine.data_loading import (
    build_test_dataset,
    build_test_loader,
    build_train_dataset,
    build_train_loader,
)
from projects.bevformer.nuscenes.create_infos import create_nuscenes_infos
from projects.bevformer.nuscenes.spec import CLASSES

from mmdet3d.datasets.builder import PIPELINES  # isort: skip

PIPELINE = [
    dict(type="LoadMultiViewImageFromFiles"),
    dict(type="DrawColorDistortion"),
    dict(type="LoadAnnotations3D", with_bbox_3d=True, with_label_3d=True),
    dict(type="ObjectNameFilter", classes=CLASSES),
    dict(type="ByteImageFormatBundle3D", class_names=CLASSES, stack=False),
    dict(type="CustomCollect3D", keys=["gt_bboxes_3d", "gt_labels_3d", "img"]),
]


@pytest.fixture(scope="module")
def ann_file(synthetic_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("infos")
    root = str(synthetic_root)
    create_nuscenes_infos(root, str(folder), "t", "v1.0-mini", root)
    return str(folder / "t_infos_temporal_train.pkl")


@pytest.fixture
def loader(ann_file, synthetic_root):
    """Factory of training loaders."""

    def build(workers=0, seed=3, samples=2, pin_memory=False, **options):
        train = dict(
            type="TemporalNuScenesDataset",
            data_root=f"{synthetic_root}/",
            pipeline=PIPELINE,
            classes=CLASSES,
            queue_length=3,
            **{"ann_file": ann_file, **options},
        )
        cfg = Config({"data": dict(samples_per_gpu=samples, workers_per_gpu=workers, train=train)})
        return build_train_loader(cfg, build_train_dataset(cfg), seed, pin_memory)

    return build


def epoch_of(loader, epoch):
    """What the batches of an epoch hold, in plain values."""
    loader.sampler.set_epoch(epoch)
    return [plain(batch) for batch in loader]


def plain(batch):
    metas = batch["img_metas"].data[0]
    return {
        "frames": [[meta["sample_idx"] for meta in queue.values()] for queue in metas],
        "pixels": batch["img"].data[0].sum(dim=(-1, -2, -3)).tolist(),
        "draws": [
            {name: values.tolist() for name, values in meta["color_distortion"].items()}
            for queue in metas
            for meta in queue.values()
        ],
        "boxes": [boxes.tensor.tolist() for boxes in batch["gt_bboxes_3d"].data[0]],
    }


def test_batches_do_not_depend_on_the_workers(loader):
    expected = [epoch_of(loader(0), epoch) for epoch in (0, 1)]
    assert expected[0] != expected[1]
    assert expected[0] != epoch_of(loader(0, seed=4), 0)
    for workers in (1, 2):
        several = loader(workers)
        assert [epoch_of(several, epoch) for epoch in (0, 1)] == expected


def test_batches_do_not_depend_on_earlier_random_numbers(loader):
    expected = epoch_of(loader(), 1)
    np.random.seed(99)
    torch.manual_seed(99)
    resumed = loader()  # a run that goes on after its first epoch
    assert epoch_of(resumed, 1) == expected
    assert epoch_of(resumed, 1) == expected


def test_resume_within_an_epoch_reads_the_remaining_batches(loader):
    whole, rest = loader(samples=1), loader(samples=1)
    expected = epoch_of(whole, 0)
    rest.sampler.start_at(0, 3)
    assert [plain(batch) for batch in rest] == expected[3:]


def test_frames_drawn_in_place_of_empty_ones_depend_on_the_key_too(loader, ann_file, tmp_path):
    with open(ann_file, "rb") as file:
        content = pickle.load(file)
    for info in content["infos"][1:3]:
        info["gt_names"][:] = "animal"
    path = tmp_path / "infos.pkl"
    path.write_bytes(pickle.dumps(content))
    empty = {info["token"] for info in content["infos"][1:3]}
    found = []
    for workers in (0, 2):
        loader_of_path = loader(workers, samples=1, ann_file=str(path))
        found.append([epoch_of(loader_of_path, epoch) for epoch in range(3)])
    assert found[0] == found[1]
    assert not {batch["frames"][0][-1] for epoch in found[0] for batch in epoch} & empty


def test_queues_of_bytes(loader):
    (batch,) = list(loader(samples=4))
    assert batch["img"].data[0].shape == (4, 3, 6, 225, 400, 3)
    assert batch["img"].data[0].dtype == torch.uint8
    (one,) = list(loader(samples=4, filter_empty_gt=False))
    assert torch.equal(one["img"].data[0], batch["img"].data[0])


@pytest.fixture
def pinned(monkeypatch):
    """Pretend CUDA to the DataLoader; returns the addresses of all tensors that were pinned since."""
    addresses = set()

    def pin_memory(tensor):
        copy = tensor.clone()
        addresses.add(copy.data_ptr())
        return copy

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    if hasattr(torch, "accelerator"):  # torch >= 2.6 asks it instead
        cuda = torch.device("cuda")
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: cuda)
        monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
        monkeypatch.setattr(torch.accelerator, "set_device_index", lambda index: None)
    return addresses


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_pinned_for_a_gpu(loader, pinned, workers):
    plain_batches = epoch_of(loader(workers), 0)
    assert pinned == set()
    batches = list(loader(workers, pin_memory=True))
    assert [plain(batch) for batch in batches] == plain_batches
    for batch in batches:
        assert batch["img"].data[0].data_ptr() in pinned
        labels = batch["gt_labels_3d"].data[0]
        assert {tensor.data_ptr() for tensor in labels if len(tensor)} <= pinned
        # What stays on the CPU is not copied: boxes and metas.
        assert batch["gt_bboxes_3d"].cpu_only
        boxes = {boxes.tensor.data_ptr() for boxes in batch["gt_bboxes_3d"].data[0]}
        assert not boxes & pinned


def test_test_frames_are_pinned_for_a_gpu(pinned):
    dataset = DummyDataset(test_mode=True)
    for pin_memory in (False, True):
        for batch in build_test_loader(dataset, workers=0, pin_memory=pin_memory):
            assert (batch["img"][0].data[0].data_ptr() in pinned) == pin_memory


# Steps of a user's own


class OwnStep:
    """Changes a frame by `change`, now and then or always."""

    geometry_follows = False

    def __init__(self, change, probability=1.0):
        self.change, self.probability = change, probability

    def __call__(self, results):
        if np.random.rand() < self.probability:
            getattr(self, self.change)(results)
        return results

    def colours(self, results):
        results["img"] = [255 - image // 2 for image in results["img"]]

    def hidden_parts(self, results):
        results["img"] = [image.copy() for image in results["img"]]
        for image in results["img"]:
            image[::4, ::4] = image[40:110, 60:200] = 0

    def noise(self, results):
        noise = np.random.randint(0, 60, results["img"][0].shape, dtype=np.uint8)
        results["img"] = [image // 2 + noise for image in results["img"]]

    def padding(self, results):
        results["img"] = [np.pad(image, ((0, 7), (0, 3), (0, 0))) for image in results["img"]]
        results["img_shape"] = [image.shape for image in results["img"]]

    def padding_unnoted(self, results):
        results["img"] = [np.pad(image, ((0, 7), (0, 3), (0, 0))) for image in results["img"]]

    def fewer_boxes(self, results):
        results["gt_bboxes_3d"] = results["gt_bboxes_3d"][:1]

    def mirrored_boxes(self, results):
        results["gt_bboxes_3d"] = results["gt_bboxes_3d"].clone()
        results["gt_bboxes_3d"].flip("horizontal")

    def turned_boxes(self, results):
        results["gt_bboxes_3d"] = results["gt_bboxes_3d"].clone()
        results["gt_bboxes_3d"].tensor[:, 6] *= -1

    def smaller_images(self, results):
        results["img"] = [image[::2, ::2] for image in results["img"]]

    def mirrored_images(self, results):
        results["img"] = [image[:, ::-1] // 2 for image in results["img"]]

    def shifted_images(self, results):
        results["img"] = [np.roll(image, 15, axis=1) for image in results["img"]]

    def zoomed_images(self, results):
        images, (height, width) = results["img"], results["img"][0].shape[:2]
        y, x = height // 10, width // 10
        cut = [image[y:-y, x:-x] for image in images]
        results["img"] = [mmcv.imresize(image, (width, height)) for image in cut]

    def one_shifted_image(self, results):
        results["img"] = [np.roll(results["img"][0], 15, axis=0), *results["img"][1:]]

    def moved_cameras(self, results):
        results["lidar2img"] = [np.diag([2.0, 2, 1, 1]) @ camera for camera in results["lidar2img"]]

    def scaled(self, results, factor=0.5):
        self.smaller_images(results)
        scaling = np.diag([factor, factor, 1, 1])
        results["lidar2img"] = [scaling @ camera for camera in results["lidar2img"]]
        results["img_shape"] = [image.shape for image in results["img"]]

    def wrongly_scaled(self, results):
        self.scaled(results, 2.0)


@PIPELINES.register_module()
class TriedStep(OwnStep):
    pass


@PIPELINES.register_module()
class TrustedStep(OwnStep):
    geometry_follows = True


def own(change, name="TriedStep", **options):
    return [*PIPELINE[:4], dict(type=name, change=change, **options), *PIPELINE[4:]]


def train_config(ann_file, root, pipeline):
    inner = dict(
        type="TemporalNuScenesDataset",
        data_root=f"{root}/",
        ann_file=ann_file,
        pipeline=pipeline,
        classes=CLASSES,
        queue_length=1,
    )
    return Config({"data": {"train": dict(type="RepeatDataset", times=1, dataset=inner)}})


@pytest.mark.parametrize(
    "change", ["colours", "hidden_parts", "noise", "padding", "fewer_boxes", "scaled"]
)
def test_own_steps_that_keep_everything_in_place_are_taken(ann_file, synthetic_root, change):
    before = np.random.get_state()[1].copy()
    build_train_dataset(train_config(ann_file, synthetic_root, own(change)))
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_training_in_test_mode_is_refused(ann_file, synthetic_root):
    cfg = train_config(ann_file, synthetic_root, PIPELINE)
    cfg.data.train.dataset.test_mode = True
    with pytest.raises(ValueError, match="^data.train.dataset.test_mode is True"):
        build_train_dataset(cfg)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("mirrored_boxes", "moves, turns or adds boxes"),
        ("turned_boxes", "moves, turns or adds boxes"),
        ("smaller_images", "moves images or cameras"),
        ("mirrored_images", "moves images or cameras"),
        ("shifted_images", "moves images or cameras"),
        ("zoomed_images", "moves images or cameras"),
        ("one_shifted_image", "moves images or cameras"),
        ("moved_cameras", "moves images or cameras"),
        ("wrongly_scaled", "moves images or cameras"),
    ],
)
def test_own_steps_that_move_one_thing_alone_are_refused(ann_file, synthetic_root, change, what):
    pipeline = own(change, probability=0.5)
    with pytest.raises(ValueError, match=f"^data.train: pipeline step TriedStep {what}"):
        build_train_dataset(train_config(ann_file, synthetic_root, pipeline))
    build_train_dataset(train_config(ann_file, synthetic_root, own(change, "TrustedStep")))


def test_own_steps_that_do_not_note_the_size_are_refused(ann_file, synthetic_root):
    pipeline = own("padding_unnoted")
    with pytest.raises(
        ValueError, match=r"images are \(232, 403\), but img_shape.* is \(225, 400\)"
    ):
        build_train_dataset(train_config(ann_file, synthetic_root, pipeline))


def test_own_steps_of_test_pipelines_are_tried(ann_file, synthetic_root):
    steps = [PIPELINE[0], dict(type="TriedStep", change="mirrored_images")]
    inner = dict(type="MultiScaleFlipAug3D", img_scale=(1, 1), pts_scale_ratio=1, transforms=steps)
    cfg = train_config(ann_file, synthetic_root, [inner])
    cfg.data.test = cfg.data.train.dataset
    with pytest.raises(ValueError, match="^data.test: pipeline step TriedStep moves"):
        build_test_dataset(cfg)


def test_workers_are_forked_when_the_threads_of_the_process_group_have_settled(loader, monkeypatch):
    waits = []
    monkeypatch.setattr(sample_loader, "is_distributed", lambda: True)
    monkeypatch.setattr(sample_loader.time, "sleep", waits.append)
    iter(loader(0))
    assert waits == []
    iter(loader(1))
    assert waits == [1]

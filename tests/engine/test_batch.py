import torch
from dummy_task import DummyDataset
from mmcv.parallel import collate

from projects.bevformer.engine import batch as module
from projects.bevformer.engine.batch import collate_samples, to_device, train_sample_tokens
from projects.bevformer.engine.batch import test_sample_tokens as tokens_of_test_batch


def test_training_batches_are_unwrapped():
    dataset = DummyDataset()
    batch = to_device(collate([dataset[1], dataset[4]], samples_per_gpu=2), torch.device("cpu"))
    assert batch["img"].shape == (2, 2, 1, 3, 4, 4)
    assert [len(queue) for queue in batch["img_metas"]] == [2, 2]
    assert [labels.tolist() for labels in batch["gt_labels_3d"]] == [[1], [4]]
    assert len(batch["gt_bboxes_3d"]) == 2
    assert train_sample_tokens(batch["img_metas"]) == ["s0f1", "s1f1"]


def test_test_batches_keep_one_list_entry_per_augmentation():
    dataset = DummyDataset(test_mode=True)
    batch = to_device(collate([dataset[3]], samples_per_gpu=1), torch.device("cpu"))
    assert len(batch["img"]) == 1
    assert batch["img"][0].shape == (1, 1, 3, 4, 4)
    assert tokens_of_test_batch(batch["img_metas"]) == ["s1f0"]


def test_cpu_only_containers_are_not_moved():
    dataset = DummyDataset()
    batch = to_device(collate([dataset[0]], samples_per_gpu=1), torch.device("meta"))
    assert batch["img"].device.type == "meta"
    assert batch["gt_labels_3d"][0].device.type == "meta"
    assert batch["gt_bboxes_3d"][0].tensor.device.type == "cpu"


def test_every_tensor_is_uploaded(monkeypatch):
    uploaded = []
    monkeypatch.setattr(module, "upload", lambda tensor, device: uploaded.append(device) or tensor)
    dataset = DummyDataset()
    to_device(collate_samples([dataset[0], dataset[1]]), torch.device("cuda"))
    assert uploaded == [torch.device("cuda")] * 3  # images, and labels of two samples


def test_collate_equals_mmcv():
    dataset = DummyDataset()
    samples = [dataset[0], dataset[1]]
    expected, batch = collate(samples, samples_per_gpu=2), collate_samples(samples)
    for key, container in expected.items():
        assert (batch[key].cpu_only, batch[key].stack) == (container.cpu_only, container.stack)
    assert torch.equal(batch["img"].data[0], expected["img"].data[0])

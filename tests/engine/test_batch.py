import torch
from dummy_task import DummyDataset
from mmcv.parallel import collate

from projects.bevformer.engine.batch import test_sample_tokens as tokens_of_test_batch
from projects.bevformer.engine.batch import to_device, train_sample_tokens


def test_training_batches_lose_their_containers():
    dataset = DummyDataset()
    batch = to_device(collate([dataset[1], dataset[4]], samples_per_gpu=2), torch.device("cpu"))
    assert batch["img"].shape == (2, 2, 1, 3, 4, 4)
    assert [len(queue) for queue in batch["img_metas"]] == [2, 2]
    assert [labels.tolist() for labels in batch["gt_labels_3d"]] == [[1], [4]]
    assert len(batch["gt_bboxes_3d"]) == 2
    assert train_sample_tokens(batch["img_metas"]) == ["s0f1", "s1f1"]


def test_test_batches_keep_one_list_entry_an_augmentation():
    dataset = DummyDataset(test_mode=True)
    batch = to_device(collate([dataset[3]], samples_per_gpu=1), torch.device("cpu"))
    assert len(batch["img"]) == 1
    assert batch["img"][0].shape == (1, 1, 3, 4, 4)
    assert tokens_of_test_batch(batch["img_metas"]) == ["s1f0"]


def test_contents_of_cpu_only_containers_stay():
    dataset = DummyDataset()
    batch = to_device(collate([dataset[0]], samples_per_gpu=1), torch.device("meta"))
    assert batch["img"].device.type == "meta"
    assert batch["gt_labels_3d"][0].device.type == "meta"
    assert batch["gt_bboxes_3d"][0].tensor.device.type == "cpu"

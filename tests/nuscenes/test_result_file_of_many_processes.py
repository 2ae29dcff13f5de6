"""The result file is equal byte for byte for any number of processes, and so are other heads' results."""

import json
import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from mmcv.parallel import DataContainer
from mmdet3d.core.bbox import LiDARInstance3DBoxes
from torch import nn

from projects.bevformer.datasets import TemporalNuScenesDataset
from projects.bevformer.engine.distributed import shut_down
from projects.bevformer.engine.evaluate import predict
from projects.bevformer.nuscenes.spec import CLASSES

CPU = torch.device("cpu")


class RememberingDetector(nn.Module):
    """Boxes that depend on all frames of the scene so far, and only on them."""

    def reset_memory(self):
        self.memory = None

    def forward(self, img, img_metas, return_loss):
        (meta,) = img_metas[0]
        scene, seen = self.memory or (None, 0)
        seen = img[0].mean().item() + (0.37 * seen if meta["scene_token"] == scene else 0)
        self.memory = (meta["scene_token"], seen)
        generator = torch.Generator().manual_seed(int(seen * 1e6))
        boxes = torch.rand((5, 9), generator=generator) * 10 + 0.1
        return [
            {
                "pts_bbox": {
                    "boxes_3d": LiDARInstance3DBoxes(boxes, box_dim=9),
                    "scores_3d": torch.rand(5, generator=generator),
                    "labels_3d": torch.randint(10, (5,), generator=generator),
                },
                "map_head": {"of": meta["sample_idx"], "mask": np.full((2, 2), seen)},
            }
        ]


def without_images(frame):
    """A pipeline of one step; the image says which frame it is. Lists: one entry an augmentation."""
    image = torch.full((6, 3, 2, 2), float(frame["frame_idx"] + int(frame["scene_token"][-1])))
    meta = {key: frame[key] for key in ("sample_idx", "scene_token")}
    return {
        "img": [DataContainer(image, stack=True)],
        "img_metas": [DataContainer(meta, cpu_only=True)],
    }


@pytest.fixture
def dataset(make_info, write_infos):
    """Five scenes of one to five frames."""
    infos = [
        make_info(f"scene_{scene}", frame, start_us=scene * 10_000_000)
        for scene in range(5)
        for frame in range(scene + 1)
    ]
    return TemporalNuScenesDataset(
        write_infos(infos), pipeline=[without_images], classes=CLASSES, test_mode=True
    )


def run_rank(rank, processes, dataset, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting_point", rank=rank, world_size=processes
    )
    results = predict(RememberingDetector(), dataset, CPU, workers=0)
    if rank == 0:
        dataset.format_results(results, str(folder))
        maps = [result["map_head"] for result in results]
        (Path(folder) / "maps.pkl").write_bytes(pickle.dumps(maps))
    shut_down()


@pytest.mark.parametrize("processes", [2, 4])
def test_same_bytes(dataset, tmp_path, processes):
    alone = predict(RememberingDetector(), dataset, CPU, workers=0)
    dataset.format_results(alone, str(tmp_path / "one"))
    many = tmp_path / "many"
    many.mkdir()
    context = multiprocessing.get_context("fork")  # spawned ones would import for ten seconds each
    ranks = [
        context.Process(target=run_rank, args=(rank, processes, dataset, many), daemon=True)
        for rank in range(processes)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    assert [rank.exitcode for rank in ranks] == [0] * processes
    files = [folder / "pts_bbox" / "results_nusc.json" for folder in (tmp_path / "one", many)]
    assert files[0].read_bytes() == files[1].read_bytes()
    results = json.loads(files[0].read_text())["results"]
    assert list(results) == [info["token"] for info in dataset.data_infos]
    assert all(len(boxes) == 5 for boxes in results.values())
    maps = pickle.loads((many / "maps.pkl").read_bytes())
    assert [found["of"] for found in maps] == list(results)
    np.testing.assert_equal(maps, [result["map_head"] for result in alone])

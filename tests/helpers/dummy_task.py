"""A detector and a data set with the real interfaces and almost no work, for tests of the engine."""

import contextlib
import json
from pathlib import Path

import numpy as np
import torch
from mmcv.parallel import DataContainer
from mmcv.runner import BaseModule
from mmdet.models import DETECTORS
from torch import nn

from projects.bevformer import compat  # noqa: F401
from projects.bevformer.datasets.evaluators import DatasetEvaluator
from projects.bevformer.nuscenes.evaluation.evaluator import NuScenesEvaluator
from projects.bevformer.nuscenes.spec import CAMERAS as CAMERA_NAMES
from projects.bevformer.nuscenes.spec import CLASSES

from mmdet3d.core.bbox import LiDARInstance3DBoxes  # isort: skip
from mmdet3d.datasets import DATASETS  # isort: skip

REPOSITORY = Path(__file__).resolve().parents[2]
FRAMES, CAMERAS, SIZE = 2, 1, 4


@DATASETS.register_module()
class DummyDataset:
    """Scenes of random images.

    Args:
        frames_per_scene: length of each scene.
        nan_sample: token of the sample whose training images are NaN.
    """

    CLASSES = list(CLASSES)
    cameras = CAMERA_NAMES
    data_root, version, ann_file = ".", "v1.0-mini", "dummy.pkl"

    def __init__(self, frames_per_scene=(3, 2, 4), test_mode=False, nan_sample=None):
        self.test_mode = test_mode
        self.nan_sample = nan_sample
        self.data_infos = [
            {
                "token": f"s{scene}f{frame}",
                "scene_token": f"s{scene}",
                "timestamp": 10 * scene + frame,
            }
            for scene, frames in enumerate(frames_per_scene)
            for frame in range(frames)
        ]

    def info_with_paths(self, index):
        return self.data_infos[index]

    def ground_truth(self, index):
        return None

    def __len__(self):
        return len(self.data_infos)

    def __getitem__(self, index):
        info = self.data_infos[index]
        images = np.random.RandomState(index).rand(FRAMES, CAMERAS, 3, SIZE, SIZE)
        images = torch.tensor(images, dtype=torch.float32)
        meta = {"sample_idx": info["token"], "scene_token": info["scene_token"]}
        if self.test_mode:
            return {
                "img": [DataContainer(images[-1], stack=True)],
                "img_metas": [DataContainer(meta, cpu_only=True)],
            }
        if info["token"] == self.nan_sample:
            images = images * float("nan")
        queue = {frame: {**meta, "prev_bev_exists": frame > 0} for frame in range(FRAMES)}
        boxes = LiDARInstance3DBoxes(torch.zeros(1, 9), box_dim=9)
        return {
            "img": DataContainer(images, stack=True),
            "img_metas": DataContainer(queue, cpu_only=True),
            "gt_bboxes_3d": DataContainer(boxes, cpu_only=True),
            "gt_labels_3d": DataContainer(torch.tensor([index % 10])),
        }

    @property
    def evaluator(self):
        return DatasetEvaluator({"pts_bbox": DummyEvaluator(self)}, len(self), None)


class DummyEvaluator(NuScenesEvaluator):
    """Scores by the mean of `scores_3d`, in files of the real names."""

    def __init__(self, dataset):
        self.tokens = [info["token"] for info in dataset.data_infos]
        self.config = None

    def check(self, devkit=False):
        """Every split can be scored."""

    def write(self, results, folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
        path = Path(folder) / "results_nusc.json"
        scores = [result["scores_3d"].tolist() for result in results]
        path.write_text(json.dumps({"results": dict(zip(self.tokens, scores))}))
        return str(path)

    def score(self, results, logger, folder=None, devkit=False):
        return self.score_file(self.write(results, folder), logger, folder, devkit)

    def score_file(self, path, logger, folder, devkit=False):
        scores = json.loads(Path(path).read_text())["results"]
        return summary(float(np.mean(list(scores.values()))))


def summary(nds):
    """A `metrics_summary.json` of the devkit with made-up figures."""
    errors = dict.fromkeys(["trans_err", "scale_err", "orient_err", "vel_err", "attr_err"], 0.5)
    return {
        "mean_ap": 0.25,
        "nd_score": nds,
        "tp_errors": errors,
        "mean_dist_aps": {name: 0.25 for name in CLASSES},
        "label_tp_errors": {
            name: {**errors, "vel_err": float("nan")} if name == "traffic_cone" else errors
            for name in CLASSES
        },
    }


@DETECTORS.register_module()
class DummyDetector(BaseModule):
    """A linear model; at test time its score depends on all earlier frames of the scene."""

    def __init__(self, width=4, pts_bbox_head=None, train_cfg=None, test_cfg=None, pretrained=None):
        super().__init__()
        self.img_backbone = nn.Linear(3, width)
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 1)
        self.register_buffer("grid", torch.arange(4.0), persistent=False)
        self.autocast_dtype = None
        self.seen_dtypes = []
        self.memory = None

    def reset_memory(self):
        self.memory = None

    def forward(self, img, img_metas, return_loss=True, gt_bboxes_3d=None, gt_labels_3d=None):
        device = (img if return_loss else img[0]).device.type
        dtype = self.autocast_dtype
        with torch.autocast(device, dtype=dtype) if dtype else contextlib.nullcontext():
            if not return_loss:
                return self._test(img[0], img_metas[0])
            output = self._score(img.mean((1, 2)))
            self.seen_dtypes.append(output.dtype)
            target = torch.stack([labels.float().mean() for labels in gt_labels_3d])
            return {
                "loss_cls": (output.float() - target).abs(),
                "d0.loss_bbox": [output.float().pow(2).mean()],
                "boxes": torch.tensor(float(len(gt_bboxes_3d)), device=img.device),
            }

    def _score(self, images):
        pixels = images.flatten(2).transpose(1, 2)  # (B, H*W, 3)
        features = self.img_backbone(pixels)
        features = self.norm(features.flatten(0, 1)).view_as(features)
        return self.head(features).mean((1, 2))  # (B,)

    def _test(self, img, metas):
        assert not self.training
        assert not torch.is_grad_enabled()
        score = self._score(img.mean(1)).float()
        scene = metas[0]["scene_token"]
        if self.memory is not None and self.memory[0] == scene:
            score = score + 0.5 * self.memory[1]
        self.memory = (scene, score)
        return [{"pts_bbox": {"scores_3d": score.cpu()}}]

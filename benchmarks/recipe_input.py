"""Input for the detector of any recipe without a data set: shapes, metas and boxes of nuScenes.

The images have no contents; use them where contents do not matter. Needs no GPU.
"""

import logging

import numpy as np
import torch
from common import NUSCENES_VISIBLE

from projects.bevformer import plugin  # noqa: F401
from projects.bevformer.datasets.pipelines.color import DrawColorDistortion
from projects.bevformer.engine.precision import set_compute_format
from projects.bevformer.geometry.can_bus import CAN_SIZE

from mmdet3d.core.bbox import LiDARInstance3DBoxes  # isort: skip
from mmdet3d.models import build_model  # isort: skip

CAMERAS = 6
NUSCENES_IMAGE_HW = (900, 1600)
SYNTHETIC_IMAGE_HW = (450, 800)
GROUND_TRUTHS = 40  # about the mean number of boxes in a nuScenes key frame


def nuscenes_visible(bev_h, bev_w):
    """Numbers of visible queries of six cameras for a BEV of any size; other sizes are scaled."""
    if bev_h == bev_w and bev_h in NUSCENES_VISIBLE:
        return NUSCENES_VISIBLE[bev_h]
    return tuple(round(count * bev_h * bev_w / 200**2) for count in NUSCENES_VISIBLE[200])


def source_hw(cfg):
    """Height and width of the pictures of the recipe's data set."""
    synthetic = "synthetic" in str(cfg.data.train.get("ann_file"))
    return SYNTHETIC_IMAGE_HW if synthetic else NUSCENES_IMAGE_HW


def preprocessor_steps(cfg):
    """Pipeline steps that change the size of the images as the model's `data_preprocessor` does."""
    preprocessor = cfg.model.get("data_preprocessor")
    if preprocessor is None:
        return []
    return [
        dict(type="RandomScaleImageMultiViewImage", scales=[preprocessor.get("scale", 1.0)]),
        dict(type="PadMultiViewImage", size_divisor=preprocessor.get("size_divisor", 1)),
    ]


def image_hw(cfg):
    """Height and width of the padded images that a recipe makes of its pictures."""
    height, width = source_hw(cfg)
    for step in [*cfg.data.train.pipeline, *preprocessor_steps(cfg)]:
        if step["type"] == "CropResizeFlipImage":
            left, top, right, bottom = step["data_aug_conf"]["crop"]
            scale = step["data_aug_conf"]["reisze"][0] / (bottom - top)
            height, width = round((bottom - top) * scale), round((right - left) * scale)
        if step["type"] == "RandomScaleImageMultiViewImage":
            height, width = (int(side * step["scales"][0]) for side in (height, width))
        if step["type"] == "PadMultiViewImage":
            divisor = step["size_divisor"]
            height, width = (-(-side // divisor) * divisor for side in (height, width))
    return height, width


def build_detector(cfg, device=None):
    """The detector of a recipe with the initial weights of its constructor.

    Args:
        cfg: mmcv.Config; nothing is loaded from files.
        device: that the compute format is chosen for; None is the CPU. The weights are on the CPU.
    """
    cfg.model.pretrained = None
    detector = build_model(cfg.model)
    detector.grid_mask.prob = 1.0  # it copies the images whenever it masks
    set_compute_format(detector, cfg, device or torch.device("cpu"), logging.getLogger("quiet"))
    return detector


def frame_offsets(cfg):
    """Numbers of the frames of a training item, as the metas name them."""
    frames = cfg.model.get("frames")
    return list(frames if frames is not None else range(cfg.data.train.get("queue_length", 1)))


def training_batch(cfg, batch=None, missing_history=False):
    """Arguments of a training step.

    Args:
        cfg: mmcv.Config of a recipe.
        batch: samples; None is the recipe's.
        missing_history: whether the last sample lacks the frame before the current one.
    """
    batch = batch or cfg.data.samples_per_gpu
    offsets = frame_offsets(cfg)
    queues = [{offset: _meta(cfg, offset) for offset in offsets} for _ in range(batch)]
    for queue in queues:
        if cfg.model.get("fcos3d_bbox_head"):
            queue[0]["mono_objects"] = {0: _mono_objects(), 3: _mono_objects()}
    if missing_history and len(offsets) > 1:
        queues[-1][offsets[-1]]["prev_bev_exists"] = False
        queues[-1][offsets[0]]["frame_exists"] = False
    box = np.array([1.0, 2.0, -1.0, 4.0, 2.0, 1.5, 0.3, 0.5, 0.0], dtype=np.float32)
    boxes = LiDARInstance3DBoxes(torch.from_numpy(np.tile(box, (GROUND_TRUTHS, 1))), box_dim=9)
    return dict(
        img=_images(cfg, batch, len(offsets)),
        img_metas=queues,
        gt_bboxes_3d=[boxes] * batch,
        gt_labels_3d=[torch.zeros(GROUND_TRUTHS, dtype=torch.long)] * batch,
    )


def test_stream(cfg, batch=1):
    """Arguments of four test frames; the last one starts another scene, the third one in one slot."""
    for number, scene in enumerate("aaab"):
        metas = [_meta(cfg, number, f"{scene}{slot}") for slot in range(batch)]
        if batch > 1 and number == 2:
            metas[1]["scene_token"] = "another"
        leading = (batch,)
        if cfg.model.get("frames") is not None:
            leading = (batch, len(cfg.model.frames))
            for meta in metas:
                meta["frames"] = {offset: _meta(cfg, offset) for offset in cfg.model.frames}
        yield dict(img=[_images(cfg, *leading)], img_metas=[metas])


def _images(cfg, *leading):
    """Bytes where the model distorts and pads, else float32."""
    if cfg.model.get("data_preprocessor"):
        return torch.empty(*leading, CAMERAS, *source_hw(cfg), 3, dtype=torch.uint8)
    return torch.empty(*leading, CAMERAS, 3, *image_hw(cfg))


def _meta(cfg, frame, scene="a"):
    shape = (*image_hw(cfg), 3)
    v2 = cfg.model.type == "BEVFormerV2"
    return dict(
        color_distortion=DrawColorDistortion()({"img": [None] * CAMERAS})["color_distortion"],
        can_bus=np.zeros(CAN_SIZE),
        lidar2img=[np.eye(4)] * CAMERAS,
        img_shape=[shape] * CAMERAS,
        pad_shape=[shape] * CAMERAS,
        ori_shape=[shape] * CAMERAS,
        scene_token=scene,
        sample_idx=str(frame),
        prev_bev_exists=frame > 0,
        box_type_3d=LiDARInstance3DBoxes,
        frame_exists=True,
        image_flip=v2 and frame % 2 == 1,
        bev_augmentation=np.eye(3, dtype=np.float32) if v2 else None,
    )


def _mono_objects(number=4):
    """Objects of one camera of BEVFormer v2."""
    corner = np.arange(1, number + 1, dtype=np.float32)[:, None] * (60, 40)
    return dict(
        intrinsics=np.array([[1260, 0, 800], [0, 1260, 320], [0, 0, 1]], dtype=np.float32),
        bbox=np.concatenate((corner, corner + (50, 40)), axis=1).astype(np.float32),
        label=np.arange(number),
        rotation=np.tile(np.eye(3, dtype=np.float32), (number, 1, 1)),
        center=np.tile(np.array([1, 1, 10], dtype=np.float32), (number, 1)),
        size_wlh=np.ones((number, 3), dtype=np.float32),
        attribute=np.arange(number) % 4 - 1,
        speed=np.ones(number, dtype=np.float32),
    )

"""The input of the network for a sample: pixels after the pipeline, their matrices, the ego motion.

Shape legend: T frames, N cameras, H height, W width, Hb, Wb rows and columns of the BEV grid.
"""

from dataclasses import dataclass
from typing import Any, List, Optional, Sequence, Tuple

import numpy as np
import torch
from einops import rearrange
from mmcv import Config
from mmdet.models.builder import MODELS

from projects.bevformer.datasets.fused_frames import CustomNuScenesDatasetV2
from projects.bevformer.datasets.motion import relative_metas
from projects.bevformer.datasets.temporal_nuscenes import TemporalNuScenesDataset
from projects.bevformer.engine.build import build_detector
from projects.bevformer.engine.config import config_errors
from projects.bevformer.geometry.bev_grid import pillar_points
from projects.bevformer.geometry.camera import project_to_cameras
from projects.bevformer.geometry.can_bus import CAN_YAW_DEG
from projects.bevformer.geometry.ego_motion import EgoMotion, planar_lidar2ego
from projects.bevformer.model.image_preprocessor import ImagePreprocessor


@dataclass(frozen=True)
class InputFrame:
    """One frame of a queue.

    Attributes:
        token: sample token.
        images_bgr: (N, H, W, 3) uint8, the network's images before normalisation.
        lidar2img: (N, 4, 4) lidar points to pixels of these images.
        can_bus: (18,) as the network gets it: position and yaw in degrees minus those of the previous
            frame of the queue.
        has_history: whether there is a previous frame of the same scene.
        lidar2ego: (4, 4), or None for the original's, see `OFFICIAL_LIDAR2EGO`.
    """

    token: str
    images_bgr: np.ndarray
    lidar2img: np.ndarray
    can_bus: np.ndarray
    has_history: bool
    lidar2ego: Optional[np.ndarray] = None


@dataclass(frozen=True)
class NetworkInput:
    """A sample: its queue in time order, the sample itself last, and its objects.

    Attributes:
        cameras: N names, in the order of the images and matrices.
        frames: list of T InputFrame.
        ground_truth: dict of `boxes_3d` and `labels_3d`, or None in a test split.
    """

    cameras: Tuple[str, ...]
    frames: List[InputFrame]
    ground_truth: Optional[dict]


def build_preprocessor(cfg: Config) -> Optional[ImagePreprocessor]:
    """The `data_preprocessor` of a config's model, or None."""
    settings = cfg.model.get("data_preprocessor")
    if settings is None:
        return None
    with config_errors("model.data_preprocessor"):
        return MODELS.build(settings)


def network_input(
    dataset: TemporalNuScenesDataset,
    index: int,
    preprocessor: Optional[ImagePreprocessor] = None,
) -> Optional[NetworkInput]:
    """Run a data set's pipeline as training or evaluation does.

    Args:
        dataset: in test mode, where frames come one by one, the queue is the previous frame, if it is of
            the same scene, and the frame itself. Of CustomNuScenesDatasetV2, the frames that the scene has.
        index: of the sample.
        preprocessor: the model's ImagePreprocessor where the pipeline ends with uint8 images.

    Returns:
        NetworkInput, or None for a sample that training skips because no object is left in it.

    Raises:
        ValueError: the pipeline does not say how it normalises, or makes several versions of a frame; or
            the data set has frames after the sample.
    """
    if dataset.test_mode:
        frames, objects = _test_frames(dataset, index, preprocessor), dataset.ground_truth(index)
    else:
        example = dataset.prepare_train_data(index)
        if example is None:
            return None
        images, metas = example["img"].data, example["img_metas"].data
        if isinstance(dataset, CustomNuScenesDatasetV2):
            frames = _frames_at_offsets(images, metas, preprocessor)
        else:
            frames = [_frame(images[i], metas[i], preprocessor) for i in range(len(images))]
        boxes, labels = example["gt_bboxes_3d"].data, example["gt_labels_3d"].data
        objects = {"boxes_3d": boxes, "labels_3d": labels}
    return NetworkInput(tuple(dataset.data_infos[index]["cams"]), frames, objects)


def _test_frames(dataset, index, preprocessor) -> List[InputFrame]:
    infos = dataset.data_infos
    if isinstance(dataset, CustomNuScenesDatasetV2):
        example = dataset.prepare_test_data(index)
        metas = _only_version(example["img_metas"]).data["frames"]
        return _frames_at_offsets(_only_version(example["img"]).data, metas, preprocessor)
    indices = [index]
    if index > 0 and infos[index - 1]["scene_token"] == infos[index]["scene_token"]:
        indices.insert(0, index - 1)
    examples = [dataset.prepare_test_data(i) for i in indices]
    metas = relative_metas([_only_version(example["img_metas"]).data for example in examples])
    return [
        _frame(_only_version(example["img"]).data, meta, preprocessor)
        for example, meta in zip(examples, metas)
    ]


def _frames_at_offsets(images, metas, preprocessor) -> List[InputFrame]:
    """InputFrames of an item of CustomNuScenesDatasetV2.

    Args:
        images: one per frame.
        metas: {offset: meta}, in the same order; `can_bus` is absolute.
        preprocessor: as in `network_input`.
    """
    if max(metas) > 0:
        raise ValueError(
            f"the data set has frames {sorted(metas)}, but only queues that end with frame 0 can be drawn"
        )
    existing = [(i, meta) for i, meta in zip(images, metas.values()) if meta["frame_exists"]]
    relative = relative_metas([meta for _, meta in existing])
    return [_frame(image, meta, preprocessor) for (image, _), meta in zip(existing, relative)]


def _only_version(value):
    """Unpack the list of MultiScaleFlipAug3D, which has one entry per augmentation."""
    if not isinstance(value, (list, tuple)):
        return value
    if len(value) != 1:
        raise ValueError(f"the test pipeline makes {len(value)} versions of a frame, not one")
    return value[0]


def _frame(images, meta, preprocessor) -> InputFrame:
    if preprocessor is not None:
        (meta,) = preprocessor.describe([meta], images.shape[1:3])
        (images,) = preprocessor(images[None], [meta])
    return InputFrame(
        token=meta["sample_idx"],
        images_bgr=_pixels(images, meta),
        lidar2img=np.stack(meta["lidar2img"]),
        can_bus=meta["can_bus"],
        has_history=meta["prev_bev_exists"],
        lidar2ego=meta.get("lidar2ego"),
    )


def _pixels(images, meta) -> np.ndarray:
    """(N, 3, H, W) normalised images -> (N, H, W, 3) uint8 BGR."""
    if "img_norm_cfg" not in meta:
        raise ValueError("the pipeline does not collect img_norm_cfg: add it to meta_keys")
    norm = meta["img_norm_cfg"]
    pixels = rearrange(images.numpy(), "n c h w -> n h w c") * norm["std"] + norm["mean"]
    if norm["to_rgb"]:
        pixels = pixels[..., ::-1]
    return np.ascontiguousarray(pixels.round().clip(0, 255).astype(np.uint8))


def bev_head(cfg: Config) -> Any:
    """What a config says of its BEV: `bev_h`, `bev_w` and `transformer.encoder` with its `pc_range`.

    Returns:
        The config of the head, or, where that does not have the grid, the head itself.

    Raises:
        ValueError: the model has no such head.
    """
    with config_errors("model"):
        head = cfg.model.pts_bbox_head
        return head if {"bev_h", "bev_w"} <= set(head) else build_detector(cfg).pts_bbox_head


def seen_cells(head: Any, frame: InputFrame) -> np.ndarray:
    """The cells of the BEV that each camera sees.

    Args:
        head: from `bev_head`.
        frame: InputFrame.

    Returns:
        (N, Hb, Wb) bool: a pillar point of the cell lies in the image, padding included; row 0 is
        behind the car, column 0 left of it.

    Raises:
        ValueError: the head has no BEV grid.
    """
    with config_errors("model.pts_bbox_head"):
        encoder = head.transformer.encoder
        bev_hw = head.bev_h, head.bev_w
        heights = getattr(encoder, "num_points_in_pillar", 4)
        pillars = pillar_points(*bev_hw, heights, encoder.pc_range)
    lidar2img = torch.from_numpy(frame.lidar2img)[None]
    _, visible = project_to_cameras(pillars, lidar2img, frame.images_bgr.shape[1:3])
    return rearrange(visible[0].any(dim=-1), "n (h w) -> n h w", h=bev_hw[0]).numpy()


def ego_track(frames: Sequence[InputFrame]) -> Tuple[np.ndarray, np.ndarray]:
    """Earlier ego positions, from the motion that the network receives.

    Args:
        frames: T InputFrame in time order.

    Returns:
        positions: (K, 2) metres, lidar frame of the last frame, for the last K frames that follow
            one another; the last is (0, 0).
        yaws: (K,) radians, heading minus that of the last frame.
    """
    positions, yaws = [np.zeros(2)], [0.0]
    for frame in reversed(frames):
        if not frame.has_history:
            break
        motion = EgoMotion.from_can_bus(
            torch.from_numpy(frame.can_bus[None]), planar_lidar2ego([frame.lidar2ego])
        )
        shift = motion.delta_xy_lidar()[0].numpy()
        cos, sin = np.cos(yaws[-1]), np.sin(yaws[-1])
        to_last = np.array([[cos, -sin], [sin, cos]])
        positions.append(positions[-1] - to_last @ shift)
        yaws.append(yaws[-1] - np.deg2rad(frame.can_bus[CAN_YAW_DEG]))
    return np.stack(positions[::-1]), np.array(yaws[::-1])

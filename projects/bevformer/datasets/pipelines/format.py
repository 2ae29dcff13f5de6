"""The last steps of a pipeline."""

from __future__ import annotations

from typing import Sequence

import numpy as np
import torch
from einops import rearrange
from mmcv.parallel import DataContainer
from mmdet3d.datasets.builder import PIPELINES
from mmdet3d.datasets.pipelines import Collect3D, DefaultFormatBundle3D

META_KEYS = (
    "filename",
    "ori_shape",
    "img_shape",
    "lidar2img",
    "lidar2cam",
    "cam2img",
    "pad_shape",
    "scale_factor",
    "flip",
    "box_mode_3d",
    "box_type_3d",
    "img_norm_cfg",
    "sample_idx",
    "prev_idx",
    "next_idx",
    "scene_token",
    "timestamp",
    "cameras",
    "can_bus",
    "pts_filename",
)


@PIPELINES.register_module()
class ByteImageFormatBundle3D(DefaultFormatBundle3D):
    """mmdet3d's DefaultFormatBundle3D for images that stay uint8 with the channels last.

    The model's ImagePreprocessor makes float32 (3, H, W) images of them on its device.

    Args:
        class_names: class names in the order of the logits.
        with_label: the frame has objects.
        stack: False keeps the N images as a list, for a dataset that stacks those of a whole queue: they are
            copied once instead of twice.
    """

    def __init__(self, class_names, with_label=True, stack=True):
        super().__init__(class_names, with_label=with_label)
        self.stack = stack

    def __call__(self, results):
        """Format `img`: (N, H, W, 3) uint8, or a list of N (H, W, 3); the rest as mmdet3d does.

        Raises:
            ValueError: an image is not uint8.
        """
        images = results.pop("img")
        for image in images:
            if image.dtype != np.uint8:
                raise ValueError(
                    f"ByteImageFormatBundle3D needs uint8 images, got {image.dtype}: set "
                    "to_float32=False in the loading step, and leave colours and padding "
                    "to model.data_preprocessor"
                )
        results = super().__call__(results)
        results["img"] = stack_byte_images(images) if self.stack else DataContainer(images)
        return results


@PIPELINES.register_module()
class CustomDefaultFormatBundle3D(DefaultFormatBundle3D):
    """mmdet3d's DefaultFormatBundle3D that also formats `gt_map_masks`, which a data set of yours adds."""

    def __call__(self, results):
        """Make a DataContainer of a tensor of `gt_map_masks`, if the frame has it."""
        results = super().__call__(results)
        if "gt_map_masks" in results:
            masks = torch.from_numpy(np.ascontiguousarray(results["gt_map_masks"]))
            results["gt_map_masks"] = DataContainer(masks, stack=True)
        return results


def stack_byte_images(images: Sequence[np.ndarray]) -> DataContainer:
    """DataContainer of one (len(images), H, W, 3) tensor."""
    # mmcv pads the last two dimensions of a batch to its largest; here they are not H and W.
    return DataContainer(torch.from_numpy(np.stack(images)), stack=True, pad_dims=None)


def metas_of(frame: dict) -> list[dict]:
    """The metas of a collected frame: one, or with MultiScaleFlipAug3D one per version."""
    metas = frame["img_metas"]
    return [meta.data for meta in (metas if isinstance(metas, list) else [metas])]


def image_hw(images: torch.Tensor | Sequence[np.ndarray]) -> tuple[int, int]:
    """Height and width of the images of a frame: one tensor, or N byte images."""
    if isinstance(images, torch.Tensor) and images.dtype != torch.uint8:
        return tuple(images.shape[-2:])
    return tuple(images[0].shape[:2])


def check_one_size(frames: Sequence[dict]) -> None:
    """Check the collected frames of a queue: torch would not name the one that differs.

    Raises:
        ValueError: the images of a frame are of another size than those of the last one.
    """
    sizes = [image_hw(frame["img"].data) for frame in frames]
    for frame, size in zip(frames, sizes):
        if size != sizes[-1]:
            of_frame, of_last = (
                f"sample {meta.get('sample_idx')} ({meta.get('filename', ('no filename',))[0]})"
                for meta in (metas_of(frame)[0], metas_of(frames[-1])[0])
            )
            raise ValueError(
                f"the images of {of_frame} are {size} after the pipeline, those of {of_last} are "
                f"{sizes[-1]}: all must have one size; use the original images"
            )


def stack_frames(frames: Sequence[DataContainer]) -> DataContainer:
    """`img` of T frames, each one tensor or N byte images, as one container."""
    if isinstance(frames[0].data, torch.Tensor):
        images = torch.stack([frame.data for frame in frames])
        return DataContainer(images, stack=True, pad_dims=frames[0].pad_dims)
    stacked = stack_byte_images([image for frame in frames for image in frame.data])
    images = rearrange(stacked.data, "(t n) h w c -> t n h w c", t=len(frames))
    return DataContainer(images, stack=True, pad_dims=stacked.pad_dims)


@PIPELINES.register_module()
class CustomCollect3D(Collect3D):
    """mmdet3d's Collect3D with the meta keys that a temporal camera model reads.

    Args:
        keys: what to collect besides `img_metas`.
        meta_keys: what to collect into `img_metas`, if the frame has it. A list without "timestamp" (s)
            turns off the check that frames of a scene come in time order.
    """

    def __init__(self, keys, meta_keys=(*META_KEYS, "color_distortion")):
        super().__init__(keys, meta_keys)

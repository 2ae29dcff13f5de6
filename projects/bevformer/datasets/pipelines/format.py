"""The last steps of a pipeline."""

import numpy as np
import torch
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
        stack: False hands on the N images as they are, for a dataset that stacks the images of a whole
            queue: they are copied once instead of twice.
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
                    "to_float32=False in LoadMultiViewImageFromFiles, and leave colours and padding "
                    "to model.data_preprocessor"
                )
        results = super().__call__(results)
        results["img"] = stack_byte_images(images) if self.stack else DataContainer(images)
        return results


def stack_byte_images(images):
    """DataContainer of one (len(images), H, W, 3) tensor."""
    # mmcv pads the last two dimensions of a batch to its largest; here they are not H and W.
    return DataContainer(torch.from_numpy(np.stack(images)), stack=True, pad_dims=None)


@PIPELINES.register_module()
class CustomCollect3D(Collect3D):
    """mmdet3d's Collect3D with the meta keys that a temporal camera model reads.

    Args:
        keys: what to collect besides `img_metas`.
        meta_keys: what to collect into `img_metas`, where the frame has it.
    """

    def __init__(self, keys, meta_keys=(*META_KEYS, "color_distortion")):
        super().__init__(keys, meta_keys)

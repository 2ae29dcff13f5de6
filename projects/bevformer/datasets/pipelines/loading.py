"""Reading the camera images of a frame."""

import os.path as osp

import cv2
import mmcv
import numpy as np
from mmdet3d.datasets.builder import PIPELINES


@PIPELINES.register_module(force=True)
class LoadMultiViewImageFromFiles:
    """Load one image a camera.

    Takes the published name from mmdet3d's step, with its arguments and results: that one answers a
    missing or broken file with "all input arrays must have the same shape".

    Args:
        to_float32: convert to float32; values stay 0 ... 255.
        color_type: mmcv's flag; channels come in BGR order.
    """

    def __init__(self, to_float32=False, color_type="unchanged"):
        self.to_float32 = to_float32
        self.color_type = color_type

    def __call__(self, results):
        """Read `img_filename`; add `filename`, `img`, and the shapes as lists of N (H, W, 3).

        Raises:
            FileNotFoundError: an image does not exist.
            ValueError: an image cannot be decoded, has no 3 channels, or another size than the first.
        """
        filenames = list(results["img_filename"])
        images = [_read_image(filename, self.color_type) for filename in filenames]
        for filename, image in zip(filenames, images):
            if image.shape != images[0].shape:
                raise ValueError(
                    f"camera image {filename} is {image.shape}, but {filenames[0]} is {images[0].shape}: "
                    "all cameras of a frame must have one size"
                )
        if self.to_float32:
            images = [image.astype(np.float32) for image in images]
        shapes = [image.shape for image in images]
        results.update(
            filename=filenames,
            img=images,
            img_shape=shapes,
            ori_shape=shapes,
            pad_shape=shapes,
            scale_factor=1.0,
            img_norm_cfg={
                "mean": np.zeros(3, dtype=np.float32),
                "std": np.ones(3, dtype=np.float32),
                "to_rgb": False,
            },
        )
        return results

    def __repr__(self):
        return f"LoadMultiViewImageFromFiles(to_float32={self.to_float32}, color_type={self.color_type!r})"


def _read_image(filename, color_type):
    if not osp.isfile(filename):
        raise FileNotFoundError(
            f"camera image {filename} does not exist: check data_root, or unpack the images again"
        )
    try:
        image = mmcv.imread(filename, color_type)
    except cv2.error:  # an empty file
        image = None
    if image is None:
        raise ValueError(f"camera image {filename} cannot be decoded: unpack or download it again")
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"camera image {filename} is {image.shape}, not (height, width, 3)")
    return image

"""Steps that change the size of the images, and the camera matrices with it."""

import mmcv
from mmdet3d.datasets.builder import PIPELINES

from projects.bevformer.datasets.pipelines.step import Step, resize_images


@PIPELINES.register_module()
class RandomScaleImageMultiViewImage(Step):
    """Scale all images by one factor.

    Despite the published name nothing is random: published recipes give one factor, because the frames of a
    queue must have one size.

    Args:
        scales: a list with the one factor.

    Raises:
        ValueError: not exactly one factor, or not a positive one.
    """

    def __init__(self, scales):
        if len(scales) != 1:
            raise ValueError(
                f"RandomScaleImageMultiViewImage takes one scale, got {scales}: "
                "the frames of a queue must have one size"
            )
        if scales[0] <= 0:
            raise ValueError(f"scales is {scales}: it must be positive")
        self.scale = scales[0]

    def __call__(self, results):
        """Scale `img`, and scale the pixel rows of `lidar2img` and `cam2img` to match."""
        resize_images(results, results["img"], self.scale)
        return results


@PIPELINES.register_module()
class PadMultiViewImage(Step):
    """Pad all images at the right and at the bottom; pixel coordinates do not move.

    Args:
        size: (height, width) of the result, or None.
        size_divisor: the height and width of the result are multiples of it, or None.
        pad_val: value of the new pixels, all channels.

    Raises:
        ValueError: not exactly one of `size` and `size_divisor`, or a divisor below 1.
    """

    def __init__(self, size=None, size_divisor=None, pad_val=0):
        if (size is None) == (size_divisor is None):
            raise ValueError("PadMultiViewImage takes either size or size_divisor")
        if size_divisor is not None and size_divisor < 1:
            raise ValueError(f"size_divisor is {size_divisor}: it must be at least 1")
        self.size = size
        self.size_divisor = size_divisor
        self.pad_val = pad_val

    def __call__(self, results):
        """Pad `img`; `ori_shape` is the size before, `img_shape` and `pad_shape` the size after.

        The network divides pixel coordinates by `img_shape`.

        Raises:
            ValueError: an image is larger than `size`.
        """
        images = results["img"]
        pad_val = (self.pad_val,) * 3  # OpenCV takes a single number for the first channel only
        if self.size is None:
            padded = [
                mmcv.impad_to_multiple(image, self.size_divisor, pad_val=pad_val)
                for image in images
            ]
        else:
            height, width = images[0].shape[:2]
            if height > self.size[0] or width > self.size[1]:
                raise ValueError(
                    f"PadMultiViewImage(size={self.size}) got an image of {(height, width)}"
                )
            padded = [mmcv.impad(image, shape=self.size, pad_val=pad_val) for image in images]
        results["img"] = padded
        results["ori_shape"] = [image.shape for image in images]
        results["img_shape"] = results["pad_shape"] = [image.shape for image in padded]
        results["pad_fixed_size"] = self.size
        results["pad_size_divisor"] = self.size_divisor
        return results

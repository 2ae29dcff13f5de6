"""Steps that change pixel values but no geometry."""

import mmcv
import numpy as np
from mmdet3d.datasets.builder import PIPELINES


@PIPELINES.register_module()
class PhotoMetricDistortionMultiViewImage:
    """Random brightness, contrast, saturation, hue and channel order, drawn anew for each camera.

    Each change happens with probability one half. Images are float32 BGR, 0 ... 255, and may leave
    that range. Draws come from `np.random`, which mmdet seeds in every worker.

    Args:
        brightness_delta: largest value added or subtracted.
        contrast_range: smallest and largest factor of all channels.
        saturation_range: smallest and largest factor of the saturation.
        hue_delta: largest turn of the hue, degrees.

    Source: SSD (arXiv 1512.02325), section 3.6; the order of the changes is mmdet's.
    """

    def __init__(
        self,
        brightness_delta=32,
        contrast_range=(0.5, 1.5),
        saturation_range=(0.5, 1.5),
        hue_delta=18,
    ):
        self.brightness_delta = brightness_delta
        self.contrast_range = tuple(contrast_range)
        self.saturation_range = tuple(saturation_range)
        self.hue_delta = hue_delta

    def __call__(self, results):
        """Distort `img`.

        Raises:
            ValueError: an image is not float32.
        """
        for image in results["img"]:
            if image.dtype != np.float32:
                raise ValueError(
                    f"PhotoMetricDistortionMultiViewImage needs float32 images, got {image.dtype}: "
                    "set to_float32=True in LoadMultiViewImageFromFiles"
                )
        results["img"] = [self._distort(image) for image in results["img"]]
        return results

    def _distort(self, image):
        if _coin():
            image = image + np.float32(
                np.random.uniform(-self.brightness_delta, self.brightness_delta)
            )
        contrast_first = _coin()
        if contrast_first:
            image = self._change_contrast(image)

        hsv = mmcv.bgr2hsv(image)  # hue 0 ... 360, a new array
        if _coin():
            hsv[..., 1] *= np.random.uniform(*self.saturation_range)
        if _coin():
            hue = hsv[..., 0]
            hue += np.random.uniform(-self.hue_delta, self.hue_delta)
            hue[hue > 360] -= 360
            hue[hue < 0] += 360
        image = mmcv.hsv2bgr(hsv)

        if not contrast_first:
            image = self._change_contrast(image)
        if _coin():
            image = image[..., np.random.permutation(3)]
        return image

    def _change_contrast(self, image):
        if _coin():
            image = image * np.float32(np.random.uniform(*self.contrast_range))
        return image

    def __repr__(self):
        return (
            f"PhotoMetricDistortionMultiViewImage(brightness_delta={self.brightness_delta}, "
            f"contrast_range={self.contrast_range}, saturation_range={self.saturation_range}, "
            f"hue_delta={self.hue_delta})"
        )


@PIPELINES.register_module()
class NormalizeMultiviewImage:
    """Subtract the mean and divide by the standard deviation, channel by channel.

    Args:
        mean: three numbers, in the channel order of the result.
        std: three numbers, in the channel order of the result.
        to_rgb: swap BGR to RGB first.
    """

    def __init__(self, mean, std, to_rgb=True):
        self.mean = np.array(mean, dtype=np.float32)
        self.std = np.array(std, dtype=np.float32)
        self.to_rgb = to_rgb

    def __call__(self, results):
        """Replace `img` by float32 images and note the numbers in `img_norm_cfg`."""
        results["img"] = [
            mmcv.imnormalize(image, self.mean, self.std, self.to_rgb) for image in results["img"]
        ]
        results["img_norm_cfg"] = {"mean": self.mean, "std": self.std, "to_rgb": self.to_rgb}
        return results

    def __repr__(self):
        return f"NormalizeMultiviewImage(mean={self.mean}, std={self.std}, to_rgb={self.to_rgb})"


def _coin():
    return np.random.randint(2) == 1

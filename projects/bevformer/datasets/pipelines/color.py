"""Steps that change pixel values but no geometry."""

import mmcv
import numpy as np
from mmdet3d.datasets.builder import PIPELINES

from projects.bevformer.datasets.pipelines.step import Step


@PIPELINES.register_module()
class DrawColorDistortion(Step):
    """Draw the numbers of a PhotoMetricDistortionMultiViewImage without changing the images.

    The images can then stay uint8, and the model's ImagePreprocessor distorts them on its device. On
    the same state of `np.random` the numbers are those that the published step would draw.

    Args:
        brightness_delta: largest value added or subtracted.
        contrast_range: smallest and largest factor of all channels.
        saturation_range: smallest and largest factor of the saturation.
        hue_delta: largest turn of the hue, degrees.
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
        """Add `color_distortion`: dict of (N,) float32 brightness, contrast_first, saturation, hue
        and contrast_last, and (N, 3) int64 channels; see `ops.color.distort_colors`."""
        draws = [self.draw() for _ in results["img"]]
        results["color_distortion"] = {
            name: np.array(
                [draw[name] for draw in draws], np.int64 if name == "channels" else np.float32
            )
            for name in draws[0]
        }
        return results

    def draw(self):
        """Numbers for one image, name -> number; each change happens with probability one half."""
        draw = {
            "brightness": 0.0,
            "contrast_first": 1.0,
            "saturation": 1.0,
            "hue": 0.0,
            "contrast_last": 1.0,
            "channels": (0, 1, 2),
        }
        if _coin():
            draw["brightness"] = np.random.uniform(-self.brightness_delta, self.brightness_delta)
        contrast_first = _coin()
        if contrast_first and _coin():
            draw["contrast_first"] = np.random.uniform(*self.contrast_range)
        if _coin():
            draw["saturation"] = np.random.uniform(*self.saturation_range)
        if _coin():
            draw["hue"] = np.random.uniform(-self.hue_delta, self.hue_delta)
        if not contrast_first and _coin():
            draw["contrast_last"] = np.random.uniform(*self.contrast_range)
        if _coin():
            draw["channels"] = tuple(np.random.permutation(3))
        return draw


@PIPELINES.register_module()
class PhotoMetricDistortionMultiViewImage(DrawColorDistortion):
    """Random brightness, contrast, saturation, hue and channel order, drawn anew for each camera.

    Each change happens with probability one half. Images are float32 BGR, 0 ... 255, and may leave
    that range. Draws come from `np.random`, which the training loader seeds for every sample.

    Args: as DrawColorDistortion.

    Source: SSD (arXiv 1512.02325), section 3.6; the order of the changes is mmdet's.
    """

    def __call__(self, results):
        """Distort `img`.

        Raises:
            ValueError: an image is not float32.
        """
        for image in results["img"]:
            if image.dtype != np.float32:
                raise ValueError(
                    f"PhotoMetricDistortionMultiViewImage needs float32 images, got {image.dtype}: "
                    "set to_float32=True in the loading step"
                )
        results["img"] = [_distort(image, self.draw()) for image in results["img"]]
        return results


def _distort(image, draw):
    """A new (H, W, 3) float32 image; changes that were not drawn are left out."""
    if draw["brightness"]:
        image = image + np.float32(draw["brightness"])
    if draw["contrast_first"] != 1:
        image = image * np.float32(draw["contrast_first"])

    hsv = mmcv.bgr2hsv(image)  # hue 0 ... 360, a new array
    if draw["saturation"] != 1:
        hsv[..., 1] *= draw["saturation"]
    if draw["hue"]:
        hue = hsv[..., 0]
        hue += draw["hue"]
        hue[hue > 360] -= 360
        hue[hue < 0] += 360
    image = mmcv.hsv2bgr(hsv)

    if draw["contrast_last"] != 1:
        image = image * np.float32(draw["contrast_last"])
    return image[..., list(draw["channels"])] if draw["channels"] != (0, 1, 2) else image


@PIPELINES.register_module()
class NormalizeMultiviewImage(Step):
    """Subtract the mean and divide by the standard deviation, channel by channel.

    Args:
        mean: three numbers, in the channel order of the result.
        std: three numbers, in the channel order of the result.
        to_rgb: swap BGR to RGB first.

    Raises:
        ValueError: `mean` or `std` are not three numbers, or `std` is not positive.
    """

    def __init__(self, mean, std, to_rgb=True):
        self.mean = np.array(mean, dtype=np.float32)
        self.std = np.array(std, dtype=np.float32)
        if not self.mean.shape == self.std.shape == (3,) or (self.std <= 0).any():
            raise ValueError(
                f"mean ({mean}) and std ({std}) must be three numbers each, std " "positive"
            )
        self.to_rgb = to_rgb

    def __call__(self, results):
        """Replace `img` by float32 images and note the numbers in `img_norm_cfg`."""
        results["img"] = [
            mmcv.imnormalize(image, self.mean, self.std, self.to_rgb) for image in results["img"]
        ]
        results["img_norm_cfg"] = {"mean": self.mean, "std": self.std, "to_rgb": self.to_rgb}
        return results


def _coin():
    return np.random.randint(2) == 1

"""On-device preprocessing: uint8 camera images to the normalised, padded input of the backbone.

Shape legend: B batch, N cameras, H height, W width.
"""

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from mmdet.models.builder import MODELS
from torch import nn

from projects.bevformer.geometry.camera import image_scaling
from projects.bevformer.ops import distort_colors
from projects.bevformer.transfer import upload


@MODELS.register_module()
class ImagePreprocessor(nn.Module):
    """Distort, normalise, scale and pad the uint8 images of a frame.

    The published pipelines do these steps, in this order, in float32 in the data workers; here the
    workers pass on a quarter of the bytes. The numbers agree within rounding.

    Args:
        mean: three numbers, in the channel order of the result.
        std: three numbers, in the channel order of the result.
        to_rgb: swap BGR to RGB first.
        scale: factor of height and width; the camera matrices follow.
        size_divisor: height and width of the result are multiples of it; zeros at the right and bottom.

    Raises:
        ValueError: `mean` or `std` are not three numbers, or `std`, `scale` or `size_divisor` is not
            positive.
    """

    def __init__(self, mean, std, to_rgb=True, scale=1.0, size_divisor=1):
        super().__init__()
        if len(mean) != 3 or len(std) != 3 or min(*std, scale, size_divisor) <= 0:
            what = f"std ({std}), scale ({scale}), size_divisor ({size_divisor}) positive"
            raise ValueError(f"mean ({mean}) and std must be three numbers each, {what}")
        self.img_norm_cfg = {
            "mean": np.array(mean, dtype=np.float32),
            "std": np.array(std, dtype=np.float32),
            "to_rgb": to_rgb,
        }
        for name in ("mean", "std"):
            values = torch.tensor(self.img_norm_cfg[name])
            self.register_buffer(name, values[:, None, None], persistent=False)  # (3, 1, 1)
        self.scale = scale
        self.size_divisor = size_divisor

    def forward(self, images, img_metas):
        """Images of one frame as the network takes them.

        Args:
            images: (B, N, H, W, 3) uint8, BGR.
            img_metas: B metas; `color_distortion`, where present, says how to distort each image.

        Returns:
            (B, N, 3, H', W') float32.

        Raises:
            ValueError: the images are not uint8 with the channels last.
        """
        if images.dtype != torch.uint8 or images.dim() != 5 or images.shape[-1] != 3:
            what = f"(B, N, H, W, 3) uint8 images, got {tuple(images.shape)} {images.dtype}"
            how = "end the pipelines with ByteImageFormatBundle3D, or set model.data_preprocessor=None"
            raise ValueError(f"data_preprocessor takes {what}: {how}")
        batch, _, height, width, _ = images.shape
        images = rearrange(images, "b n h w c -> (b n) c h w").float()
        if "color_distortion" in img_metas[0]:
            images = distort_colors(images, **_gather_distortions(img_metas, images.device))
        if self.img_norm_cfg["to_rgb"]:
            images = images.flip(1)
        images = (images - self.mean) / self.std
        scaled_hw, padded_hw = self._sizes((height, width))
        if scaled_hw != (height, width):
            images = F.interpolate(images, scaled_hw, mode="bilinear", align_corners=False)
        images = F.pad(images, (0, padded_hw[1] - scaled_hw[1], 0, padded_hw[0] - scaled_hw[0]))
        return rearrange(images, "(b n) c h w -> b n c h w", b=batch)

    def describe(self, img_metas, image_hw):
        """Metas of the images that `forward` returns.

        Args:
            img_metas: B metas.
            image_hw: height and width of the uint8 images.

        Returns:
            B new metas with the size, the camera matrices and `img_norm_cfg` of the result.
        """
        scaled_hw, padded_hw = self._sizes(image_hw)
        scaling = image_scaling(image_hw, scaled_hw)
        return [self._describe(meta, scaling, scaled_hw, padded_hw) for meta in img_metas]

    def _sizes(self, image_hw):
        """Heights and widths after scaling and after padding."""
        scaled_hw = tuple(int(side * self.scale) for side in image_hw)
        return scaled_hw, tuple(side + -side % self.size_divisor for side in scaled_hw)

    def _describe(self, meta, scaling, scaled_hw, padded_hw):
        cameras = len(meta["lidar2img"])
        padded = [(*padded_hw, 3)] * cameras
        return {
            **meta,
            **{
                key: [scaling @ matrix for matrix in meta[key]]
                for key in ("lidar2img", "cam2img")
                if key in meta
            },
            "ori_shape": [(*scaled_hw, 3)] * cameras,
            "img_shape": padded,
            "pad_shape": padded,
            "img_norm_cfg": self.img_norm_cfg,
        }


def _gather_distortions(img_metas, device):
    """Arguments of `distort_colors`: name -> tensor of one entry for each of the B * N images."""
    draws = [meta["color_distortion"] for meta in img_metas]
    return {
        name: upload(torch.from_numpy(np.concatenate([draw[name] for draw in draws])), device)
        for name in draws[0]
    }

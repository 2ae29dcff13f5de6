"""Augmentation of what the cameras see and of the ground plane, the same for all frames of an item.

A step writes its random draws into `results["aug_param"]` under its name, and uses those of an earlier
frame if there are any; the dataset passes one such dict to all frames of an item.
"""

from __future__ import annotations

import numpy as np
from mmdet3d.datasets.builder import PIPELINES

from projects.bevformer.datasets.pipelines.step import Step, resize_images
from projects.bevformer.published import published


@PIPELINES.register_module()
@published(only={"debug": False})
class CropResizeFlipImage(Step):
    """Cut out a fixed part of all images and scale it to a random height; decide whether to mirror.

    The step only decides whether images are mirrored: the network mirrors the padded images and its
    features back, so that the camera matrices stay true.

    Args:
        data_aug_conf: dict of `reisze` (spelt like that in published configs), list of heights in pixels to
            draw from; `crop`, (left, top, right, bottom) in pixels; `H` and `W`, size of the images;
            `rand_flip`.
        training: draw; otherwise there must be one height, and nothing is mirrored.

    Raises:
        ValueError: several heights without `training`, or a crop beyond the image.
    """

    def __init__(self, data_aug_conf, training=True):
        self.heights = list(data_aug_conf["reisze"])
        self.crop = tuple(data_aug_conf["crop"])
        self.source_hw = (data_aug_conf["H"], data_aug_conf["W"])
        self.flips = bool(training and data_aug_conf["rand_flip"])
        if not training and len(self.heights) != 1:
            raise ValueError(
                f"CropResizeFlipImage without training takes one height: {self.heights}"
            )
        left, top, right, bottom = self.crop
        height, width = self.source_hw
        if not (0 <= left < right <= width and 0 <= top < bottom <= height):
            raise ValueError(f"crop {self.crop} is not within images of {height} x {width}")

    def __call__(self, results):
        """Replace `img`; the pixel rows of `cam2img` and `lidar2img` follow.

        Raises:
            ValueError: an image has another size than the config says.
        """
        for image in results["img"]:
            if image.shape[:2] != self.source_hw:
                raise ValueError(
                    f"CropResizeFlipImage is set for images of {self.source_hw}, got {image.shape[:2]}: "
                    "set H, W and crop of data_aug_conf"
                )
        draw = _draw_once(results, self)
        left, top, right, bottom = self.crop
        images = [image[top:bottom, left:right] for image in results["img"]]
        resize_images(results, images, draw["scale"], origin=(left, top))
        return results

    def draw(self):
        """Draw what all frames of an item share."""
        height = self.heights[np.random.randint(len(self.heights))]
        return {
            "scale": height / (self.crop[3] - self.crop[1]),
            "flip": bool(self.flips and np.random.randint(2)),
            "source_hw": self.source_hw,
        }


@PIPELINES.register_module()
@published(only={"reverse_angle": True, "training": True})
class GlobalRotScaleTransImage(Step):
    """Turn, scale and mirror the scene seen from above.

    With `only_gt` the boxes move and the cameras stay; the network moves its BEV features by the
    drawn matrix. Without it the cameras move as well, and the network needs no correction.

    Args:
        rot_range: least and largest turn, degrees, counter-clockwise.
        scale_ratio_range: least and largest factor.
        translation_std: only zeros are supported.
        flip_dx_ratio: how often x is negated.
        flip_dy_ratio: how often y is negated.
        only_gt: see above.

    Raises:
        ValueError: an option that is not possible.

    Source: BEVDet (arXiv 2112.11790), section 3.3 (augmentation in the BEV space).
    """

    def __init__(
        self,
        rot_range=(-22.5, 22.5),
        scale_ratio_range=(0.95, 1.05),
        translation_std=(0, 0, 0),
        flip_dx_ratio=0.5,
        flip_dy_ratio=0.5,
        only_gt=False,
    ):
        if any(translation_std):
            raise ValueError(
                "GlobalRotScaleTransImage does not translate: set translation_std=(0, 0, 0)"
            )
        self.rot_range = tuple(rot_range)
        self.scale_ratio_range = tuple(scale_ratio_range)
        self.flip_dx_ratio = flip_dx_ratio
        self.flip_dy_ratio = flip_dy_ratio
        self.only_gt = only_gt

    def __call__(self, results):
        """Move `gt_bboxes_3d`, and without `only_gt` the lidar side of `lidar2img` and `lidar2cam`."""
        draw = _draw_once(results, self)
        boxes = results["gt_bboxes_3d"].clone()
        boxes.rotate(draw["angle_rad"])
        boxes.scale(draw["scale"])
        if draw["flip_x"]:
            boxes.flip("vertical")
        if draw["flip_y"]:
            boxes.flip("horizontal")
        results["gt_bboxes_3d"] = boxes
        if not self.only_gt:
            inverse = np.eye(4)
            inverse[:3, :3] = np.linalg.inv(draw["matrix"])
            for key in ("lidar2img", "lidar2cam"):
                results[key] = [camera @ inverse for camera in results[key]]
        return results

    def draw(self):
        """Draw what all frames of an item share; `matrix` (3, 3) maps lidar points."""
        angle = np.deg2rad(np.random.uniform(*self.rot_range))
        scale = np.random.uniform(*self.scale_ratio_range)
        flip_x = np.random.uniform() < self.flip_dx_ratio
        flip_y = np.random.uniform() < self.flip_dy_ratio
        cos, sin = np.cos(angle), np.sin(angle)
        turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
        mirror = np.diag([-1.0 if flip_x else 1.0, -1.0 if flip_y else 1.0, 1.0])
        return {
            "angle_rad": angle,
            "scale": scale,
            "flip_x": flip_x,
            "flip_y": flip_y,
            "matrix": mirror @ (scale * turn),
            "only_gt": self.only_gt,
        }


def drawn_for_network(draws: dict) -> dict:
    """What the network has to know about the draws of an item.

    Args:
        draws: `aug_param` after all frames went through the pipeline.

    Returns:
        dict of keys for the meta of every frame: `image_flip`, and `bev_augmentation` (3, 3) where the
        cameras did not follow the boxes; empty without draws.
    """
    keys = {}
    if "CropResizeFlipImage" in draws:
        keys["image_flip"] = draws["CropResizeFlipImage"]["flip"]
    scene = draws.get("GlobalRotScaleTransImage", {})
    if scene.get("only_gt"):
        keys["bev_augmentation"] = scene["matrix"]
    return keys


def _draw_once(results, step):
    draws = results.setdefault("aug_param", {})
    name = type(step).__name__
    if name not in draws:
        draws[name] = step.draw()
    return draws[name]

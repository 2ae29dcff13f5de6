"""FCOS target assignment: the ground-truth object of each feature location.

The objects come from the data workers as arrays, so they are assigned on the host, and two tensors
go to the device for any number of images and objects.

Shape legend: I images, L levels, S locations of all levels, P positive locations of all images,
G ground truths of all images.
"""

import math
from dataclasses import dataclass
from typing import Sequence

import numpy as np
import torch
from einops import rearrange
from mmdet.core import reduce_mean

from projects.bevformer.transfer import upload

# Columns of the floats of a positive location, in this order.
_FLOATS = {
    "locations": (2,),
    "distances": (4,),
    "centerness": (),
    "inverse_intrinsics": (3, 3),
    "focal": (2,),
    "rotation": (3, 3),
    "center": (3,),
    "center_uv": (2,),
    "size_wlh": (3,),
    "speed": (),
}


@dataclass(frozen=True)
class LocationTargets:
    """What the locations of I images should predict.

    Attributes:
        labels: (I * S,) long, class of the location's object; K is background.
        positive: (P,) long, locations with an object, among the I * S.
        positive_labels: (P,) long.
        attribute: (P,) long, -1 where unknown.
        weight_sum: the sum of `centerness`, averaged over all processes; at least 1e-6.
        locations: (P, 2) pixels.
        distances: (P, 4) to left, top, right and bottom of the 2D box, pixels.
        centerness: (P,) 1 in the middle of the 2D box, towards 0 at its border.
        inverse_intrinsics: (P, 3, 3) pixels to rays of the location's camera.
        focal: (P, 2) focal lengths of that camera along x and y, pixels.
        rotation: (P, 3, 3) box to camera.
        center: (P, 3) metres, camera frame.
        center_uv: (P, 2) its pixels.
        size_wlh: (P, 3) metres.
        speed: (P,) m/s, NaN where unknown.
    """

    labels: torch.Tensor
    positive: torch.Tensor
    positive_labels: torch.Tensor
    attribute: torch.Tensor
    weight_sum: torch.Tensor
    locations: torch.Tensor
    distances: torch.Tensor
    centerness: torch.Tensor
    inverse_intrinsics: torch.Tensor
    focal: torch.Tensor
    rotation: torch.Tensor
    center: torch.Tensor
    center_uv: torch.Tensor
    size_wlh: torch.Tensor
    speed: torch.Tensor

    @classmethod
    def from_arrays(cls, floats, integers, background):
        """From arrays by name, (3, P) positive, label, attribute, and labels (I * S,) of no object."""
        device = background.device
        count = integers.shape[1]
        widths = [math.prod(shape) for shape in _FLOATS.values()]
        columns = [floats[name].reshape(count, width) for name, width in zip(_FLOATS, widths)]
        table = np.concatenate(columns, axis=1).astype(np.float32)
        positive, labels, attribute = upload(torch.from_numpy(integers), device).unbind()
        parts = upload(torch.from_numpy(table), device).split(widths, dim=1)
        tensors = {
            name: part.reshape(count, *shape) for part, (name, shape) in zip(parts, _FLOATS.items())
        }
        return cls(
            labels=background.scatter(0, positive, labels),
            positive=positive,
            positive_labels=labels,
            attribute=attribute,
            weight_sum=reduce_mean(tensors["centerness"].sum()).clamp(min=1e-6),
            **tensors,
        )


@dataclass(frozen=True)
class LocationAssigner:
    """Gives each location the smallest object that it lies in and that is for its level.

    Attributes:
        strides: pixels between the locations of each level.
        num_classes: K.
        sizes_of_interest: L pairs, least and largest distance to a side of the box that a level is for,
            pixels.
        center_sample: only locations near the middle of the 2D box count.
        pos_radius: how near, in strides, along each axis.

    Source: FCOS (arXiv 2006.09214), section 3.
    """

    strides: Sequence[int]
    num_classes: int
    sizes_of_interest: Sequence[Sequence[float]]
    center_sample: bool = True
    pos_radius: float = 1.5

    def __call__(self, objects, level_hw, device):
        """Assign the objects of I images.

        Args:
            objects: I dicts of arrays, one entry for each of the image's objects: bbox (4,) x1, y1, x2,
                y2 in pixels; label; rotation (3, 3) box to camera; center (3,) metres, camera frame;
                size_wlh (3,) metres; attribute, -1 unknown; speed m/s, NaN unknown; and intrinsics
                (3, 3) of the image.
            level_hw: L pairs (h, w).
            device: of the result.

        Returns:
            LocationTargets.
        """
        # 1. all objects of all images in one list
        counts = [len(image["label"]) for image in objects]
        image_of = np.repeat(np.arange(len(objects)), counts)
        names = ("bbox", "label", "rotation", "center", "size_wlh", "attribute", "speed")
        every = {name: np.concatenate([image[name] for image in objects]) for name in names}
        boxes = every["bbox"].astype(np.float32)
        intrinsics = np.stack([image["intrinsics"] for image in objects]).astype(np.float64)

        # 2. which of them may own which location
        num_locations = sum(h * w for h, w in level_hw)
        start, found = image_of * num_locations, []
        for hw, stride, limits in zip(level_hw, self.strides, self.sizes_of_interest):
            reach = self.pos_radius * stride if self.center_sample else np.inf
            numbers, points, owner = _candidates(boxes, hw, stride, limits, reach)
            found.append((start[owner] + numbers, points, owner))
            start = start + hw[0] * hw[1]
        positive, points, owner = (np.concatenate(parts) for parts in zip(*found))

        # 3. the smallest owner of each
        area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=-1)
        order = np.lexsort((owner, area[owner], positive))
        order = order[np.unique(positive[order], return_index=True)[1]]
        positive, points, owner = positive[order], points[order], owner[order]

        # 4. what each should predict
        distances = _distances(points, boxes[owner])
        camera = intrinsics[image_of[owner]]
        projected = (camera @ every["center"][owner][..., None])[..., 0]
        floats = {
            "locations": points,
            "distances": distances,
            "centerness": _centerness(distances),
            "inverse_intrinsics": np.linalg.inv(intrinsics)[image_of[owner]],
            "focal": camera[:, [0, 1], [0, 1]],
            "center_uv": projected[:, :2] / projected[:, 2:],
            **{name: every[name][owner] for name in ("rotation", "center", "size_wlh", "speed")},
        }
        integers = np.stack((positive, every["label"][owner], every["attribute"][owner]))
        shape = (len(objects) * num_locations,)
        background = torch.full(shape, self.num_classes, device=device)
        return LocationTargets.from_arrays(floats, integers, background)


def _candidates(boxes, hw, stride, limits, reach):
    """Pairs of a location of one level and an object that it may belong to.

    (G, 4) boxes -> (C,) locations numbered row by row, (C, 2) their pixels, (C,) objects.
    """
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    # Only a window of the grid can be near enough: all its cells are looked at.
    size = np.array(hw[::-1])
    first = np.floor(np.maximum(boxes[:, :2], middle - np.float32(reach)) / stride)
    last = np.ceil(np.minimum(boxes[:, 2:], middle + np.float32(reach)) / stride)
    first = np.clip(first, 0, size).astype(np.int64)
    last = np.clip(last, -1, size - 1).astype(np.int64)
    width, height = (last - first + 1).max(axis=0, initial=0)
    column = first[:, 0, None, None] + np.arange(width)  # (G, 1, width)
    row = first[:, 1, None, None] + np.arange(height)[:, None]  # (G, height, 1)
    column, row = np.broadcast_arrays(column, row)
    points = np.stack((column, row), axis=-1).astype(np.float32) * np.float32(stride)

    distances = _distances(points, boxes[:, None, None])  # (G, height, width, 4)
    near = np.abs(points - middle[:, None, None]).max(axis=-1) < reach
    farthest = distances.max(axis=-1)
    for_level = (farthest >= limits[0]) & (farthest <= limits[1])
    on_grid = (column < hw[1]) & (row < hw[0])
    owner, i, j = np.nonzero(on_grid & (distances.min(axis=-1) > 0) & near & for_level)
    return row[owner, i, j] * hw[1] + column[owner, i, j], points[owner, i, j], owner


def _distances(points, boxes):
    """(..., 2) points and (..., 4) boxes -> (..., 4) distances to left, top, right, bottom."""
    return np.concatenate((points - boxes[..., :2], boxes[..., 2:] - points), axis=-1)


def _centerness(distances):
    """(P, 4) distances, all positive -> (P,). Source: FCOS (arXiv 2006.09214), equation 3."""
    pairs = rearrange(distances, "p (side axis) -> p axis side", side=2)
    return np.sqrt((pairs.min(axis=-1) / pairs.max(axis=-1)).prod(axis=-1))

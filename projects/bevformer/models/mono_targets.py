"""Which object each location of an image learns, as in FCOS.

Shape legend: I images, L levels, S locations of all levels, P positive locations of all images,
G ground truths of an image.
"""

from dataclasses import dataclass

import torch
from mmdet.core import reduce_mean
from mmdet.core.anchor import MlvlPointGenerator

_NOWHERE = 1e8


@dataclass(frozen=True)
class LocationTargets:
    """What the locations of I images should predict.

    Attributes:
        labels: (I * S,) long, class of the location's object; K is background.
        positive: (P,) long, locations with an object, among the I * S.
        positive_labels: (P,) long.
        locations: (P, 2) pixels.
        distances: (P, 4) to left, top, right and bottom of the 2D box, pixels.
        centerness: (P,) 1 in the middle of the 2D box, towards 0 at its border.
        weight_sum: the sum of `centerness`, averaged over all processes; at least 1e-6.
        intrinsics: (P, 3, 3) of the location's camera.
        rotation: (P, 3, 3) box to camera.
        center: (P, 3) metres, camera frame.
        center_uv: (P, 2) its pixels.
        size_wlh: (P, 3) metres.
        attribute: (P,) long, -1 where unknown.
        speed: (P,) m/s, NaN where unknown.
    """

    labels: torch.Tensor
    positive: torch.Tensor
    positive_labels: torch.Tensor
    locations: torch.Tensor
    distances: torch.Tensor
    centerness: torch.Tensor
    weight_sum: torch.Tensor
    intrinsics: torch.Tensor
    rotation: torch.Tensor
    center: torch.Tensor
    center_uv: torch.Tensor
    size_wlh: torch.Tensor
    attribute: torch.Tensor
    speed: torch.Tensor

    @classmethod
    def assign(
        cls,
        objects,
        level_hw,
        strides,
        num_classes,
        device,
        sizes_of_interest,
        center_sample=True,
        pos_radius=1.5,
    ):
        """Give each location the smallest object that it lies in and that is for its level.

        Args:
            objects: I dicts of arrays: intrinsics (3, 3); bbox (G, 4) x1, y1, x2, y2 in pixels;
                label (G,); rotation (G, 3, 3) box to camera; center (G, 3) metres, camera frame;
                size_wlh (G, 3) metres; attribute (G,), -1 unknown; speed (G,) m/s, NaN unknown.
            level_hw: L pairs (h, w).
            strides: pixels between the locations of each level.
            num_classes: K.
            device: of the result.
            sizes_of_interest: L pairs, least and largest distance to a side of the box that a level
                is for, pixels.
            center_sample: only locations near the middle of the 2D box count.
            pos_radius: so near, in strides, along each axis.

        Returns:
            LocationTargets.
        """
        generator = MlvlPointGenerator(strides, offset=0)
        points = generator.grid_priors(level_hw, device=device)
        radius, limits = [], []
        for level, level_points in enumerate(points):
            count = len(level_points)
            limits.append(level_points.new_tensor(sizes_of_interest[level]).expand(count, 2))
            reach = pos_radius * strides[level] if center_sample else _NOWHERE
            radius.append(level_points.new_full((count,), reach))
        points, limits, radius = torch.cat(points), torch.cat(limits), torch.cat(radius)

        images = [{k: _tensor(v, device) for k, v in image.items()} for image in objects]
        labels, positives, parts = [], [], []
        for i, image in enumerate(images):
            owner = _smallest_owner(points, limits, radius, image["bbox"])  # (S,), -1 for none
            here = (owner >= 0).nonzero(as_tuple=True)[0]
            owner = owner[here]
            label = torch.full((len(points),), num_classes, device=device)
            label[here] = image["label"][owner]
            labels.append(label)
            positives.append(here + i * len(points))
            parts.append(
                dict(
                    positive_labels=image["label"][owner],
                    locations=points[here],
                    distances=_distances(points[here], image["bbox"][owner]),
                    intrinsics=image["intrinsics"].expand(len(here), 3, 3),
                    **{
                        name: image[name][owner]
                        for name in ("rotation", "center", "size_wlh", "attribute", "speed")
                    },
                )
            )
        found = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        centerness = _centerness(found["distances"])
        projected = (found["intrinsics"] * found["center"][:, None, :]).sum(dim=-1)
        return cls(
            labels=torch.cat(labels),
            positive=torch.cat(positives),
            centerness=centerness,
            weight_sum=reduce_mean(centerness.sum()).clamp(min=1e-6),
            center_uv=projected[:, :2] / projected[:, 2:],
            **found,
        )


def _tensor(array, device):
    tensor = torch.as_tensor(array).to(device)
    return tensor.float() if tensor.is_floating_point() else tensor


def _distances(points, boxes):
    """(P, 2) points and (P, 4) boxes -> (P, 4) distances to left, top, right, bottom."""
    return torch.cat((points - boxes[..., :2], boxes[..., 2:] - points), dim=-1)


def _centerness(distances):
    """(P, 4) distances, all positive -> (P,). Source: FCOS (arXiv 2006.09214), equation 3."""
    horizontal, vertical = distances[:, [0, 2]], distances[:, [1, 3]]
    ratios = [pair.min(dim=-1).values / pair.max(dim=-1).values for pair in (horizontal, vertical)]
    return (ratios[0] * ratios[1]).sqrt()


def _smallest_owner(points, limits, radius, boxes):
    """Index of the object of each location of one image, -1 for none.

    (S, 2) points, (S, 2) limits and (S,) radius of their levels, (G, 4) boxes -> (S,) long.
    """
    if len(boxes) == 0:
        return torch.full((len(points),), -1, device=points.device)
    distances = _distances(points[:, None], boxes[None].expand(len(points), -1, -1))  # (S, G, 4)
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    near = (points[:, None] - middle).abs().max(dim=-1).values < radius[:, None]
    farthest = distances.max(dim=-1).values
    for_level = (farthest >= limits[:, :1]) & (farthest <= limits[:, 1:])
    candidate = (distances.min(dim=-1).values > 0) & near & for_level
    area = (boxes[:, 2:] - boxes[:, :2]).prod(dim=-1)
    areas = torch.where(candidate, area[None], torch.full_like(area, _NOWHERE)[None])
    smallest, owner = areas.min(dim=-1)
    return owner.masked_fill(smallest >= _NOWHERE, -1)

"""Losses of the DD3D head.

Shape legend: I images, S locations of all levels, P positive locations of all images, K classes.
"""

import torch
import torch.nn.functional as F
from mmdet.core import reduce_mean
from torch import nn

from projects.bevformer.geometry.camera_boxes import (
    box_corners,
    compose,
    quaternion_to_matrix,
    unproject,
    viewing_rotation,
)
from projects.bevformer.model.mm.focal_loss import TorchFocalLoss
from projects.bevformer.published import published


def giou_from_sides(predicted, true, added_pixels=0.0):
    """Generalised IoU of boxes that both contain a common point.

    mmdet's GIoULoss reads its weights back and copies its epsilon to the GPU, which both force a sync.

    Args:
        predicted, true: (P, 4) distances from the point to left, top, right, bottom, not negative.
        added_pixels: added to intersection and union in their quotient, pixels^2.

    Returns:
        (P,) in (-1, 1].

    Source: GIoU (arXiv 1902.09630), algorithm 2; `added_pixels`: AdelaiDet's FCOS, with 1.
    """

    def area(sides):
        left, top, right, bottom = sides.unbind(dim=-1)
        return (left + right) * (top + bottom)

    intersection = area(torch.minimum(predicted, true))
    union = (area(predicted) + area(true) - intersection).clamp(min=1e-6)
    hull = area(torch.maximum(predicted, true)).clamp(min=1e-6)
    iou = (intersection + added_pixels) / (union + added_pixels)
    return iou - (hull - union) / hull


@published(only={"loc_loss_type": "giou"})
class FCOS2DLoss(nn.Module):
    """Losses of FCOS2DHead.

    Args:
        focal_loss_alpha, focal_loss_gamma: of the classification loss.
        iou_added_pixels: see giou_from_sides; the original has 1.
    """

    def __init__(self, focal_loss_alpha=0.25, focal_loss_gamma=2.0, iou_added_pixels=0.0):
        super().__init__()
        self.iou_added_pixels = iou_added_pixels
        self.loss_cls = TorchFocalLoss(
            use_sigmoid=True, gamma=focal_loss_gamma, alpha=focal_loss_alpha
        )

    def forward(self, logits, distances, centerness, targets):
        """Losses.

        Args:
            logits: (I * S, K).
            distances: (P, 4) predicted at the positive locations.
            centerness: (P,) logits at the positive locations.
            targets: LocationTargets.

        Returns:
            dict of loss_cls, loss_box2d_reg, loss_centerness.
        """
        # On the device throughout: a Python number would have to be read back after the reduction.
        num_positive = reduce_mean(logits.new_full((), float(len(distances)))).clamp(min=1)
        giou = giou_from_sides(distances, targets.distances, self.iou_added_pixels)
        centered = F.binary_cross_entropy_with_logits(
            centerness, targets.centerness, reduction="sum"
        )
        return dict(
            loss_cls=self.loss_cls(logits, targets.labels, avg_factor=num_positive),
            loss_box2d_reg=_weighted(1 - giou, targets),
            loss_centerness=centered / num_positive,
        )


@published(
    ignores=("max_loss_per_group",),  # the original never applies it
    only={"class_agnostic": False, "predict_distance": False},
)
class FCOS3DLoss(nn.Module):
    """Losses of FCOS3DHead: disentangled corner losses, one factor predicted and the rest ground truth.

    Args:
        canon_box_sizes: K mean sizes, width, length, height in metres, in the order of the classes.
        min_depth, max_depth: metres, of predicted boxes.
        box3d_loss_weight: of each part of the box.
        conf3d_loss_weight: of the confidence.
        conf_3d_temperature: metres of corner distance at which a confidence should be 1 / e.
        smooth_l1_loss_beta: metres.
        divide_by_beta: see smooth_l1; the original does not.
        predict_allocentric_rot: the quaternion is relative to the viewing ray.
        scale_depth_by_focal_lengths: depths are predicted for pixels of one size.
        scale_depth_by_focal_lengths_factor: that size is 1 / factor.

    Source: DD3D (arXiv 2108.06417), section 3; disentangled losses: MonoDIS (arXiv 1905.12365).
    """

    def __init__(
        self,
        canon_box_sizes,
        min_depth=0.1,
        max_depth=80.0,
        box3d_loss_weight=2.0,
        conf3d_loss_weight=1.0,
        conf_3d_temperature=1.0,
        smooth_l1_loss_beta=0.05,
        divide_by_beta=True,
        predict_allocentric_rot=True,
        scale_depth_by_focal_lengths=True,
        scale_depth_by_focal_lengths_factor=500.0,
    ):
        super().__init__()
        self.register_buffer("canon_box_sizes", torch.tensor(canon_box_sizes), persistent=False)
        self.min_depth, self.max_depth = min_depth, max_depth
        self.box3d_loss_weight = box3d_loss_weight
        self.conf3d_loss_weight = conf3d_loss_weight
        self.conf_3d_temperature = conf_3d_temperature
        self.smooth_l1_loss_beta = smooth_l1_loss_beta
        self.divide_by_beta = divide_by_beta
        self.predict_allocentric_rot = predict_allocentric_rot
        self.focal_factor = (
            scale_depth_by_focal_lengths_factor if scale_depth_by_focal_lengths else None
        )

    def forward(self, box3d, targets):
        """Losses.

        Args:
            box3d: (P, 11) what FCOS3DHead predicts for the true class at the positive locations.
            targets: LocationTargets.

        Returns:
            dict of loss_box3d_quat, loss_box3d_proj_ctr, loss_box3d_depth, loss_box3d_size,
            loss_conf3d.
        """
        predicted = self._decode(box3d, targets)
        true = dict(
            quat=targets.rotation,
            proj_ctr=targets.center_uv,
            depth=targets.center[:, 2:],
            size=targets.size_wlh,
        )
        true_corners = box_corners(targets.rotation, targets.center, targets.size_wlh)
        losses = {}
        for part in true:
            corners = _corners(dict(true, **{part: predicted[part]}), targets)
            distance = smooth_l1(
                corners - true_corners, self.smooth_l1_loss_beta, self.divide_by_beta
            )
            losses[f"loss_box3d_{part}"] = self.box3d_loss_weight * _weighted(
                distance.mean(dim=(1, 2)), targets
            )
        with torch.no_grad():
            error = (_corners(predicted, targets) - true_corners).abs().mean(dim=(1, 2))
            confidence = torch.exp(-error / self.conf_3d_temperature)
        conf_loss = F.binary_cross_entropy_with_logits(box3d[:, 10], confidence, reduction="none")
        losses["loss_conf3d"] = self.conf3d_loss_weight * _weighted(conf_loss, targets)
        return losses

    def _decode(self, box3d, targets):
        """(P, 11) -> the parts of a box: rotation matrix, pixels, metres, metres."""
        quaternion, offset, depth, size, _ = box3d.split((4, 2, 1, 3, 1), dim=-1)
        rotation = quaternion_to_matrix(quaternion)
        center_uv = targets.locations + offset
        if self.predict_allocentric_rot:
            rays = unproject(center_uv, targets.inverse_intrinsics)
            rotation = compose(viewing_rotation(rays), rotation)
        if self.focal_factor is not None:
            depth = depth / ((1 / targets.focal).norm(dim=-1, keepdim=True) * self.focal_factor)
        return dict(
            quat=rotation,
            proj_ctr=center_uv,
            depth=depth.clamp(self.min_depth, self.max_depth),
            size=(size.tanh() + 1) * self.canon_box_sizes[targets.positive_labels],
        )


def _corners(box, targets):
    center = unproject(box["proj_ctr"], targets.inverse_intrinsics) * box["depth"]
    return box_corners(box["quat"], center, box["size"])


def _weighted(values, targets):
    """Sum over the positive locations, weighted and normalised by their centre-ness."""
    return (values * targets.centerness).sum() / targets.weight_sum


class NuscenesLoss(nn.Module):
    """Losses of attributes and speeds, over the locations whose object's value is known.

    Args:
        attr_loss_weight, speed_loss_weight: factors.
        attr_by_centerness: weigh attributes by centre-ness, as speeds always are; the original weighs
            all locations of a process alike.
    """

    def __init__(self, attr_loss_weight=0.2, speed_loss_weight=0.2, attr_by_centerness=True):
        super().__init__()
        self.attr_loss_weight = attr_loss_weight
        self.speed_loss_weight = speed_loss_weight
        self.attr_by_centerness = attr_by_centerness

    def forward(self, attributes, speeds, targets):
        """Losses.

        Args:
            attributes: (P, A) logits at the positive locations.
            speeds: (P,) m/s.
            targets: LocationTargets.

        Returns:
            dict of loss_attr, loss_speed.
        """
        known = targets.attribute >= 0
        attr = F.cross_entropy(attributes, targets.attribute.clamp(min=0), reduction="none")
        if not self.attr_by_centerness:
            attr = ((attr * known).sum() / known.sum().clamp(min=1)).expand_as(attr)
        known_speed = ~targets.speed.isnan()
        true_speed = targets.speed.where(known_speed, torch.zeros_like(targets.speed))
        speed = F.smooth_l1_loss(speeds, true_speed, reduction="none", beta=0.05)
        weights = targets.centerness
        return dict(
            loss_attr=self.attr_loss_weight * _mean_of_known(attr, known, weights),
            loss_speed=self.speed_loss_weight * _mean_of_known(speed, known_speed, weights),
        )


def smooth_l1(errors, beta, divide_by_beta=True):
    """Smooth L1 loss of errors, elementwise: x^2 / (2 beta) below beta, |x| - beta / 2 above.

    Args:
        errors: any shape.
        beta: where the quadratic part ends.
        divide_by_beta: False leaves x^2 / 2 below beta, with a jump at beta, as the original does.

    Source: Fast R-CNN (arXiv 1504.08083), equation 3, scaled by beta.
    """
    if divide_by_beta:
        return F.smooth_l1_loss(errors, torch.zeros_like(errors), reduction="none", beta=beta)
    size = errors.abs()
    return torch.where(size < beta, 0.5 * size**2, size - 0.5 * beta)


def _mean_of_known(losses, known, weights):
    """(P,) losses -> their mean over the locations whose object's value is known, weighted."""
    weights = weights * known
    weight_sum = reduce_mean(weights.sum()).clamp(min=1e-6)
    return (losses * weights).sum() / weight_sum

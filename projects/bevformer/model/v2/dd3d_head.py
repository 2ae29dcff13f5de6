"""The perspective head of BEVFormer v2: DD3D on the features of single cameras, for training only.

Shape legend: I images, L levels, C channels, S locations of all levels, P positive locations of all
images, G ground truths of an image, K classes.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from mmcv.cnn import build_norm_layer
from mmcv.runner import BaseModule
from mmdet.core import reduce_mean
from mmdet.models.builder import HEADS
from torch import nn

from projects.bevformer.geometry.camera_boxes import (
    box_corners,
    compose,
    quaternion_to_matrix,
    unproject,
    viewing_rotation,
)
from projects.bevformer.model.mm.focal_loss import TorchFocalLoss
from projects.bevformer.model.mm.sync_batch_norm import on_any_device
from projects.bevformer.model.v2.dd3d_targets import LocationTargets

NUM_ATTRIBUTES = 3


class _Factor(nn.Module):
    """A learned factor."""

    def __init__(self, initial=1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([float(initial)]))

    def forward(self, x):
        return x * self.scale


class _Offset(nn.Module):
    """A learned summand."""

    def __init__(self, initial):
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([float(initial)]))

    def forward(self, x):
        return x + self.bias


class _TowerConv(nn.Conv2d):
    """3x3 convolution that the levels share, a norm for each level, ReLU."""

    def __init__(self, channels, norm, num_levels):
        super().__init__(channels, channels, 3, padding=1, bias=False)
        norm_cfg = on_any_device(dict(type=norm))
        self.norm = nn.ModuleList(
            [build_norm_layer(norm_cfg, channels)[1] for _ in range(num_levels)]
        )
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x, level):
        return F.relu(self.norm[level](super().forward(x)))


def _tower(channels, norm, num_levels, num_convs):
    return nn.ModuleList([_TowerConv(channels, norm, num_levels) for _ in range(num_convs)])


def _climb(tower, x, level):
    for conv in tower:
        x = conv(x, level)
    return x


def _predictor(in_channels, out_channels, bias=True):
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if bias:
        nn.init.zeros_(conv.bias)
    return conv


class FCOS2DHead(BaseModule):
    """Class, 2D box and centre-ness at every location.

    Args:
        num_classes: K.
        in_channels: C.
        strides: pixels between the locations of each level.
        num_cls_convs: convolutions before the classes.
        num_box_convs: convolutions before the boxes.
        norm: type of the norm layers.
        use_deformable: accepted because published configs give it; only False is possible.
        use_scale: accepted because published configs give it; only True is possible.
        box2d_scale_init_factor: distances start at this many strides.

    Raises:
        ValueError: `use_deformable`, or not `use_scale`.

    Source: FCOS (arXiv 2006.09214).
    """

    def __init__(
        self,
        num_classes,
        in_channels,
        strides,
        num_cls_convs=4,
        num_box_convs=4,
        norm="SyncBN",
        use_deformable=False,
        use_scale=True,
        box2d_scale_init_factor=1.0,
    ):
        super().__init__()
        _check_switches(use_deformable, use_scale)
        num_levels = len(strides)
        self.cls_tower = _tower(in_channels, norm, num_levels, num_cls_convs)
        self.box2d_tower = _tower(in_channels, norm, num_levels, num_box_convs)
        self.cls_logits = _predictor(in_channels, num_classes)
        self.box2d_reg = _predictor(in_channels, 4)
        self.centerness = _predictor(in_channels, 1)
        self.scales_box2d_reg = nn.ModuleList(
            [_Factor(stride * box2d_scale_init_factor) for stride in strides]
        )

    def forward(self, feats):
        """Predict.

        Args:
            feats: L tensors (I, C, h, w).

        Returns:
            logits: L tensors (I, K, h, w).
            distances: L tensors (I, 4, h, w) to left, top, right, bottom of the box, pixels.
            centerness: L tensors (I, 1, h, w) logits.
            cls_features: L tensors (I, C, h, w).
        """
        outputs = []
        for level, feat in enumerate(feats):
            cls_features = _climb(self.cls_tower, feat, level)
            box_features = _climb(self.box2d_tower, feat, level)
            distances = self.scales_box2d_reg[level](self.box2d_reg(box_features))
            outputs.append(
                (
                    self.cls_logits(cls_features),
                    F.relu(distances),
                    self.centerness(box_features),
                    cls_features,
                )
            )
        return tuple(list(output) for output in zip(*outputs))


class FCOS3DHead(BaseModule):
    """A 3D box of every class, and the confidence in it, at every location.

    Args:
        num_classes: K.
        in_channels: C.
        strides: pixels between the locations of each level.
        num_convs: convolutions before the boxes.
        norm: type of the norm layers.
        use_scale: accepted because published configs give it; only True is possible.
        depth_scale_init_factor: depths start with this share of their standard deviation.
        proj_ctr_scale_init_factor: centres start with this many strides.
        use_per_level_predictors: the levels share nothing but the convolutions.
        class_agnostic: accepted because published configs give it; only False is possible.
        use_deformable: accepted because published configs give it; only False is possible.
        mean_depth_per_level: metres.
        std_depth_per_level: metres.

    Raises:
        ValueError: a switch has a value that is not possible, or there is not one depth a level.

    Source: DD3D (arXiv 2108.06417), section 3.
    """

    def __init__(
        self,
        num_classes,
        in_channels,
        strides,
        mean_depth_per_level,
        std_depth_per_level,
        num_convs=4,
        norm="SyncBN",
        use_scale=True,
        depth_scale_init_factor=0.3,
        proj_ctr_scale_init_factor=1.0,
        use_per_level_predictors=False,
        class_agnostic=False,
        use_deformable=False,
    ):
        super().__init__()
        _check_switches(use_deformable, use_scale)
        if class_agnostic:
            raise ValueError("FCOS3DHead predicts a box of every class: set class_agnostic=False")
        num_levels = len(strides)
        if not len(mean_depth_per_level) == len(std_depth_per_level) == num_levels:
            raise ValueError(f"FCOS3DHead needs depths for {num_levels} levels")
        self.use_per_level_predictors = use_per_level_predictors
        self.num_classes = num_classes
        self.register_buffer("mean_depth_per_level", torch.tensor(mean_depth_per_level))
        self.register_buffer("std_depth_per_level", torch.tensor(std_depth_per_level))
        self.box3d_tower = _tower(in_channels, norm, num_levels, num_convs)

        def predictors(size, bias=True):
            number = num_levels if use_per_level_predictors else 1
            return nn.ModuleList(
                [_predictor(in_channels, size * num_classes, bias) for _ in range(number)]
            )

        self.box3d_quat = predictors(4)
        self.box3d_ctr = predictors(2)
        self.box3d_depth = predictors(1, bias=False)  # offsets_depth is the bias
        self.box3d_size = predictors(3)
        self.box3d_conf = predictors(1)
        self.scales_proj_ctr = nn.ModuleList(
            [_Factor(stride * proj_ctr_scale_init_factor) for stride in strides]
        )
        self.scales_size = nn.ModuleList([_Factor() for _ in strides])
        self.scales_conf = nn.ModuleList([_Factor() for _ in strides])
        self.scales_depth = nn.ModuleList(
            [_Factor(std * depth_scale_init_factor) for std in std_depth_per_level]
        )
        self.offsets_depth = nn.ModuleList([_Offset(mean) for mean in mean_depth_per_level])

    def forward(self, feats):
        """Predict.

        Args:
            feats: L tensors (I, C, h, w).

        Returns:
            L tensors (I, 11, K, h, w): quaternion (4), centre from the location (2, pixels), depth (1,
            metres at the reference focal length), size (3), confidence (1).
        """
        outputs = []
        for level, feat in enumerate(feats):
            features = _climb(self.box3d_tower, feat, level)
            shared = level if self.use_per_level_predictors else 0
            depth = self.scales_depth[level](self.box3d_depth[shared](features))
            parts = (
                self.box3d_quat[shared](features),
                self.scales_proj_ctr[level](self.box3d_ctr[shared](features)),
                self.offsets_depth[level](depth),
                self.scales_size[level](self.box3d_size[shared](features)),
                self.scales_conf[level](self.box3d_conf[shared](features)),
            )
            outputs.append(
                torch.cat(
                    [
                        rearrange(part, "i (f k) h w -> i f k h w", k=self.num_classes)
                        for part in parts
                    ],
                    dim=1,
                )
            )
        return outputs


def _check_switches(use_deformable, use_scale):
    if use_deformable or not use_scale:
        raise ValueError("the DD3D head has use_deformable=False and use_scale=True only")


def giou_from_sides(predicted, true):
    """Generalised IoU of boxes that both contain a common point.

    mmdet's GIoULoss reads its weights back and copies its epsilon to the GPU, which both force a sync.

    Args:
        predicted, true: (P, 4) distances from the point to left, top, right, bottom, not negative.

    Returns:
        (P,) in (-1, 1].

    Source: GIoU (arXiv 1902.09630), algorithm 2.
    """

    def area(sides):
        left, top, right, bottom = sides.unbind(dim=-1)
        return (left + right) * (top + bottom)

    overlap = area(torch.minimum(predicted, true))
    union = (area(predicted) + area(true) - overlap).clamp(min=1e-6)
    hull = area(torch.maximum(predicted, true)).clamp(min=1e-6)
    return overlap / union - (hull - union) / hull


class FCOS2DLoss(nn.Module):
    """Losses of FCOS2DHead.

    Args:
        focal_loss_alpha, focal_loss_gamma: of the classification loss.
        loc_loss_type: accepted because published configs give it; only "giou" is possible.

    Raises:
        ValueError: another `loc_loss_type`.
    """

    def __init__(self, focal_loss_alpha=0.25, focal_loss_gamma=2.0, loc_loss_type="giou"):
        super().__init__()
        if loc_loss_type != "giou":
            raise ValueError(f'loc_loss_type must be "giou", got {loc_loss_type!r}')
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
        giou = giou_from_sides(distances, targets.distances)
        centered = F.binary_cross_entropy_with_logits(
            centerness, targets.centerness, reduction="sum"
        )
        return dict(
            loss_cls=self.loss_cls(logits, targets.labels, avg_factor=num_positive),
            loss_box2d_reg=_weighted(1 - giou, targets),
            loss_centerness=centered / num_positive,
        )


class FCOS3DLoss(nn.Module):
    """Losses of FCOS3DHead: corner distances with one part of the box predicted and the others true.

    Args:
        canon_box_sizes: K mean sizes, width, length, height in metres, in the order of the classes.
        min_depth, max_depth: metres, of predicted boxes.
        box3d_loss_weight: of each part of the box.
        conf3d_loss_weight: of the confidence.
        conf_3d_temperature: metres of corner distance at which a confidence should be 1 / e.
        smooth_l1_loss_beta: metres.
        max_loss_per_group: accepted because published configs give it; the original never applies it.
        predict_allocentric_rot: the quaternion is relative to the viewing ray.
        scale_depth_by_focal_lengths: depths are predicted for pixels of one size.
        scale_depth_by_focal_lengths_factor: that size is 1 / factor.
        class_agnostic, predict_distance: accepted because published configs give them; only False is
            possible.

    Raises:
        ValueError: `class_agnostic` or `predict_distance`.

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
        max_loss_per_group=20.0,
        predict_allocentric_rot=True,
        scale_depth_by_focal_lengths=True,
        scale_depth_by_focal_lengths_factor=500.0,
        class_agnostic=False,
        predict_distance=False,
    ):
        super().__init__()
        if class_agnostic or predict_distance:
            raise ValueError("FCOS3DLoss has class_agnostic=False and predict_distance=False only")
        self.register_buffer("canon_box_sizes", torch.tensor(canon_box_sizes), persistent=False)
        self.min_depth, self.max_depth = min_depth, max_depth
        self.box3d_loss_weight = box3d_loss_weight
        self.conf3d_loss_weight = conf3d_loss_weight
        self.conf_3d_temperature = conf_3d_temperature
        self.smooth_l1_loss_beta = smooth_l1_loss_beta
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
            distance = F.smooth_l1_loss(
                corners, true_corners, reduction="none", beta=self.smooth_l1_loss_beta
            )
            losses[f"loss_box3d_{part}"] = self.box3d_loss_weight * _weighted(
                distance.mean(dim=(1, 2)), targets
            )
        with torch.no_grad():
            error = (_corners(predicted, targets) - true_corners).abs().mean(dim=(1, 2))
            confidence = torch.exp(-error / self.conf_3d_temperature)
        surprise = F.binary_cross_entropy_with_logits(box3d[:, 10], confidence, reduction="none")
        losses["loss_conf3d"] = self.conf3d_loss_weight * _weighted(surprise, targets)
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


@HEADS.register_module()
class NuscenesDD3D(BaseModule):
    """DD3D with attributes and speeds: losses on single images that supervise backbone and neck.

    It has no inference: BEVFormer v2 detects with the BEV head alone.

    Args:
        num_classes: K.
        in_channels: C.
        strides: pixels between the locations of each level.
        fcos2d_cfg: arguments of FCOS2DHead.
        fcos2d_loss_cfg: arguments of FCOS2DLoss.
        fcos3d_cfg: arguments of FCOS3DHead.
        fcos3d_loss_cfg: arguments of FCOS3DLoss.
        target_assign_cfg: arguments of LocationTargets.assign: center_sample, pos_radius,
            sizes_of_interest.
        nusc_loss_weight: dict(attr_loss_weight=..., speed_loss_weight=...).
        box3d_on: accepted because published configs give it; only True is possible.
        feature_locations_offset: accepted because published configs give it; only "none" is possible:
            a location is the top left corner of its cell.

    Raises:
        ValueError: an option has a value that is not possible, or a list another length than there are
            classes or strides.

    Source: DD3D (arXiv 2108.06417); BEVFormer v2 (arXiv 2211.10439), section 3.2. The parameter names
    are those of the original.
    """

    def __init__(
        self,
        num_classes,
        in_channels,
        strides,
        fcos2d_cfg,
        fcos2d_loss_cfg,
        fcos3d_cfg,
        fcos3d_loss_cfg,
        target_assign_cfg,
        nusc_loss_weight,
        box3d_on=True,
        feature_locations_offset="none",
        init_cfg=None,
    ):
        super().__init__(init_cfg)
        if not box3d_on or feature_locations_offset != "none":
            raise ValueError('NuscenesDD3D has box3d_on=True, feature_locations_offset="none" only')
        if len(fcos3d_loss_cfg["canon_box_sizes"]) != num_classes:
            raise ValueError(f"canon_box_sizes must hold {num_classes} sizes, one a class")
        if len(target_assign_cfg["sizes_of_interest"]) != len(strides):
            raise ValueError(f"sizes_of_interest must hold {len(strides)} pairs, one a stride")
        self.num_classes = num_classes
        self.strides = list(strides)
        self.target_assign_cfg = dict(target_assign_cfg)
        self.attr_loss_weight = nusc_loss_weight["attr_loss_weight"]
        self.speed_loss_weight = nusc_loss_weight["speed_loss_weight"]
        self.fcos2d_head = FCOS2DHead(num_classes, in_channels, strides, **fcos2d_cfg)
        self.fcos2d_loss = FCOS2DLoss(**fcos2d_loss_cfg)
        self.fcos3d_head = FCOS3DHead(num_classes, in_channels, strides, **fcos3d_cfg)
        self.fcos3d_loss = FCOS3DLoss(**fcos3d_loss_cfg)
        self.attr_logits = _predictor(in_channels, NUM_ATTRIBUTES)
        self.speed = _predictor(in_channels, 1)

    def forward(self, feats):
        """Predict at every location, in float32.

        Args:
            feats: L tensors (I, C, h, w).

        Returns:
            dict of tensors whose first dimension is I * S, image by image and level by level in
            each: logits (K), distances (4), centerness (), box3d (11, K), attributes (3), speeds ().
        """
        logits, distances, centerness, cls_features = self.fcos2d_head(feats)
        box3d = self.fcos3d_head(feats)
        attributes = [self.attr_logits(feature) for feature in cls_features]
        speeds = [F.relu(self.speed(feature)) for feature in cls_features]
        return dict(
            logits=_by_location(logits, "i k h w -> i (h w) k"),
            distances=_by_location(distances, "i d h w -> i (h w) d"),
            centerness=_by_location(centerness, "i 1 h w -> i (h w)"),
            box3d=_by_location(box3d, "i f k h w -> i (h w) f k"),
            attributes=_by_location(attributes, "i a h w -> i (h w) a"),
            speeds=_by_location(speeds, "i 1 h w -> i (h w)"),
        )

    def loss(self, feats, objects):
        """Losses of I images.

        Args:
            feats: L tensors (I, C, h, w), one level a stride.
            objects: I dicts of arrays, see `LocationTargets.assign`.

        Returns:
            dict of losses.

        Raises:
            ValueError: not one level a stride, or not one dict an image.
        """
        if len(feats) != len(self.strides) or len(feats[0]) != len(objects):
            raise ValueError(
                f"NuscenesDD3D has {len(self.strides)} strides and {len(objects)} images with objects, "
                f"got features of {len(feats)} levels and {len(feats[0])} images"
            )
        predicted = self(feats)
        targets = LocationTargets.assign(
            objects,
            [feat.shape[-2:] for feat in feats],
            self.strides,
            self.num_classes,
            feats[0].device,
            **self.target_assign_cfg,
        )
        at = {name: values.index_select(0, targets.positive) for name, values in predicted.items()}
        of_class = targets.positive_labels[:, None, None].expand(-1, at["box3d"].shape[1], 1)
        losses = self.fcos2d_loss(predicted["logits"], at["distances"], at["centerness"], targets)
        losses.update(self.fcos3d_loss(at["box3d"].gather(2, of_class).squeeze(2), targets))
        losses["loss_attr"] = self.attr_loss_weight * _known_only(
            F.cross_entropy(at["attributes"], targets.attribute.clamp(min=0), reduction="none"),
            targets.attribute >= 0,
            targets.centerness,
        )
        losses["loss_speed"] = self.speed_loss_weight * _known_only(
            F.smooth_l1_loss(
                at["speeds"], torch.nan_to_num(targets.speed), reduction="none", beta=0.05
            ),
            torch.isfinite(targets.speed),
            targets.centerness,
        )
        return losses


def _by_location(levels, pattern):
    """L maps -> (I * S, ...) float32."""
    return torch.cat([rearrange(level.float(), pattern) for level in levels], dim=1).flatten(0, 1)


def _known_only(losses, known, weights):
    """(P,) losses -> their mean over the locations whose object's value is known, weighted."""
    weights = weights * known
    weight_sum = reduce_mean(weights.sum()).clamp(min=1e-6)
    return (losses * weights).sum() / weight_sum

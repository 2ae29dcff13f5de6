"""The perspective head of BEVFormer v2: DD3D on the features of single cameras, for training only.

Shape legend: I images, L levels, C channels, S locations of all levels, P positive locations of all
images, G ground truths of an image, K classes.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from mmcv.cnn import build_norm_layer
from mmcv.runner import BaseModule
from mmdet.models.builder import HEADS
from torch import nn

from projects.bevformer.model.v2.dd3d_losses import FCOS2DLoss, FCOS3DLoss, NuscenesLoss
from projects.bevformer.model.v2.dd3d_targets import LocationAssigner
from projects.bevformer.published import published

NUM_ATTRIBUTES = 3
_SWITCHES = {"use_deformable": False, "use_scale": True}


class _Scale(nn.Module):
    """A learned scale."""

    def __init__(self, initial=1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([float(initial)]))

    def forward(self, x):
        return x * self.scale


class _Offset(nn.Module):
    """A learned offset."""

    def __init__(self, initial):
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([float(initial)]))

    def forward(self, x):
        return x + self.bias


class _TowerConv(nn.Conv2d):
    """3x3 convolution that the levels share, a norm for each level, ReLU."""

    def __init__(self, channels, norm, num_levels):
        super().__init__(channels, channels, 3, padding=1, bias=False)
        norm_cfg = dict(type="SyncBNOnGPU" if norm == "SyncBN" else norm)
        self.norm = nn.ModuleList(
            [build_norm_layer(norm_cfg, channels)[1] for _ in range(num_levels)]
        )
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x, level):
        return F.relu(self.norm[level](super().forward(x)))


def _tower(channels, norm, num_levels, num_convs):
    return nn.ModuleList([_TowerConv(channels, norm, num_levels) for _ in range(num_convs)])


def _run_tower(tower, x, level):
    for conv in tower:
        x = conv(x, level)
    return x


def _predictor(in_channels, out_channels, bias=True):
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if bias:
        nn.init.zeros_(conv.bias)
    return conv


@published(only=_SWITCHES)
class FCOS2DHead(BaseModule):
    """Class, 2D box and centre-ness at every location.

    Args:
        num_classes: K.
        in_channels: C.
        strides: pixels between the locations of each level.
        num_cls_convs: convolutions before the classes.
        num_box_convs: convolutions before the boxes.
        norm: type of the norm layers.
        box2d_scale_init_factor: distances start at this many strides.

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
        box2d_scale_init_factor=1.0,
    ):
        super().__init__()
        num_levels = len(strides)
        self.cls_tower = _tower(in_channels, norm, num_levels, num_cls_convs)
        self.box2d_tower = _tower(in_channels, norm, num_levels, num_box_convs)
        self.cls_logits = _predictor(in_channels, num_classes)
        self.box2d_reg = _predictor(in_channels, 4)
        self.centerness = _predictor(in_channels, 1)
        self.scales_box2d_reg = nn.ModuleList(
            [_Scale(stride * box2d_scale_init_factor) for stride in strides]
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
            cls_features = _run_tower(self.cls_tower, feat, level)
            box_features = _run_tower(self.box2d_tower, feat, level)
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


@published(only={**_SWITCHES, "class_agnostic": False})
class FCOS3DHead(BaseModule):
    """A 3D box of every class, and the confidence in it, at every location.

    Args:
        num_classes: K.
        in_channels: C.
        strides: pixels between the locations of each level.
        num_convs: convolutions before the boxes.
        norm: type of the norm layers.
        depth_scale_init_factor: depths start with this share of their standard deviation.
        proj_ctr_scale_init_factor: centres start with this many strides.
        use_per_level_predictors: the levels share nothing but the convolutions.
        mean_depth_per_level: metres.
        std_depth_per_level: metres.

    Raises:
        ValueError: there is not one depth per level.

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
        depth_scale_init_factor=0.3,
        proj_ctr_scale_init_factor=1.0,
        use_per_level_predictors=False,
    ):
        super().__init__()
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
            [_Scale(stride * proj_ctr_scale_init_factor) for stride in strides]
        )
        self.scales_size = nn.ModuleList([_Scale() for _ in strides])
        self.scales_conf = nn.ModuleList([_Scale() for _ in strides])
        self.scales_depth = nn.ModuleList(
            [_Scale(std * depth_scale_init_factor) for std in std_depth_per_level]
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
            features = _run_tower(self.box3d_tower, feat, level)
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


@HEADS.register_module()
@published(only={"box3d_on": True, "feature_locations_offset": "none"})
class NuscenesDD3D(BaseModule):
    """DD3D with attributes and speeds: losses on single images that supervise backbone and neck.

    It has no inference: BEVFormer v2 detects with the BEV head only. A location is the top left corner of
    its cell.

    Args:
        num_classes: K.
        in_channels: C.
        strides: pixels between the locations of each level.
        fcos2d_cfg: arguments of FCOS2DHead.
        fcos2d_loss_cfg: arguments of FCOS2DLoss.
        fcos3d_cfg: arguments of FCOS3DHead.
        fcos3d_loss_cfg: arguments of FCOS3DLoss.
        target_assign_cfg: arguments of LocationAssigner: center_sample, pos_radius,
            sizes_of_interest.
        nusc_loss_weight: arguments of NuscenesLoss.

    Raises:
        ValueError: a list has another length than there are classes or strides.

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
        init_cfg=None,
    ):
        super().__init__(init_cfg)
        if len(fcos3d_loss_cfg["canon_box_sizes"]) != num_classes:
            raise ValueError(f"canon_box_sizes must hold {num_classes} sizes, one per class")
        if len(target_assign_cfg["sizes_of_interest"]) != len(strides):
            raise ValueError(f"sizes_of_interest must hold {len(strides)} pairs, one per stride")
        self.num_classes = num_classes
        self.strides = list(strides)
        self.assigner = LocationAssigner(self.strides, num_classes, **target_assign_cfg)
        self.fcos2d_head = FCOS2DHead(num_classes, in_channels, strides, **fcos2d_cfg)
        self.fcos2d_loss = FCOS2DLoss(**fcos2d_loss_cfg)
        self.fcos3d_head = FCOS3DHead(num_classes, in_channels, strides, **fcos3d_cfg)
        self.fcos3d_loss = FCOS3DLoss(**fcos3d_loss_cfg)
        self.attr_logits = _predictor(in_channels, NUM_ATTRIBUTES)
        self.speed = _predictor(in_channels, 1)
        self.nusc_loss = NuscenesLoss(**nusc_loss_weight)

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
            objects: I dicts of arrays, see LocationAssigner.

        Returns:
            dict of losses.

        Raises:
            ValueError: not one level a stride, or not one dict an image.
        """
        if len(feats) != len(self.strides) or len(feats[0]) != len(objects):
            expected = f"{len(self.strides)} levels of {len(objects)} images"
            raise ValueError(f"need {expected}, got {len(feats)} of {len(feats[0])}")
        predicted = self(feats)
        level_hw = [feat.shape[-2:] for feat in feats]
        targets = self.assigner(objects, level_hw, feats[0].device)
        at = {name: values.index_select(0, targets.positive) for name, values in predicted.items()}
        of_class = targets.positive_labels[:, None, None].expand(-1, at["box3d"].shape[1], 1)
        losses = self.fcos2d_loss(predicted["logits"], at["distances"], at["centerness"], targets)
        losses.update(self.fcos3d_loss(at["box3d"].gather(2, of_class).squeeze(2), targets))
        losses.update(self.nusc_loss(at["attributes"], at["speeds"], targets))
        return losses


def _by_location(levels, pattern):
    """L maps -> (I * S, ...) float32."""
    return torch.cat([rearrange(level.float(), pattern) for level in levels], dim=1).flatten(0, 1)

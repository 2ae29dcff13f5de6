"""The detection head: BEV and object queries, box branches, losses, boxes.

Shape legend: B batch, N cameras, C channels, Q BEV queries (= Hb * Wb), O object queries,
R groups of object queries, X decoder layers, K classes, G ground truths.
"""

import copy
from dataclasses import replace

import torch
from einops import rearrange
from mmcv.cnn.bricks.transformer import build_positional_encoding
from mmcv.runner import BaseModule
from mmdet.core import build_assigner, build_bbox_coder, reduce_mean
from mmdet.models.builder import HEADS, build_loss
from mmdet.models.utils import build_transformer
from mmdet.models.utils.transformer import inverse_sigmoid
from torch import nn

from projects.bevformer.geometry.boxes import (
    CODE_SIZE,
    CX,
    CY,
    CZ,
    VX,
    encode_boxes,
    new_to_old_boxes,
    old_to_new_boxes,
)
from projects.bevformer.model.frame import Frame
from projects.bevformer.model.mm.norms import WeightPrecisionLayerNorm
from projects.bevformer.published import published
from projects.bevformer.transfer import upload


@HEADS.register_module(name=["BEVFormerHead", "BEVFormerHead_GroupDETR"])
@published(ignores=("test_cfg",), only={"as_two_stage": False}, unweighted=("loss_iou",))
@published(only={"code_size": CODE_SIZE}, why="a box has ten code columns")
@published(only={"num_cls_fcs": 2}, why="num_reg_fcs is the number of layers of both branches")
class BEVFormerHead(BaseModule):
    """Encodes frames into a BEV and detects objects in it.

    The network uses the old box convention (geometry.boxes); `loss` takes and `get_bboxes` returns
    boxes in the mmdet3d >= 1.0rc0 convention.

    Args:
        num_classes: K.
        in_channels: C.
        num_query: O.
        bev_h: rows of the BEV grid.
        bev_w: columns of the BEV grid.
        transformer: config of the PerceptionTransformer.
        positional_encoding: config of the BEV queries' positional encoding.
        bbox_coder: config of the box coder; its `pc_range` is the detection range.
        loss_cls: config of the classification loss on logits.
        loss_bbox: config of the box code loss.
        train_cfg: dict(assigner=...), the config of the matcher; None for inference only.
        with_box_refine: each decoder layer has branches of its own that refine the layer before;
            otherwise the layers share one.
        sync_cls_avg_factor: average the number of positives over all processes.
        code_weights: 10 loss weights of the box code columns.
        num_reg_fcs: hidden layers of the branches.
        group_detr: R. In training R groups of O queries each are matched on their own, which gives
            every ground truth R positives; at test time only the first group is used.

    Raises:
        ValueError: an option has an impossible value. The detector checks that the parts fit each other.

    Source: BEVFormer (arXiv 2203.17270), section 3.5; DETR3D (arXiv 2110.06922), section 3.3;
    Group DETR (arXiv 2207.13085).
    """

    def __init__(
        self,
        num_classes,
        in_channels,
        transformer,
        positional_encoding,
        bbox_coder,
        loss_cls,
        loss_bbox,
        num_query=900,
        bev_h=30,
        bev_w=30,
        train_cfg=None,
        with_box_refine=False,
        sync_cls_avg_factor=False,
        code_weights=(1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2),
        num_reg_fcs=2,
        group_detr=1,
        init_cfg=None,
    ):
        super().__init__(init_cfg)
        if len(code_weights) != CODE_SIZE:
            raise ValueError(f"code_weights must hold {CODE_SIZE} numbers, got {len(code_weights)}")
        if not loss_cls.get("use_sigmoid", False):
            raise ValueError("BEVFormerHead needs a sigmoid classification loss: use_sigmoid=True")
        if num_query < 1 or group_detr < 1:
            raise ValueError(f"num_query ({num_query}), group_detr ({group_detr}) must be >= 1")
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.bev_h, self.bev_w = bev_h, bev_w
        self.num_query = num_query
        self.group_detr = group_detr
        self.with_box_refine = with_box_refine
        self.sync_cls_avg_factor = sync_cls_avg_factor
        self.assigner = build_assigner(train_cfg["assigner"]) if train_cfg else None
        self.bbox_coder = build_bbox_coder(bbox_coder)
        self.pc_range = list(self.bbox_coder.pc_range)
        self.loss_cls = build_loss(loss_cls)
        self.loss_bbox = build_loss(loss_bbox)

        self.transformer = build_transformer(transformer)
        self.positional_encoding = build_positional_encoding(positional_encoding)
        self.bev_embedding = nn.Embedding(bev_h * bev_w, in_channels)
        self.query_embedding = nn.Embedding(num_query * group_detr, in_channels * 2)
        self.code_weights = nn.Parameter(
            torch.tensor(code_weights, dtype=torch.float32), requires_grad=False
        )
        num_layers = len(self.transformer.decoder.layers)
        self.cls_branches = _one_per_layer(
            _cls_branch(in_channels, num_reg_fcs, num_classes), num_layers, with_box_refine
        )
        self.reg_branches = _one_per_layer(
            _reg_branch(in_channels, num_reg_fcs), num_layers, with_box_refine
        )

    def init_weights(self):
        """Initialise the parts; logits start at the prior probability 0.01."""
        super().init_weights()
        for branch in self.cls_branches:
            nn.init.constant_(branch[-1].bias, -torch.tensor((1 - 0.01) / 0.01).log().item())

    def forward(self, mlvl_feats, img_metas, prev_bev=None, only_bev=False):
        """Encode one frame and detect objects; the signature of the published code.

        Args:
            mlvl_feats: L tensors (B, N, C, h, w).
            img_metas: B metas with relative `can_bus`, `lidar2img` and `img_shape`.
            prev_bev: (B, Q, C) previous BEV of all samples, or None.
            only_bev: stop after the encoder.

        Returns:
            What `encode` returns if `only_bev`, else what `detect` returns.
        """
        frame = Frame.from_metas(img_metas, device=mlvl_feats[0].device)
        bev = self.encode(mlvl_feats, replace(frame, has_prev=True), prev_bev)
        return bev if only_bev else self.detect(bev)

    def encode(self, feats, frame, prev_bev=None):
        """The BEV features (B, Q, C) of one frame; arguments as in `frame_context`."""
        return self.transformer.encoder(self.frame_context(feats, frame, prev_bev))

    def frame_context(self, feats, frame, prev_bev=None):
        """What the encoder takes.

        Args:
            feats: L tensors (B, N, C, h, w).
            frame: Frame.
            prev_bev: (B, Q, C) BEV features of the previous frame, or None.

        Returns:
            FrameContext.
        """
        bev_hw = self.bev_h, self.bev_w
        mask = feats[0].new_zeros((len(feats[0]), *bev_hw))
        bev_pos = self.positional_encoding(mask).flatten(2).transpose(1, 2)  # (B, Q, C)
        bev_queries = rearrange(self.bev_embedding.weight, "(h w) c -> h w c", h=self.bev_h)
        return self.transformer.frame_context(feats, bev_queries, bev_pos, frame, prev_bev)

    def find_visible(self, frames):
        """The frames with their visible queries, computed with one host-device sync."""
        return self.transformer.encoder.find_visible(frames, (self.bev_h, self.bev_w))

    def detect(self, bev):
        """Detect objects in a BEV.

        Args:
            bev: (B, Q, C) BEV features.

        Returns:
            dict: bev_embed (B, Q, C), all_cls_scores (X, B, R * O, K) logits, all_bbox_preds
            (X, B, R * O, 10) box codes in metres, old convention; the last two float32. R is 1 in eval
            mode.
        """
        num_groups = self.group_detr if self.training else 1
        states, references = self.transformer.decode(
            bev,
            (self.bev_h, self.bev_w),
            self.query_embedding.weight[: num_groups * self.num_query],
            self.reg_branches if self.with_box_refine else None,
            num_groups,
        )
        return dict(
            bev_embed=bev,
            all_cls_scores=torch.stack(
                [branch(state).float() for branch, state in zip(self.cls_branches, states)]
            ),
            all_bbox_preds=torch.stack(
                [
                    self._to_metres(branch(state).float(), reference)
                    for branch, state, reference in zip(self.reg_branches, states, references)
                ]
            ),
        )

    def _to_metres(self, raw, reference_points):
        """(B, O, 10) branch output and (B, O, 3) reference fractions -> (B, O, 10) box code."""
        x_min, y_min, z_min, x_max, y_max, z_max = self.pc_range
        reference = inverse_sigmoid(reference_points)
        columns = list(raw.unbind(dim=-1))
        for column, axis, low, high in (
            (CX, 0, x_min, x_max),
            (CY, 1, y_min, y_max),
            (CZ, 2, z_min, z_max),
        ):
            fraction = (raw[..., column] + reference[..., axis]).sigmoid()
            columns[column] = fraction * (high - low) + low
        return torch.stack(columns, dim=-1)

    def loss(self, gt_bboxes_list, gt_labels_list, preds_dicts, img_metas=None):
        """Losses of every decoder layer.

        Args:
            gt_bboxes_list: B LiDARInstance3DBoxes with 9 columns, mmdet3d >= 1.0rc0 convention.
            gt_labels_list: B (G,) long tensors.
            preds_dicts: what `forward` returned.
            img_metas: unused; published code passes it.

        Returns:
            dict: loss_cls and loss_bbox of the last layer, d0.loss_cls, d0.loss_bbox, ... of the
            others.

        Raises:
            ValueError: the head was built without `train_cfg`.
        """
        if self.assigner is None:
            raise ValueError("the model has no train_cfg: losses need train_cfg.pts.assigner")
        logits, codes = preds_dicts["all_cls_scores"], preds_dicts["all_bbox_preds"]
        # Groups are matched like samples of their own: (X, B * R, O, ...).
        num_groups = logits.shape[2] // self.num_query
        logits = rearrange(logits, "x b (r o) k -> x (b r) o k", r=num_groups)
        codes = rearrange(codes, "x b (r o) f -> x (b r) o f", r=num_groups)
        gt_boxes, gt_labels, device = [], [], codes.device
        for boxes, labels in zip(gt_bboxes_list, gt_labels_list):
            centred = torch.cat((boxes.gravity_center, boxes.tensor[:, 3:]), dim=1)
            gt_boxes += [upload(new_to_old_boxes(centred).to(codes.dtype), device)] * num_groups
            gt_labels += [upload(labels, device)] * num_groups
        matches = self.assigner.assign_layers(codes, logits, gt_boxes, gt_labels)
        matched_codes = [
            codes[:, i].gather(1, query_index[..., None].expand(-1, -1, codes.shape[-1]))
            for i, (query_index, _) in enumerate(matches)
        ]
        matched_targets = [
            encode_boxes(boxes)[gt_index] for boxes, (_, gt_index) in zip(gt_boxes, matches)
        ]
        background = self.num_classes
        target_labels = torch.full(logits.shape[:3], background, device=logits.device)
        for i, (query_index, gt_index) in enumerate(matches):
            target_labels[:, i].scatter_(1, query_index, gt_labels[i][gt_index])
        return self._losses(
            (logits, codes),
            target_labels,
            torch.cat(matched_codes, dim=1),
            torch.cat(matched_targets, dim=1),
            num_groups,
        )

    def _losses(self, outputs, target_labels, matched_codes, matched_targets, num_groups):
        """Losses of all layers, the mean over the groups.

        (X, B * R, O, K) logits with (X, B * R, O, 10) codes and (X, B * R, O) labels, (X, sum of G, 10)
        codes of the matched queries and their targets; R groups.
        """
        logits, codes = outputs
        num_matched = matched_codes.shape[1] / num_groups  # of one group
        mean_matched = reduce_mean(logits.new_full((), num_matched)).clamp(min=1)
        cls_factor = mean_matched if self.sync_cls_avg_factor else max(num_matched, 1.0)
        # Ground truths with an unknown (NaN) velocity or a zero size (its logarithm is -inf) have no
        # box loss. Other numbers that are not finite show in it.
        unknown = matched_targets[..., VX:].isnan().any(dim=-1, keepdim=True)
        known = ~(unknown | matched_targets.isneginf().any(dim=-1, keepdim=True))
        matched_targets = torch.where(known, matched_targets, matched_codes.detach())
        box_weights = self.code_weights * known
        losses = {}
        last = len(logits) - 1
        for layer in range(len(logits)):
            prefix = "" if layer == last else f"d{layer}."
            loss_cls = self.loss_cls(
                logits[layer].flatten(0, 1),
                target_labels[layer].flatten(),
                avg_factor=cls_factor * num_groups,
            )
            loss_bbox = self.loss_bbox(
                matched_codes[layer],
                matched_targets[layer],
                box_weights[layer],
                avg_factor=mean_matched * num_groups,
            )
            losses[prefix + "loss_cls"] = loss_cls
            # Queries without a match have no box loss; a NaN in their boxes still shows.
            losses[prefix + "loss_bbox"] = loss_bbox + 0 * codes[layer].detach().sum()
        return losses

    def get_bboxes(self, preds_dicts, img_metas, rescale=False):
        """Boxes of the last decoder layer.

        Args:
            preds_dicts: what `forward` returned.
            img_metas: B metas with `box_type_3d`.
            rescale: unused; mmdet passes it.

        Returns:
            B lists [boxes, scores, labels]: boxes of `box_type_3d` with 9 columns, bottom centre,
            mmdet3d >= 1.0rc0 convention.
        """
        results = []
        for decoded, meta in zip(self.bbox_coder.decode(preds_dicts), img_metas):
            boxes = old_to_new_boxes(decoded["bboxes"])
            box_type = meta["box_type_3d"]
            boxes = box_type(boxes, box_dim=boxes.shape[-1], origin=(0.5, 0.5, 0.5))
            results.append([boxes, decoded["scores"], decoded["labels"]])
        return results


def _cls_branch(channels, num_fcs, num_classes):
    layers = []
    for _ in range(num_fcs):
        layers += [
            nn.Linear(channels, channels),
            WeightPrecisionLayerNorm(channels),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers, nn.Linear(channels, num_classes))


def _reg_branch(channels, num_fcs):
    layers = []
    for _ in range(num_fcs):
        layers += [nn.Linear(channels, channels), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(channels, CODE_SIZE))


def _one_per_layer(branch, num_layers, independent):
    """`num_layers` branches: copies of their own, or one and the same."""
    return nn.ModuleList(
        [copy.deepcopy(branch) if independent else branch for _ in range(num_layers)]
    )

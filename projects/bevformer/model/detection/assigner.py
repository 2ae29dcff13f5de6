"""One-to-one matching of object queries and ground truths.

Shape legend: B batch, X decoder layers, O object queries, G ground truths, K classes.
"""

import numpy as np
import torch
from mmdet.core.bbox.builder import BBOX_ASSIGNERS
from mmdet.core.bbox.match_costs import build_match_cost
from scipy.optimize import linear_sum_assignment

from projects.bevformer.geometry.boxes import VX, encode_boxes
from projects.bevformer.published import published
from projects.bevformer.transfer import upload

# Replaces a cost that is not finite: the matcher takes finite ones only, and the loss of the matching is
# what shows the NaN, as it is at the iteration where it begins.
_COST_OF_NAN = 100.0


@BBOX_ASSIGNERS.register_module()
@published(ignores=("pc_range",), unweighted=("iou_cost",))
class HungarianAssigner3D:
    """Finds the matching with the least sum of classification and box costs.

    Args:
        cls_cost: config of the classification cost on logits.
        reg_cost: config of the box cost on the first eight code columns (velocity left out).

    Source: DETR (arXiv 2005.12872), section 3.1; DETR3D (arXiv 2110.06922), section 3.3.
    """

    def __init__(self, cls_cost, reg_cost):
        self.cls_cost = build_match_cost(cls_cost)
        self.reg_cost = build_match_cost(reg_cost)

    def assign(self, code_pred, cls_logits, gt_boxes, gt_labels):
        """Match one sample.

        Args:
            code_pred: (O, 10) predicted box codes.
            cls_logits: (O, K).
            gt_boxes: (G, 9) old convention, gravity centre.
            gt_labels: (G,) long.

        Returns:
            query_index, gt_index: two (min(O, G),) long tensors on the device of `code_pred`.
        """
        ((query_index, gt_index),) = self.assign_layers(
            code_pred[None, None], cls_logits[None, None], [gt_boxes], [gt_labels]
        )
        return query_index[0], gt_index[0]

    @torch.no_grad()
    def assign_layers(self, code_pred, cls_logits, gt_boxes, gt_labels):
        """Match every sample in every decoder layer, with one host-device sync.

        Args:
            code_pred: (X, B, O, 10) predicted box codes.
            cls_logits: (X, B, O, K).
            gt_boxes: B (G, 9) old convention, gravity centre.
            gt_labels: B (G,) long.

        Returns:
            For each sample query_index, gt_index: two (X, min(O, G)) long tensors on the device of
            `code_pred`.
        """
        layers, _, queries = code_pred.shape[:3]
        costs = [
            self._cost(code_pred[:, i].flatten(0, 1), cls_logits[:, i].flatten(0, 1), *truth)
            for i, truth in enumerate(zip(gt_boxes, gt_labels))
        ]  # (X * O, G) each
        on_cpu = torch.cat([cost.flatten() for cost in costs]).cpu()
        pairs = []  # (X, 2, min(O, G)) each
        for flat, boxes in zip(on_cpu.split([cost.numel() for cost in costs]), gt_boxes):
            of_layers = flat.reshape(layers, queries, len(boxes)).numpy()
            pairs.append(np.array([linear_sum_assignment(cost) for cost in of_layers]))
        all_pairs = torch.from_numpy(np.concatenate([pair.ravel() for pair in pairs]))
        all_pairs = upload(all_pairs, code_pred.device)
        split = all_pairs.split([pair.size for pair in pairs])
        return [flat.reshape(pair.shape).unbind(dim=1) for flat, pair in zip(split, pairs)]

    def _cost(self, code_pred, cls_logits, gt_boxes, gt_labels):
        """(O, 10) codes, (O, K) logits, (G, 9) boxes and (G,) labels -> (O, G) finite costs."""
        geometry = slice(0, VX)
        cost = self.cls_cost(cls_logits, gt_labels) + self.reg_cost(
            code_pred[:, geometry], encode_boxes(gt_boxes)[:, geometry]
        )
        return torch.nan_to_num(cost, nan=_COST_OF_NAN, posinf=_COST_OF_NAN, neginf=-_COST_OF_NAN)

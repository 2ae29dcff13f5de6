"""One-to-one matching of object queries and ground truths.

Shape legend: O object queries, G ground truths, K classes.
"""

import torch
from mmdet.core.bbox.builder import BBOX_ASSIGNERS
from mmdet.core.bbox.match_costs import build_match_cost
from scipy.optimize import linear_sum_assignment

from projects.bevformer.geometry.boxes import VX, encode_boxes

# Stands in for a cost that is not a number, so that one diverging query cannot stop the matcher.
_COST_OF_NAN = 100.0


@BBOX_ASSIGNERS.register_module()
class HungarianAssigner3D:
    """Finds the matching with the least sum of classification and box costs.

    Args:
        cls_cost: config of the classification cost on logits.
        reg_cost: config of the box cost on the first eight code columns (velocity left out).
        iou_cost: accepted because published configs give it, with weight 0; never computed.
        pc_range: accepted because published configs give it; codes are in metres.

    Source: DETR (arXiv 2005.12872), section 3.1; DETR3D (arXiv 2110.06922), section 3.3.
    """

    def __init__(self, cls_cost, reg_cost, iou_cost=None, pc_range=None):
        if iou_cost is not None and iou_cost.get("weight", 0) != 0:
            raise ValueError("HungarianAssigner3D has no 3D IoU cost: set iou_cost weight to 0")
        self.cls_cost = build_match_cost(cls_cost)
        self.reg_cost = build_match_cost(reg_cost)

    @torch.no_grad()
    def assign(self, code_pred, cls_logits, gt_boxes, gt_labels):
        """Match.

        Args:
            code_pred: (O, 10) predicted box codes.
            cls_logits: (O, K).
            gt_boxes: (G, 9) old convention, gravity centre.
            gt_labels: (G,) long.

        Returns:
            query_index, gt_index: two (min(O, G),) long tensors on the device of `code_pred`.
        """
        if len(gt_boxes) == 0:
            nothing = torch.zeros(0, dtype=torch.long, device=code_pred.device)
            return nothing, nothing
        geometry = slice(0, VX)
        cost = self.cls_cost(cls_logits, gt_labels) + self.reg_cost(
            code_pred[:, geometry], encode_boxes(gt_boxes)[:, geometry]
        )
        cost = torch.nan_to_num(cost, nan=_COST_OF_NAN, posinf=_COST_OF_NAN, neginf=-_COST_OF_NAN)
        rows, columns = linear_sum_assignment(cost.cpu().numpy())
        device = code_pred.device
        return torch.from_numpy(rows).to(device), torch.from_numpy(columns).to(device)

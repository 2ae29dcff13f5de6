"""Costs of matching a predicted box with a ground truth."""

import torch
import torch.nn.functional as F
from mmdet.core.bbox.match_costs.builder import MATCH_COST


@MATCH_COST.register_module()
class BBox3DL1Cost:
    """L1 distance between box codes.

    Args:
        weight: factor of the cost.
    """

    def __init__(self, weight=1.0):
        self.weight = weight

    def __call__(self, code_pred, code_gt):
        """(O, F) and (G, F) box codes -> (O, G) costs."""
        return torch.cdist(code_pred, code_gt, p=1) * self.weight


@MATCH_COST.register_module()
class SmoothL1Cost:
    """Smooth L1 distance between box codes, summed over their columns.

    Args:
        weight: factor of the cost.
    """

    def __init__(self, weight=1.0):
        self.weight = weight

    def __call__(self, code_pred, code_gt):
        """(O, F) and (G, F) box codes -> (O, G) costs."""
        pairs = torch.broadcast_tensors(code_pred[:, None], code_gt[None])
        return F.smooth_l1_loss(*pairs, reduction="none").sum(dim=-1) * self.weight

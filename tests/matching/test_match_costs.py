import torch
from mmdet.core.bbox.match_costs import build_match_cost

from projects.bevformer.matching import BBox3DL1Cost


def test_l1_cost_by_hand():
    predictions = torch.tensor([[0.0, 0.0], [1.0, -2.0], [5.0, 5.0]])
    targets = torch.tensor([[0.0, 1.0], [3.0, 0.0]])
    cost = BBox3DL1Cost(weight=0.5)(predictions, targets)
    assert cost.tolist() == [[0.5, 1.5], [2.0, 2.0], [4.5, 3.5]]


def test_is_registered():
    assert isinstance(build_match_cost(dict(type="BBox3DL1Cost", weight=0.25)), BBox3DL1Cost)

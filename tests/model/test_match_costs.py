import torch
from mmdet.core.bbox.match_costs import build_match_cost

from projects.bevformer.model.detection.match_costs import BBox3DL1Cost


def test_l1_cost_by_hand():
    predictions = torch.tensor([[0.0, 0.0], [1.0, -2.0], [5.0, 5.0]])
    targets = torch.tensor([[0.0, 1.0], [3.0, 0.0]])
    cost = BBox3DL1Cost(weight=0.5)(predictions, targets)
    assert cost.tolist() == [[0.5, 1.5], [2.0, 2.0], [4.5, 3.5]]


def test_is_registered():
    assert isinstance(build_match_cost(dict(type="BBox3DL1Cost", weight=0.25)), BBox3DL1Cost)


def test_smooth_l1_cost_by_hand_and_against_a_loop():
    pred = torch.tensor([[0.0, 0.0], [0.5, 3.0], [-1.0, 1.0]])
    gt = torch.tensor([[0.5, 2.0], [0.0, 0.0]])
    cost = build_match_cost(dict(type="SmoothL1Cost", weight=2.0))(pred, gt)
    assert cost.shape == (3, 2)
    assert cost[0, 0].item() == 2 * (0.5 * 0.5**2 + (2.0 - 0.5))
    for i in range(3):
        for j in range(2):
            expected = 2 * torch.nn.functional.smooth_l1_loss(pred[i], gt[j], reduction="sum")
            torch.testing.assert_close(cost[i, j], expected)

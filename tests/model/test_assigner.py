from itertools import permutations

import numpy as np
import pytest
import torch

from projects.bevformer.geometry.boxes import LOG_W, VX, encode_boxes
from projects.bevformer.model.detection.assigner import HungarianAssigner3D

CLS_COST = dict(type="FocalLossCost", weight=2.0)
REG_COST = dict(type="BBox3DL1Cost", weight=0.25)


@pytest.fixture
def assigner():
    return HungarianAssigner3D(CLS_COST, REG_COST)


def random_case(queries=6, truths=3, classes=4, seed=0):
    """Codes, logits, old-convention boxes and labels."""
    rng = np.random.RandomState(seed)
    boxes = rng.uniform(-10, 10, (truths, 9))
    boxes[:, 3:6] = rng.uniform(0.5, 5, (truths, 3))
    boxes = torch.from_numpy(boxes).float()
    codes = torch.from_numpy(rng.normal(0, 5, (queries, 10))).float()
    logits = torch.from_numpy(rng.normal(0, 2, (queries, classes))).float()
    return codes, logits, boxes, torch.from_numpy(rng.randint(0, classes, truths)).long()


def pairs(assigned):
    query_index, gt_index = assigned
    return sorted(zip(gt_index.tolist(), query_index.tolist()))


def cost_of(codes, logits, boxes, labels, query, truth):
    """The matching cost of one pair, from the equations."""
    p = torch.sigmoid(logits[query, labels[truth]]).item()
    positive = 0.25 * (1 - p) ** 2 * -np.log(p + 1e-12)
    negative = 0.75 * p**2 * -np.log(1 - p + 1e-12)
    distance = (codes[query, :VX] - encode_boxes(boxes[truth])[:VX]).abs().sum().item()
    return 2.0 * (positive - negative) + 0.25 * distance


@pytest.mark.parametrize("seed", range(4))
def test_finds_the_cheapest_of_all_matchings(assigner, seed):
    case = random_case(seed=seed)
    costs = [[cost_of(*case, query, truth) for truth in range(3)] for query in range(6)]
    best = min(
        permutations(range(6), 3),
        key=lambda queries: sum(costs[query][truth] for truth, query in enumerate(queries)),
    )
    assert pairs(assigner.assign(*case)) == list(enumerate(best))


def test_each_box_gets_the_query_that_predicts_it(assigner):
    codes, logits, boxes, labels = random_case()
    codes[[4, 0, 2]] = encode_boxes(boxes)
    assert pairs(assigner.assign(codes, torch.zeros_like(logits), boxes, labels)) == [
        (0, 4),
        (1, 0),
        (2, 2),
    ]


def test_the_class_decides_between_equal_boxes(assigner):
    codes, logits, boxes, labels = random_case()
    codes[:] = codes[0]
    logits[:] = 0.0
    logits[5, labels[1]] = 4.0
    assert pairs(assigner.assign(codes, logits, boxes[1:2], labels[1:2])) == [(0, 5)]


def test_velocity_does_not_count(assigner):
    codes, logits, boxes, labels = random_case()
    expected = pairs(assigner.assign(codes, logits, boxes, labels))
    boxes[:, 7:] = float("nan")
    codes[:, VX:] = 1000 * torch.rand(6, 2)
    assert pairs(assigner.assign(codes, logits, boxes, labels)) == expected


def test_no_ground_truth(assigner):
    codes, logits, boxes, labels = random_case()
    query_index, gt_index = assigner.assign(codes, logits, boxes[:0], labels[:0])
    assert query_index.shape == gt_index.shape == (0,)
    assert query_index.dtype == gt_index.dtype == torch.long


def test_more_ground_truths_than_queries(assigner):
    query_index, gt_index = assigner.assign(*random_case(queries=2, truths=5))
    assert sorted(query_index.tolist()) == [0, 1]
    assert len(set(gt_index.tolist())) == 2


def test_a_diverging_query_is_the_last_choice(assigner):
    codes, logits, boxes, labels = random_case()
    codes[:3] = encode_boxes(boxes)
    logits[:] = 0.0
    codes[4], logits[5] = float("nan"), float("nan")
    assert pairs(assigner.assign(codes, logits, boxes, labels)) == [(0, 0), (1, 1), (2, 2)]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_all_queries_diverged(assigner, value):
    codes, logits, boxes, labels = random_case()
    codes[:] = value
    assert len(pairs(assigner.assign(codes, logits, boxes, labels))) == 3


def test_zero_size_box_is_still_matched(assigner):
    codes, logits, boxes, labels = random_case()
    boxes[0, 3] = 0.0
    assert encode_boxes(boxes)[0, LOG_W] == -float("inf")
    assert len(pairs(assigner.assign(codes, logits, boxes, labels))) == 3


def test_no_gradient_is_recorded(assigner):
    codes, logits, boxes, labels = random_case()
    query_index, _ = assigner.assign(codes.requires_grad_(), logits.requires_grad_(), boxes, labels)
    assert not query_index.requires_grad


def test_published_options_are_accepted_and_others_rejected():
    unused = dict(type="IoUCost", weight=0.0)
    HungarianAssigner3D(CLS_COST, REG_COST, iou_cost=unused, pc_range=[0] * 6)
    with pytest.raises(ValueError, match="does not compute iou_cost"):
        HungarianAssigner3D(CLS_COST, REG_COST, iou_cost=dict(type="IoUCost", weight=1.0))

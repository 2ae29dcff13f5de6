import math

import pytest
import torch
from naive_equations import best_boxes, box_code, box_of

from projects.bevformer import compat  # noqa: F401
from projects.bevformer.geometry.boxes import (
    decode_boxes,
    encode_boxes,
    new_to_old_boxes,
    old_to_new_boxes,
)
from projects.bevformer.model.detection.box_coder import NMSFreeCoder

from mmdet3d.core.bbox import LiDARInstance3DBoxes  # isort: skip

PC_RANGE = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]


def make_coder(**options):
    return NMSFreeCoder(PC_RANGE, num_classes=2, **options)


def logit(p):
    return math.log(p / (1 - p))


@pytest.fixture
def prediction():
    """Logits (3, 2) with known scores, and codes of boxes at x = 0, 10, 20."""
    scores = [[0.1, 0.9], [0.7, 0.6], [0.2, 0.3]]
    codes = torch.zeros(3, 10)
    codes[:, 0] = torch.tensor([0.0, 10.0, 20.0])
    codes[:, 7] = 1.0
    return torch.tensor([[logit(p) for p in row] for row in scores]), codes


def test_best_pairs_of_query_and_class_come_first(prediction):
    found = make_coder(max_num=4).decode_single(*prediction)
    torch.testing.assert_close(found["scores"], torch.tensor([0.9, 0.7, 0.6, 0.3]))
    assert found["labels"].tolist() == [1, 0, 1, 1]
    # A query may give a box in several classes.
    assert found["bboxes"][:, 0].tolist() == [0.0, 10.0, 10.0, 20.0]


@pytest.mark.parametrize("max_num", [20, 300])
def test_equals_a_loop(max_num):
    """The best pairs of query and class, some centred outside the range, as boxes of the data set."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, 2, generator=generator)
    codes = torch.randn(12, 10, generator=generator)
    codes[:, [0, 1]] *= 50
    codes[:, 4] *= 8
    limits = [-61.2, -61.2, -10.0, 61.2, 61.2, 10.0]
    found = make_coder(max_num=max_num, post_center_range=limits).decode_single(logits, codes)
    boxes = LiDARInstance3DBoxes(
        old_to_new_boxes(found["bboxes"]), box_dim=9, origin=(0.5, 0.5, 0.5)
    )
    expected = best_boxes(logits.tolist(), codes.tolist(), max_num, limits)
    assert 0 < len(expected) < min(max_num, 24)
    scores, labels, expected_boxes = zip(*expected)
    torch.testing.assert_close(found["scores"], torch.tensor(scores))
    assert found["labels"].tolist() == list(labels)
    torch.testing.assert_close(boxes.tensor, torch.tensor(expected_boxes), rtol=1e-5, atol=1e-5)


def test_codes_equal_a_loop():
    generator = torch.Generator().manual_seed(0)
    boxes = torch.randn(6, 9, generator=generator)
    boxes[:, 3:6] = boxes[:, 3:6].exp()
    boxes = LiDARInstance3DBoxes(boxes, box_dim=9)
    centred = torch.cat((boxes.gravity_center, boxes.tensor[:, 3:]), dim=1)
    codes = encode_boxes(new_to_old_boxes(centred))
    expected = [box_code(box) for box in boxes.tensor.tolist()]
    torch.testing.assert_close(codes, torch.tensor(expected), rtol=1e-5, atol=1e-5)
    for box, code in zip(boxes.tensor.tolist(), expected):
        turns = (box_of(code)[6] - box[6]) / (2 * math.pi)
        assert turns == pytest.approx(round(turns), abs=1e-9)
        assert box_of(code)[:6] == pytest.approx(box[:6])


def test_boxes_are_decoded(prediction):
    logits, codes = prediction
    codes = codes + torch.rand(codes.shape, generator=torch.Generator().manual_seed(0))
    found = make_coder(max_num=1).decode_single(logits, codes)
    torch.testing.assert_close(found["bboxes"], decode_boxes(codes[:1]))


def test_fewer_pairs_than_asked_for(prediction):
    assert len(make_coder(max_num=300).decode_single(*prediction)["scores"]) == 6


@pytest.mark.parametrize("threshold", [None, 0, 0.0])
def test_no_threshold_keeps_all(prediction, threshold):
    found = make_coder(score_threshold=threshold).decode_single(*prediction)
    assert len(found["scores"]) == 6


def test_threshold(prediction):
    found = make_coder(score_threshold=0.5).decode_single(*prediction)
    torch.testing.assert_close(found["scores"], torch.tensor([0.9, 0.7, 0.6]))


@pytest.mark.parametrize(("axis", "column"), [(0, 0), (1, 1), (2, 4)])
def test_centres_outside_the_range_are_dropped(prediction, axis, column):
    logits, codes = prediction
    limits = [-61.2, -61.2, -10.0, 61.2, 61.2, 10.0]
    codes[0, column] = limits[axis] - 0.1
    codes[1, column] = limits[axis + 3] + 0.1
    codes[2, column] = limits[axis + 3]
    found = make_coder(post_center_range=limits).decode_single(logits, codes)
    assert found["labels"].tolist() == [1, 0]
    torch.testing.assert_close(found["scores"], torch.tensor([0.3, 0.2]))


def test_a_batch_uses_the_last_layer_and_keeps_samples_apart(prediction):
    logits, codes = prediction
    noise = torch.full_like(logits, 9.0)
    outputs = dict(
        all_cls_scores=torch.stack((torch.stack((noise, noise)), torch.stack((logits, -logits)))),
        all_bbox_preds=torch.stack((codes, codes)).expand(2, -1, -1, -1),
    )
    coder = make_coder(max_num=2)
    first, second = coder.decode(outputs)
    assert torch.equal(first["scores"], coder.decode_single(logits, codes)["scores"])
    assert torch.equal(second["scores"], coder.decode_single(-logits, codes)["scores"])


@pytest.mark.parametrize("broken", ["box", "score"])
def test_a_box_with_a_nan_is_not_left_out(prediction, broken):
    logits, codes = prediction
    (codes if broken == "box" else logits)[0] = float("nan")
    coder = make_coder(post_center_range=[-61.2] * 3 + [61.2] * 3, score_threshold=1e-3)
    found = coder.decode_single(logits, codes)
    assert len(found["scores"]) == 6
    numbers = found["bboxes" if broken == "box" else "scores"].reshape(6, -1)
    assert numbers.isnan().any(dim=1).sum() == 2


def test_encoding_is_elsewhere():
    with pytest.raises(NotImplementedError, match="encode_boxes"):
        make_coder().encode()


@pytest.mark.parametrize("name", ["pc_range", "post_center_range"])
def test_ranges_are_checked(name):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        NMSFreeCoder(**{"pc_range": PC_RANGE, name: [0, 0, 0]})

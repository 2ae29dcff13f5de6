import math
from dataclasses import replace

import pytest
import torch
from mmdet.models.builder import build_head
from tiny_bevformer import (
    BEV_HW,
    CHANNELS,
    CLASSES,
    DECODER_LAYERS,
    PC_RANGE,
    QUERIES,
    build_detector,
    ground_truth,
    head_config,
    image_features,
    make_meta,
    shake_weights,
    train_config,
    transformer_config,
)

from projects.bevformer.geometry.boxes import encode_boxes, new_to_old_boxes, old_to_new_boxes
from projects.bevformer.model import Frame
from projects.bevformer.model.detection.head import BEVFormerHead

from mmdet3d.core.bbox import LiDARInstance3DBoxes  # isort: skip


def make_head(train=True, **options):
    torch.manual_seed(0)
    head = build_head(head_config(train_cfg=train_config(), **options))
    head.init_weights()
    shake_weights(head)
    return head.train(train)


def predictions(layers=1, batch=1, objects=QUERIES, seed=0):
    """Outputs of a head: random logits, box codes near the range."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randn(layers, batch, objects, 10, generator=generator)
    return dict(
        all_cls_scores=torch.randn(layers, batch, objects, CLASSES, generator=generator),
        all_bbox_preds=codes,
    )


def old_truth(boxes):
    """(G, 9) old convention, gravity centre."""
    centred = torch.cat((boxes.gravity_center, boxes.tensor[:, 3:]), dim=1)
    return new_to_old_boxes(centred)


def no_truth():
    return LiDARInstance3DBoxes(torch.zeros(0, 9), box_dim=9), torch.zeros(0, dtype=torch.long)


def focal(logit, positive):
    """The focal loss of one logit, times the loss weight 2."""
    p = 1 / (1 + math.exp(-logit))
    if positive:
        return 2 * 0.25 * (1 - p) ** 2 * -math.log(p)
    return 2 * 0.75 * p**2 * -math.log(1 - p)


def test_shapes_of_the_outputs():
    head = make_head(train=False)
    feats = [torch.cat(level) for level in zip(image_features(0), image_features(1))]
    outputs = head(feats, [make_meta(0), make_meta(1)])
    assert outputs["bev_embed"].shape == (2, BEV_HW[0] * BEV_HW[1], CHANNELS)
    assert outputs["all_cls_scores"].shape == (DECODER_LAYERS, 2, QUERIES, CLASSES)
    assert outputs["all_bbox_preds"].shape == (DECODER_LAYERS, 2, QUERIES, 10)
    bev = head(feats, [make_meta(0), make_meta(1)], only_bev=True)
    assert torch.equal(bev, outputs["bev_embed"])


def test_published_forward_equals_encode_and_detect():
    """A previous BEV counts for all samples, for any `prev_bev_exists` in their metas."""
    head = make_head(train=False)
    feats = [torch.cat(level) for level in zip(image_features(0), image_features(1))]
    metas = [make_meta(0, prev_bev_exists=False), make_meta(1)]
    prev_bev = torch.randn(2, BEV_HW[0] * BEV_HW[1], CHANNELS)
    frame = replace(Frame.from_metas(metas), has_prev=True)
    bev = head.encode(feats, frame, prev_bev)
    outputs = head(feats, metas, prev_bev)
    for key, value in head.detect(bev).items():
        assert torch.equal(outputs[key], value)
    without = head(feats, metas, only_bev=True)
    assert torch.equal(without, head.encode(feats, replace(frame, has_prev=False), prev_bev))
    assert not torch.allclose(bev, without, atol=1e-3)


def test_centres_are_refined_references_in_metres():
    head = make_head()
    raw = torch.zeros(1, 1, 10)
    raw[..., 2] = 0.7
    # With no update a centre is its reference point: the quarter of each axis.
    code = head._to_metres(raw, torch.full((1, 1, 3), 0.25))[0, 0]
    expected = [-8 + 16 / 4, -6 + 12 / 4, 0.7, 0, -2 + 4 / 4, 0, 0, 0, 0, 0]
    torch.testing.assert_close(code, torch.tensor(expected))
    raw[..., 0] = 1.0
    code = head._to_metres(raw, torch.full((1, 1, 3), 0.5))[0, 0]
    torch.testing.assert_close(code[0], torch.sigmoid(torch.tensor(1.0)) * 16 - 8)
    assert raw[0, 0, 0] == 1.0


def test_losses_of_one_layer_by_hand():
    head = make_head()
    boxes, labels = ground_truth(0, 1)
    code = encode_boxes(old_truth(boxes))[0]
    outputs = predictions()
    outputs["all_bbox_preds"][0, 0, 4] = code + 0.1  # by far the nearest
    losses = head.loss([boxes], [labels], outputs)

    assert set(losses) == {"loss_cls", "loss_bbox"}
    # 8 columns of weight 1 and 2 of weight 0.2, each off by 0.1, times the loss weight.
    assert losses["loss_bbox"].item() == pytest.approx(0.25 * (8 + 2 * 0.2) * 0.1, rel=1e-4)
    logits = outputs["all_cls_scores"][0, 0].tolist()
    expected = sum(
        focal(logit, positive=(q == 4 and k == labels.item()))
        for q, row in enumerate(logits)
        for k, logit in enumerate(row)
    )
    assert losses["loss_cls"].item() == pytest.approx(expected, rel=1e-4)


def test_every_layer_has_its_own_losses():
    head = make_head()
    boxes, labels = ground_truth(0)
    outputs = predictions(layers=3)
    losses = head.loss([boxes], [labels], outputs)
    assert list(losses) == [
        "d0.loss_cls",
        "d0.loss_bbox",
        "d1.loss_cls",
        "d1.loss_bbox",
        "loss_cls",
        "loss_bbox",
    ]
    for layer, prefix in enumerate(("d0.", "d1.", "")):
        one = {key: value[layer : layer + 1] for key, value in outputs.items()}
        alone = head.loss([boxes], [labels], one)
        assert losses[prefix + "loss_cls"] == alone["loss_cls"]
        assert losses[prefix + "loss_bbox"] == alone["loss_bbox"]


def test_losses_of_two_samples_average_over_all_ground_truths():
    head = make_head()
    truths = [ground_truth(0, 3), ground_truth(1, 1)]
    outputs = predictions(batch=2)
    together = head.loss(*zip(*truths), outputs)
    for key, value in together.items():
        total = 0
        for b, (boxes, labels) in enumerate(truths):
            one = {k: v[:, b : b + 1] for k, v in outputs.items()}
            total += head.loss([boxes], [labels], one)[key] * len(labels)
        torch.testing.assert_close(value, total / 4)


@pytest.mark.parametrize("sync_cls_avg_factor", [True, False])
def test_no_ground_truth_trains_background_only(sync_cls_avg_factor):
    head = make_head(sync_cls_avg_factor=sync_cls_avg_factor)
    boxes, labels = no_truth()
    outputs = predictions()
    outputs["all_bbox_preds"].requires_grad_()
    losses = head.loss([boxes], [labels], outputs)
    assert losses["loss_bbox"].item() == 0
    expected = sum(focal(x, False) for x in outputs["all_cls_scores"].flatten().tolist())
    assert losses["loss_cls"].item() == pytest.approx(expected, rel=1e-4)
    losses["loss_bbox"].backward()
    assert not outputs["all_bbox_preds"].grad.any()


def test_batch_with_and_without_ground_truth():
    head = make_head()
    boxes, labels = ground_truth(0, 2)
    outputs = predictions(batch=2)
    losses = head.loss([boxes, no_truth()[0]], [labels, no_truth()[1]], outputs)
    alone = head.loss([boxes], [labels], {k: v[:, :1] for k, v in outputs.items()})
    torch.testing.assert_close(losses["loss_bbox"], alone["loss_bbox"])
    assert losses["loss_cls"] > alone["loss_cls"]


def test_unknown_velocity_has_class_loss_but_no_box_loss():
    head = make_head()
    boxes, labels = ground_truth(0, 1)
    boxes.tensor[:, 7:] = float("nan")
    outputs = predictions()
    outputs["all_bbox_preds"].requires_grad_()
    losses = head.loss([boxes], [labels], outputs)
    assert losses["loss_bbox"].item() == 0
    assert torch.isfinite(losses["loss_cls"])
    background = head.loss(*([x] for x in no_truth()), outputs)["loss_cls"]
    assert losses["loss_cls"] != background  # the class has a positive
    losses["loss_bbox"].backward()
    assert not outputs["all_bbox_preds"].grad.any()


def test_unknown_velocity_of_one_box_does_not_affect_others():
    head = make_head()
    boxes, labels = ground_truth(0, 2)
    outputs = predictions()
    outputs["all_bbox_preds"][0, 0, :2] = encode_boxes(old_truth(boxes)) + 0.1
    boxes.tensor[0, 7:] = float("nan")
    losses = head.loss([boxes], [labels], outputs)
    # One box of the two that were matched.
    assert losses["loss_bbox"].item() == pytest.approx(0.25 * (8 + 2 * 0.2) * 0.1 / 2, rel=1e-4)


def test_a_diverging_query_does_not_stop_the_matcher():
    head = make_head()
    boxes, labels = ground_truth(0, 3)
    outputs = predictions()
    outputs["all_bbox_preds"][0, 0, 0] = float("nan")
    losses = head.loss([boxes], [labels], outputs)
    names = {name for name, loss in losses.items() if not torch.isfinite(loss)}
    assert names == {"loss_bbox"}  # matched or not


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("broken", "expected"),
    [("logits", "loss_cls"), ("codes", "loss_bbox"), ("truth", "loss_bbox")],
)
def test_a_loss_that_is_not_finite_shows(broken, expected, value):
    head = make_head()
    boxes, labels = ground_truth(0, 3)
    outputs = predictions()
    numbers = {
        "logits": outputs["all_cls_scores"][0],
        "codes": outputs["all_bbox_preds"][0],
        "truth": boxes.tensor,
    }
    numbers[broken][..., 0] = value
    losses = head.loss([boxes], [labels], outputs)
    assert not torch.isfinite(losses[expected])


def test_ground_truth_is_not_edited():
    head = make_head()
    boxes, labels = ground_truth(0, 3)
    before = boxes.tensor.clone(), labels.clone()
    head.loss([boxes], [labels], predictions())
    assert torch.equal(boxes.tensor, before[0])
    assert torch.equal(labels, before[1])


def test_results_use_new_convention_with_bottom_centre():
    head = make_head(train=False)
    boxes, labels = ground_truth(0, 1)
    outputs = predictions()
    outputs["all_cls_scores"][:] = -10
    outputs["all_cls_scores"][0, 0, 5, labels] = 3.0
    outputs["all_bbox_preds"][0, 0, 5] = encode_boxes(old_truth(boxes))[0]
    ((found, scores, found_labels),) = head.get_bboxes(outputs, [make_meta()])
    assert isinstance(found, LiDARInstance3DBoxes)
    assert found_labels[0] == labels[0]
    assert scores[0].item() == pytest.approx(1 / (1 + math.exp(-3.0)))
    expected = boxes.tensor[0].clone()
    turns = (found.tensor[0, 6] - expected[6]) / (2 * math.pi)
    assert turns.item() == pytest.approx(round(turns.item()), abs=1e-5)
    expected[6] = found.tensor[0, 6]
    torch.testing.assert_close(found.tensor[0], expected, rtol=1e-4, atol=1e-4)


def grouped_predictions(groups):
    """The same predictions in every group."""
    one = predictions(layers=2, batch=2)
    return one, {key: value.repeat(1, 1, groups, 1) for key, value in one.items()}


@pytest.mark.parametrize("numbers", [(3, 1), (2, 0), (0, 0)])
def test_identical_groups_have_the_losses_of_one(numbers):
    one, three = grouped_predictions(3)
    truths = [ground_truth(b, n) if n else no_truth() for b, n in enumerate(numbers)]
    boxes, labels = [b for b, _ in truths], [labels for _, labels in truths]
    expected = make_head().loss(boxes, labels, one)
    losses = make_head(group_detr=3).loss(boxes, labels, three)
    for key, value in expected.items():
        torch.testing.assert_close(losses[key], value)


def test_groups_are_used_in_training_and_the_first_at_test():
    head = make_head(group_detr=2)
    feats, metas = image_features(0), [make_meta()]
    outputs = head(feats, metas)
    assert outputs["all_cls_scores"].shape == (DECODER_LAYERS, 1, 2 * QUERIES, CLASSES)
    boxes, labels = ground_truth(0)
    sum(head.loss([boxes], [labels], outputs).values()).backward()
    gradient = head.query_embedding.weight.grad
    assert (gradient.abs().sum(dim=1) > 0).all()

    tested = head.eval()(feats, metas)
    assert tested["all_cls_scores"].shape == (DECODER_LAYERS, 1, QUERIES, CLASSES)
    for key in ("all_cls_scores", "all_bbox_preds"):
        first_group = outputs[key][:, :, :QUERIES]
        torch.testing.assert_close(tested[key], first_group, rtol=1e-4, atol=1e-4)


def test_branches_are_shared_without_box_refinement():
    shared = make_head(with_box_refine=False)
    assert all(branch is shared.reg_branches[0] for branch in shared.reg_branches)
    assert all(branch is shared.cls_branches[0] for branch in shared.cls_branches)
    own = make_head()
    assert own.reg_branches[0] is not own.reg_branches[1]
    assert own.cls_branches[0] is not own.cls_branches[1]


def test_logits_start_at_a_prior_of_one_percent():
    head = build_head(head_config())
    head.init_weights()
    for branch in head.cls_branches:
        torch.testing.assert_close(branch[-1].bias.sigmoid(), torch.full((CLASSES,), 0.01))


def test_published_names_and_options_are_accepted():
    head = build_head(
        head_config(
            type="BEVFormerHead_GroupDETR",
            group_detr=2,
            loss_iou=dict(type="GIoULoss", loss_weight=0.0),
            as_two_stage=False,
            transformer=transformer_config(two_stage_num_proposals=300),
        )
    )
    assert isinstance(head, BEVFormerHead)
    assert head.pc_range == PC_RANGE


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(as_two_stage=True), "set as_two_stage=False"),
        (dict(loss_iou=dict(type="GIoULoss", loss_weight=1.0)), "does not compute loss_iou"),
        (dict(code_weights=[1.0] * 8), "10 numbers"),
        (dict(loss_cls=dict(type="CrossEntropyLoss")), "use_sigmoid=True"),
    ],
)
def test_unsupported_head_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        BEVFormerHead(**{k: v for k, v in head_config(**options).items() if k != "type"})


def learned_encoding(**options):
    return dict(head_config()["positional_encoding"], **options)


def coder(**options):
    return dict(head_config()["bbox_coder"], **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(in_channels=8), "in_channels of the head is 8, embed_dims of its transformer is 16"),
        (dict(bev_h=6), r"\(bev_h, bev_w\) is \(6, 5\), .* \(row_num_embed, .* is \(4, 5\)"),
        (
            dict(positional_encoding=learned_encoding(col_num_embed=3)),
            r"col_num_embed\) cover is \(4, 3\)",
        ),
        (
            dict(positional_encoding=learned_encoding(num_feats=4)),
            "half of in_channels is 8, num_feats is 4",
        ),
        (dict(num_classes=4), "num_classes of the head is 4, that of its bbox_coder is 3"),
        (dict(bbox_coder=coder(num_classes=10)), "of the head is 3, that of its bbox_coder is 10"),
        (
            dict(bbox_coder=coder(pc_range=[-8, -8, -2, 8, 8, 2])),
            "x and y of pc_range of the bbox_coder is",
        ),
    ],
)
def test_parts_that_do_not_fit_are_rejected_by_the_detector(options, message):
    with pytest.raises(ValueError, match=message):
        build_detector(head=options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_query=0), r"num_query \(0\), group_detr \(1\) must be >= 1"),
        (dict(group_detr=0), r"group_detr \(0\) must be >= 1"),
    ],
)
def test_invalid_head_arguments_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        make_head(**options)


def test_box_coder_may_use_another_height_range():
    low, high = PC_RANGE[:3], PC_RANGE[3:]
    pc_range = [*low[:2], low[2] - 1, *high[:2], high[2] + 1]
    detector = build_detector(head=dict(bbox_coder=coder(pc_range=pc_range)))
    assert detector.pts_bbox_head.pc_range == pc_range


def test_losses_without_train_cfg_are_refused():
    head = build_head(head_config())
    boxes, labels = ground_truth()
    with pytest.raises(ValueError, match=r"no train_cfg: losses need train_cfg\.pts\.assigner"):
        head.loss([boxes], [labels], predictions())


def test_targets_are_converted_once():
    """`loss` gets new-convention boxes; a prediction of the same box has no box loss."""
    head = make_head()
    boxes, labels = ground_truth(0, QUERIES)
    outputs = predictions()
    outputs["all_bbox_preds"][0, 0] = encode_boxes(old_truth(boxes))
    assert head.loss([boxes], [labels], outputs)["loss_bbox"].item() == pytest.approx(0, abs=1e-5)
    wrong = LiDARInstance3DBoxes(old_to_new_boxes(boxes.tensor), box_dim=9)
    assert head.loss([wrong], [labels], outputs)["loss_bbox"].item() > 0.1

"""The perspective head: targets by hand and against a loop, losses, gradients, batches."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet.models.builder import build_head
from mmdet.models.losses import GIoULoss
from tiny_bevformer_v2 import CLASSES, MONO_STRIDES, mono_head_config, mono_objects

from projects.bevformer.geometry.camera_boxes import quaternion_to_matrix, viewing_rotation
from projects.bevformer.model.v2.dd3d_losses import NuscenesLoss, giou_from_sides, smooth_l1
from projects.bevformer.model.v2.dd3d_targets import LocationAssigner

CHANNELS = 16
HW = (32, 64)  # pixels
INTERESTS = ((-1, 16), (16, 1e8))


def make_head(**options):
    torch.manual_seed(0)
    return build_head(mono_head_config(**options)).train()


def features(images=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(images, CHANNELS, HW[0] // s, HW[1] // s, generator=generator)
        for s in MONO_STRIDES
    ]


def assign(objects, **options):
    level_hw = [(HW[0] // s, HW[1] // s) for s in MONO_STRIDES]
    options = dict(sizes_of_interest=INTERESTS, **options)
    assigner = LocationAssigner(MONO_STRIDES, CLASSES, **options)
    return assigner(objects, level_hw, torch.device("cpu"))


def boxes_only(boxes):
    """Objects with these 2D boxes, labels 0, 1, ..."""
    objects = mono_objects(number=len(boxes))
    objects["bbox"] = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    objects["label"] = np.arange(len(boxes))
    return objects


def naive_owner(objects, radius_in_strides):
    """{(level, row, column): object} by one loop over everything."""
    owners = {}
    for level, stride in enumerate(MONO_STRIDES):
        for row in range(HW[0] // stride):
            for column in range(HW[1] // stride):
                x, y = column * stride, row * stride
                best = None
                for g, (x1, y1, x2, y2) in enumerate(objects["bbox"]):
                    sides = (x - x1, y - y1, x2 - x, y2 - y)
                    low, high = INTERESTS[level]
                    middle = ((x1 + x2) / 2, (y1 + y2) / 2)
                    reach = radius_in_strides * stride
                    near = abs(x - middle[0]) < reach and abs(y - middle[1]) < reach
                    area = (x2 - x1) * (y2 - y1)
                    candidate = min(sides) > 0 and near and low <= max(sides) <= high
                    if candidate and (best is None or area < best[0]):
                        best = (area, g)
                if best is not None:
                    owners[level, row, column] = best[1]
    return owners


def test_targets_equal_a_loop():
    objects = boxes_only([[3, 2, 27, 20], [20, 5, 33, 18], [1, 1, 62, 31]])
    expected = naive_owner(objects, 1.5)
    assert {*expected.values()} == {0, 1, 2}
    targets = assign([objects], pos_radius=1.5)
    count = 0
    flat = targets.labels.tolist()
    for level, stride in enumerate(MONO_STRIDES):
        for row in range(HW[0] // stride):
            for column in range(HW[1] // stride):
                assert flat[count] == expected.get((level, row, column), CLASSES)
                count += 1
    assert count == len(flat)


def test_targets_of_one_location_by_hand():
    objects = boxes_only([[5, 6, 15, 14]])
    targets = assign([objects], pos_radius=0.6)
    (location,) = targets.locations.tolist()  # of the 8 pixel level, the only one in the middle
    assert location == [8.0, 8.0]
    assert targets.distances.tolist() == [[3.0, 2.0, 7.0, 6.0]]
    torch.testing.assert_close(targets.centerness, torch.tensor([math.sqrt(3 / 7 * 2 / 6)]))
    uvw = objects["intrinsics"] @ objects["center"][0]
    np.testing.assert_allclose(targets.center_uv[0], uvw[:2] / uvw[2], rtol=1e-5)


def test_without_center_sampling_the_whole_box_counts():
    objects = boxes_only([[1, 1, 30, 17]])
    near = assign([objects], pos_radius=0.6)
    all_of_it = assign([objects], center_sample=False)
    assert len(all_of_it.positive) > len(near.positive)


def test_an_image_without_objects_has_no_targets():
    targets = assign([boxes_only([]), boxes_only([[5, 6, 15, 14]])])
    half = len(targets.labels) // 2
    assert (targets.labels[:half] == CLASSES).all()
    assert (targets.positive >= half).all()


def perfect_prediction(head, targets):
    """(P, 11) such that every part of every box is right and sure."""
    depth = targets.center[:, 2:] * (1 / targets.focal).norm(dim=-1, keepdim=True) * 500.0
    ratio = targets.size_wlh / head.fcos3d_loss.canon_box_sizes[targets.positive_labels] - 1
    rays = targets.center / targets.center[:, 2:]
    local = viewing_rotation(rays).transpose(1, 2) @ targets.rotation
    w = (1 + local[:, 0, 0] + local[:, 1, 1] + local[:, 2, 2]).sqrt() / 2
    x = (local[:, 2, 1] - local[:, 1, 2]) / (4 * w)
    y = (local[:, 0, 2] - local[:, 2, 0]) / (4 * w)
    z = (local[:, 1, 0] - local[:, 0, 1]) / (4 * w)
    return torch.cat(
        (
            torch.stack((w, x, y, z), dim=-1),
            targets.center_uv - targets.locations,
            depth,
            torch.atanh(ratio),
            torch.full_like(depth, 20.0),
        ),
        dim=-1,
    )


def test_a_perfect_box_costs_nothing_and_each_error_its_own_loss():
    head = make_head()
    targets = assign([mono_objects(number=2)])
    assert len(targets.positive)
    box3d = perfect_prediction(head, targets)
    for value in head.fcos3d_loss(box3d, targets).values():
        torch.testing.assert_close(value, torch.zeros(()), atol=1e-4, rtol=0)
    columns = {"quat": 0, "proj_ctr": 4, "depth": 6, "size": 7}
    for part, column in columns.items():
        wrong = box3d.clone()
        wrong[:, column] += 0.7 if part in ("quat", "size") else 7.0
        losses = head.fcos3d_loss(wrong, targets)
        for other in columns:
            # The turn is given relative to the viewing ray, and moves with the centre.
            if (part, other) != ("proj_ctr", "quat"):
                assert (losses[f"loss_box3d_{other}"] > 1e-2) == (other == part)
        assert losses["loss_conf3d"] > 0.1  # no longer right to be sure


def test_giou_of_sides_equals_mmdets():
    generator = torch.Generator().manual_seed(0)
    predicted, true = 20 * torch.rand(2, 30, 4, generator=generator)
    predicted[0] = 0.0  # a box that is a point
    predicted.requires_grad_()

    def boxes(sides):
        return torch.cat((-sides[:, :2], sides[:, 2:]), dim=-1)

    losses = GIoULoss(reduction="none")(boxes(predicted), boxes(true))
    giou = giou_from_sides(predicted, true)
    torch.testing.assert_close(1 - giou, losses)
    (expected,) = torch.autograd.grad(losses.sum(), predicted)
    torch.testing.assert_close(torch.autograd.grad(-giou.sum(), predicted)[0], expected)


def test_one_pixel_of_the_original_in_the_iou_by_hand():
    # boxes of 4 x 4 and 4 x 2 pixels around one point: intersection 8, union and hull 16
    predicted, true = torch.tensor([[2.0, 2.0, 2.0, 2.0]]), torch.tensor([[2.0, 1.0, 2.0, 1.0]])
    assert giou_from_sides(predicted, true).item() == pytest.approx(8 / 16)
    assert giou_from_sides(predicted, true, 1.0).item() == pytest.approx(9 / 17)
    # 2 x 6 and 6 x 2: intersection 4, union 20, hull 36
    predicted, true = torch.tensor([[1.0, 3.0, 1.0, 3.0]]), torch.tensor([[3.0, 1.0, 3.0, 1.0]])
    assert giou_from_sides(predicted, true, 1.0).item() == pytest.approx(5 / 21 - 16 / 36)


def test_smooth_l1_of_the_original_by_hand():
    errors = torch.tensor([0.0, 0.02, -0.04, 0.05, -1.0])
    right = [0.0, 0.02**2 / 0.1, 0.04**2 / 0.1, 0.025, 0.975]
    official = [0.0, 0.02**2 / 2, 0.04**2 / 2, 0.025, 0.975]
    torch.testing.assert_close(smooth_l1(errors, 0.05), torch.tensor(right))
    torch.testing.assert_close(smooth_l1(errors, 0.05, False), torch.tensor(official))


def test_attributes_of_the_original_are_not_weighted_by_centerness():
    targets = SimpleNamespace(
        attribute=torch.tensor([0, 2, -1, 1]),
        speed=torch.tensor([0.0, 0.0, 0.0, float("nan")]),
        centerness=torch.tensor([0.2, 0.8, 0.9, 1.0]),
    )
    logits = torch.tensor([[3.0, 0, 0], [0, 1.0, 0], [5.0, 0, 0], [0, 0, 2.0]])
    entropies = [
        math.log(math.exp(3) + 2) - 3, math.log(math.e + 2), math.log(math.exp(2) + 2)
    ]  # fmt: skip
    weighted = sum(w * e for w, e in zip((0.2, 0.8, 1.0), entropies)) / 2.0
    for by_centerness, mean in ((True, weighted), (False, sum(entropies) / 3)):
        loss = NuscenesLoss(0.5, attr_by_centerness=by_centerness)
        losses = loss(logits, torch.zeros(4), targets)
        assert losses["loss_attr"].item() == pytest.approx(0.5 * mean)
    targets.attribute = torch.full((4,), -1)
    assert loss(logits, torch.zeros(4), targets)["loss_attr"] == 0


OFFICIAL = dict(
    fcos2d_loss_cfg=("iou_added_pixels", 1.0, {"loss_box2d_reg"}),
    fcos3d_loss_cfg=(
        "divide_by_beta",
        False,
        {f"loss_box3d_{part}" for part in ("quat", "proj_ctr", "depth", "size")},
    ),
    nusc_loss_weight=("attr_by_centerness", False, {"loss_attr"}),
)


@pytest.mark.parametrize("section", OFFICIAL)
def test_each_option_moves_its_own_losses(section):
    key, official, expected = OFFICIAL[section]
    config = mono_head_config()
    config[section][key] = official
    torch.manual_seed(0)
    changed = build_head(config).train().loss(features(2), [mono_objects(0), mono_objects(1)])
    right = make_head().loss(features(2), [mono_objects(0), mono_objects(1)])
    moved = {name for name in right if right[name] != changed[name]}
    assert moved
    assert moved <= expected  # depths start further off than beta


def test_allocentric_turns_are_an_option():
    objects = mono_objects(number=1)
    targets = assign([objects])
    box3d = torch.zeros(len(targets.positive), 11)
    box3d[:, 0] = 1.0
    parts = {
        flag: make_head(predict_allocentric_rot=flag).fcos3d_loss._decode(box3d, targets)["quat"]
        for flag in (True, False)
    }
    identity = quaternion_to_matrix(box3d[:, :4])
    torch.testing.assert_close(parts[False], identity)
    assert (parts[True] - identity).abs().max() > 1e-3


def test_losses_have_the_published_names_and_reach_every_weight():
    head = make_head()
    feats = [feat.requires_grad_() for feat in features(2)]
    losses = head.loss(feats, [mono_objects(0), mono_objects(1)])
    assert set(losses) == {
        "loss_cls", "loss_box2d_reg", "loss_centerness", "loss_box3d_quat", "loss_box3d_proj_ctr",
        "loss_box3d_depth", "loss_box3d_size", "loss_conf3d", "loss_attr", "loss_speed",
    }  # fmt: skip
    sum(losses.values()).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    assert all(feat.grad.abs().sum() > 0 for feat in feats)


def test_all_weights_get_gradients_without_positives():
    head = make_head()
    losses = head.loss(features(1), [boxes_only([])])
    assert losses["loss_cls"] > 0
    assert all(losses[name] == 0 for name in losses if name != "loss_cls")
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


def test_unknown_speeds_and_attributes_have_no_loss():
    head = make_head()
    known, unknown = mono_objects(0), mono_objects(0)
    unknown["speed"] = np.full_like(unknown["speed"], np.nan)
    unknown["attribute"] = np.full_like(unknown["attribute"], -1)
    losses = head.loss(features(), [known])
    silent = head.loss(features(), [unknown])
    for name in ("loss_attr", "loss_speed"):
        assert losses[name] > 0
        assert silent[name] == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_losses_that_are_not_finite_show(value):
    head = make_head()
    shown = head.loss([feat * value for feat in features()], [mono_objects(0)])
    assert not any(torch.isfinite(loss) for loss in shown.values())
    fast = mono_objects(0)
    fast["speed"] = np.full_like(fast["speed"], np.inf)  # NaN is an unknown one
    assert not torch.isfinite(head.loss(features(), [fast])["loss_speed"])


def test_outputs_of_two_images_equal_single_images():
    head = make_head().eval()  # a batch norm in training mode mixes the images
    both = features(2)
    together = head(both)
    for image in range(2):
        alone = head([level[image : image + 1] for level in both])
        for name, values in together.items():
            half = len(values) // 2
            part = values[image * half : (image + 1) * half]
            torch.testing.assert_close(part, alone[name], atol=1e-5, rtol=1e-5)


def test_losses_of_identical_images_equal_one_image():
    head = make_head()  # the statistics of a batch norm are those of one image as well
    one = head.loss(features(1), [mono_objects(0)])
    two = head.loss([feat.repeat(2, 1, 1, 1) for feat in features(1)], [mono_objects(0)] * 2)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-5, rtol=1e-4)


def test_each_level_has_its_own_norms():
    head = make_head()
    norms = head.fcos2d_head.cls_tower[0].norm
    before = [norm.running_mean.clone() for norm in norms]
    head(features())
    changed = [norm.running_mean - old for norm, old in zip(norms, before)]
    assert all(change.abs().sum() > 0 for change in changed)
    assert not torch.allclose(*changed)


def test_every_key_of_the_published_configs_is_known():
    config = mono_head_config(
        min_depth=0.1,
        max_depth=80.0,
        box3d_loss_weight=2.0,
        conf3d_loss_weight=1.0,
        conf_3d_temperature=1.0,
        smooth_l1_loss_beta=0.05,
        max_loss_per_group=20,
        predict_allocentric_rot=True,
        scale_depth_by_focal_lengths=True,
        scale_depth_by_focal_lengths_factor=500.0,
        class_agnostic=False,
        predict_distance=False,
    )
    switches = dict(norm="SyncBN", use_deformable=False, use_scale=True)
    config["fcos2d_cfg"].update(switches, box2d_scale_init_factor=1.0)
    config["fcos2d_loss_cfg"].update(
        focal_loss_alpha=0.25, focal_loss_gamma=2.0, loc_loss_type="giou"
    )
    config["fcos3d_cfg"].update(
        switches,
        depth_scale_init_factor=0.3,
        proj_ctr_scale_init_factor=1.0,
        use_per_level_predictors=False,
        class_agnostic=False,
    )
    config["target_assign_cfg"].update(center_sample=True, pos_radius=1.5)
    head = build_head(dict(config, box3d_on=True, feature_locations_offset="none"))
    assert head.loss(features(), [mono_objects()])["loss_cls"] > 0


def test_initial_depth_is_the_mean_of_its_level():
    head = make_head()
    for predictor in head.fcos3d_head.box3d_depth:
        torch.nn.init.zeros_(predictor.weight)
    for level, mean in zip(head.fcos3d_head(features()), (20.0, 10.0)):
        torch.testing.assert_close(level[:, 6], torch.full_like(level[:, 6], mean))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(feature_locations_offset="half"), "feature_locations_offset"),
        (dict(box3d_on=False), "box3d_on"),
        (dict(num_classes=CLASSES + 1), "canon_box_sizes"),
    ],
)
def test_unknown_dd3d_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build_head({**mono_head_config(), **options})


def test_features_that_do_not_fit_the_objects():
    with pytest.raises(ValueError, match="images"):
        make_head().loss(features(2), [mono_objects()])


@pytest.mark.parametrize(
    ("section", "key", "message"),
    [
        ("fcos3d_loss_cfg", "canon_box_sizes", "canon_box_sizes must hold"),
        ("fcos3d_cfg", "mean_depth_per_level", "needs depths for"),
        ("target_assign_cfg", "sizes_of_interest", "sizes_of_interest must hold"),
    ],
)
def test_lists_of_another_length_are_refused(section, key, message):
    config = mono_head_config()
    config[section][key] = config[section][key][:-1]
    with pytest.raises(ValueError, match=message):
        build_head(config)

"""BEVFormer v2: fused frames, missing frames, augmentation, perspective supervision."""

import copy

import pytest
import torch
from mmdet.models.utils import build_transformer
from tiny_bevformer import (
    BEV_HW,
    CAMERAS,
    CHANNELS,
    PC_RANGE,
    decoder_config,
    encoder_config,
    image_features,
    make_meta,
    shake_weights,
)
from tiny_bevformer_v2 import (
    BEV_SIZE,
    build_detector_v2,
    frame_images,
    inference_batch_v2,
    training_batch_v2,
)

from projects.bevformer.geometry.bev_warp import warp_bev
from projects.bevformer.model import Frame
from projects.bevformer.model.v2.perception_transformer_v2 import ResNetFusion

FRAMES = (-2, -1, 0, 1, 2)


def make_transformer(frames=FRAMES):
    torch.manual_seed(0)
    transformer = build_transformer(
        dict(
            type="PerceptionTransformerV2",
            embed_dims=CHANNELS,
            num_cams=CAMERAS,
            frames=frames,
            num_fusion=1,
            encoder=encoder_config(),
            decoder=decoder_config(),
        )
    )
    shake_weights(transformer)
    return transformer.eval()


def encode(transformer, metas, samples=(0,)):
    generator = torch.Generator().manual_seed(1)
    queries = torch.randn(*BEV_HW, CHANNELS, generator=generator)
    feats = [torch.cat(level) for level in zip(*[image_features(s) for s in samples])]
    pos = torch.zeros(len(samples), BEV_SIZE, CHANNELS)
    context = transformer.frame_context(feats, queries, pos, Frame.from_metas(metas))
    return transformer.encoder(context)


# Transformer


def test_encoder_ignores_can_bus_and_frame_order():
    transformer = make_transformer((0,))
    meta = make_meta(0)
    other = dict(meta, can_bus=meta["can_bus"] + 1)
    torch.testing.assert_close(encode(transformer, [meta]), encode(transformer, [other]))
    assert not any("can_bus" in name for name in transformer.state_dict())


class Recorder(torch.nn.Module):
    """Stands in for the fusion and keeps its input."""

    def forward(self, bevs, bev_hw):
        self.bevs = bevs
        return bevs[0]


def fused(transformer, bevs, exists):
    """The F BEVs that reach the fusion."""
    transformer.fusion = Recorder()
    transformer.fuse(bevs, exists, BEV_HW)
    return transformer.fusion.bevs


def test_missing_frame_is_replaced_by_neighbour_towards_current():
    before, current, after = torch.randn(3, 1, BEV_SIZE, CHANNELS)
    exists = [False, True, True, True, False]
    bevs = fused(make_transformer(), [None, before, current, after, None], exists)
    for actual, expected in zip(bevs, (before, before, current, after, after)):
        assert torch.equal(actual, expected)


def test_frames_are_missing_sample_by_sample():
    older, old, current = torch.randn(3, 2, BEV_SIZE, CHANNELS)
    second_only = torch.tensor([False, True])
    transformer = make_transformer((-2, -1, 0))
    bevs = fused(transformer, [older, old, current], [second_only, second_only, True])
    assert torch.equal(bevs[0], torch.stack((current[0], older[1])))
    assert torch.equal(bevs[1], torch.stack((current[0], old[1])))
    assert torch.equal(bevs[2], current)


def test_neighbours_carry_no_gradient():
    current = torch.randn(1, BEV_SIZE, CHANNELS, requires_grad=True)
    bevs = fused(make_transformer((-1, 0)), [None, current], [False, True])
    assert not bevs[0].requires_grad
    assert bevs[1].requires_grad


def test_fusion_equals_its_equation():
    torch.manual_seed(0)
    fusion = ResNetFusion(2 * CHANNELS, CHANNELS, 8, num_layer=1).eval()
    bevs = [torch.randn(1, BEV_SIZE, CHANNELS) for _ in range(2)]
    x = torch.cat(bevs, dim=2).transpose(1, 2).reshape(1, 2 * CHANNELS, *BEV_HW)
    (block,) = fusion.layers
    convolved = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x)))))
    x = torch.relu(convolved + block.downsample(x))
    linear, norm = fusion.layer_norm
    expected = norm(linear(x.flatten(2).transpose(1, 2)))
    torch.testing.assert_close(fusion(bevs, BEV_HW), expected)


@pytest.mark.parametrize("frames", [(-1,), (0, -1)])
def test_frames_must_be_in_time_order(frames):
    with pytest.raises(ValueError, match="time order"):
        make_transformer(frames)


# Detector: training


@pytest.mark.parametrize("frames", [(0,), (-1, 0)])
def test_training_losses_are_finite_and_reach_every_weight(frames):
    detector = build_detector_v2(frames, group_detr=2)
    losses = detector(return_loss=True, **training_batch_v2((0,), frames))
    assert {"loss_cls", "d0.loss_bbox", "loss_cls_mono", "loss_box3d_depth_mono"} <= set(losses)
    sum(losses.values()).backward()
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name


def test_perspective_loss_trains_backbone_but_not_bev_head():
    detector = build_detector_v2()
    losses = detector(return_loss=True, **training_batch_v2())
    sum(value for name, value in losses.items() if name.endswith("_mono")).backward()
    for part in (detector.img_backbone, detector.img_neck, detector.fcos3d_bbox_head):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())
    assert all(p.grad is None for p in detector.pts_bbox_head.parameters())


def test_perspective_head_weight_scales_its_losses():
    batch = training_batch_v2()
    losses = build_detector_v2()(return_loss=True, **batch)
    doubled = build_detector_v2(mono_loss_weight=2.0)(return_loss=True, **batch)
    for name, value in losses.items():
        factor = 2.0 if name.endswith("_mono") else 1.0
        torch.testing.assert_close(doubled[name], factor * value)


def test_only_cameras_that_see_an_object_reach_the_perspective_head():
    batch = training_batch_v2()
    objects = batch["img_metas"][0][0]["mono_objects"]
    batch["img_metas"][0][0]["mono_objects"] = {1: objects[1]}
    detector = build_detector_v2()
    seen = []
    detector.fcos3d_bbox_head.loss = lambda feats, objects: seen.append((feats, objects)) or {}
    detector(return_loss=True, **batch)
    ((feats, given),) = seen
    assert given == [objects[1]]
    expected = build_detector_v2().extract_feat(batch["img"][:, 0])
    assert len(feats) == 2
    torch.testing.assert_close(feats[0], expected[0][:, 1])


def test_a_perspective_head_without_objects_is_an_error():
    batch = training_batch_v2()
    del batch["img_metas"][0][0]["mono_objects"]
    with pytest.raises(ValueError, match="mono_cfg"):
        build_detector_v2()(return_loss=True, **batch)
    losses = build_detector_v2(mono=False)(return_loss=True, **batch)
    assert not any(name.endswith("_mono") for name in losses)


def bev_of(detector, metas, samples=(0,)):
    img = torch.stack([frame_images(sample, (0,)) for sample in samples])
    return detector.bev_of_queue(img, [{0: meta} for meta in metas]).bev


def test_the_bev_moves_as_the_boxes_were_moved():
    detector, meta = build_detector_v2().eval(), make_meta(0)
    matrix = torch.tensor([[0.0, -1.1, 0.0], [1.1, 0.0, 0.0], [0.0, 0.0, 1.1]])
    plain = bev_of(detector, [meta])
    moved = bev_of(detector, [dict(meta, bev_augmentation=matrix.numpy())])
    torch.testing.assert_close(moved, warp_bev(plain, matrix[None, :2, :2], BEV_HW, PC_RANGE))
    assert not torch.allclose(moved, plain)


def test_augmentation_belongs_to_its_sample():
    detector = build_detector_v2().eval()
    matrix = torch.diag(torch.tensor([-1.0, 1.0, 1.0])).numpy()
    metas = [make_meta(0), dict(make_meta(1), bev_augmentation=matrix)]
    both = bev_of(detector, metas, (0, 1))
    for sample in range(2):
        alone = bev_of(detector, [metas[sample]], (sample,))
        torch.testing.assert_close(both[sample], alone[0], atol=1e-4, rtol=1e-4)


def test_other_frames_run_in_eval_without_grad_and_restore_modes(monkeypatch):
    detector = build_detector_v2((-1, 0))
    batch = training_batch_v2((0,), (-1, 0))
    bevs, fuse = [], detector.pts_bbox_head.transformer.fuse

    def recorded(given, *args):
        bevs.extend(given)
        return fuse(given, *args)

    monkeypatch.setattr(detector.pts_bbox_head.transformer, "fuse", recorded)
    detector.bev_of_queue(batch["img"], batch["img_metas"])
    assert [bev.requires_grad for bev in bevs] == [False, True]
    assert all(module.training for module in detector.modules())


def test_the_history_matters_where_it_exists():
    detector = build_detector_v2((-1, 0)).eval()
    batch = inference_batch_v2((0,), (-1, 0))
    with torch.no_grad():
        scores = detector(return_loss=False, **batch)[0]["pts_bbox"]["scores_3d"]
        batch["img"][0][:, 0] += 1.0
        changed = detector(return_loss=False, **batch)[0]["pts_bbox"]["scores_3d"]
        assert not torch.allclose(scores, changed)
        missing = inference_batch_v2((0,), (-1, 0), missing=((-1,),))
        alone = detector(return_loss=False, **missing)[0]["pts_bbox"]["scores_3d"]
        missing["img"][0][:, 0] += 1.0
        same = detector(return_loss=False, **missing)[0]["pts_bbox"]["scores_3d"]
    torch.testing.assert_close(alone, same)


@pytest.mark.parametrize("missing", [((), ()), ((-1,), ())])
def test_v2_batch_of_two_equals_two_batches_of_one(missing):
    frames = (-1, 0)
    detector = build_detector_v2(frames).eval()
    with torch.no_grad():
        both = detector(return_loss=False, **inference_batch_v2((0, 1), frames, missing))
        for sample in range(2):
            batch = inference_batch_v2((sample,), frames, missing)
            (alone,) = detector(return_loss=False, **batch)
            for key in ("scores_3d", "labels_3d"):
                actual, expected = both[sample]["pts_bbox"][key], alone["pts_bbox"][key]
                torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(
                both[sample]["pts_bbox"]["boxes_3d"].tensor,
                alone["pts_bbox"]["boxes_3d"].tensor,
                atol=1e-4,
                rtol=1e-4,
            )


def test_features_of_flipped_images_are_flipped_back():
    detector = build_detector_v2().eval()
    img = frame_images(0, (0,))
    plain = detector.extract_feat(img)
    mirrored = detector.extract_feat(img, image_flip=torch.tensor([True]))
    by_hand = [level.flip(-1) for level in detector.extract_feat(img.flip(-1))]
    for level, expected, other in zip(mirrored, by_hand, plain):
        torch.testing.assert_close(level, expected)
        assert not torch.allclose(level, other)
    both = detector.extract_feat(torch.cat((img, img)), image_flip=torch.tensor([True, False]))
    torch.testing.assert_close(both[0], torch.cat((mirrored[0], plain[0])), atol=1e-5, rtol=1e-5)


def test_metas_are_not_edited():
    detector = build_detector_v2()
    batch = training_batch_v2()
    before = copy.deepcopy(batch["img_metas"][0][0]["lidar2img"])
    detector(return_loss=True, **batch)
    for old, new in zip(before, batch["img_metas"][0][0]["lidar2img"]):
        assert (old == new).all()


def test_contradicting_v2_options_are_refused():
    with pytest.raises(ValueError, match="video_test_mode"):
        build_detector_v2(video_test_mode=True)
    detector = build_detector_v2()
    with pytest.raises(ValueError, match="augmentation"):
        detector.forward_test([None, None], [None, None])
    with pytest.raises(ValueError, match="of the dataset"):
        detector(return_loss=True, **training_batch_v2((0,), (-1, 0)))

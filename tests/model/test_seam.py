"""What builds on the network from outside: tensors in and out, other rigs, backbones and plain configs."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from mmcv import Config
from mmdet.models.builder import BACKBONES, HEADS
from tiny_bevformer import (
    BEV_HW,
    CHANNELS,
    IMAGE_HW,
    build_detector,
    decoder_config,
    ground_truth,
    head_config,
    images,
    inference_batch,
    lidar2img,
    make_meta,
    train_config,
    training_batch,
    transformer_config,
)
from torch import nn

from projects.bevformer.engine.provenance import training_stamp
from projects.bevformer.geometry.ego_motion import EgoMotion
from projects.bevformer.model import Frame
from projects.bevformer.model.detection.layer import BEVFormerDecoderLayer
from projects.bevformer.model.mm.focal_loss import TorchFocalLoss
from projects.bevformer.model.mm.norms import LeanBatchNorm2d

from mmdet3d.models import build_model  # isort: skip

QUERIES = BEV_HW[0] * BEV_HW[1]


class Encode(nn.Module):
    """`encode` as a function of tensors only, one frame after another."""

    def __init__(self, detector):
        super().__init__()
        self.detector = detector

    def forward(self, images, lidar2img, can_bus, prev_bev):
        motion = EgoMotion.from_can_bus(can_bus)
        frame = Frame(lidar2img, IMAGE_HW, can_bus.float(), motion)
        return self.detector.encode(images, frame, prev_bev)


def tensors(frame, seed):
    meta = make_meta(0, frame)
    matrices = torch.from_numpy(np.stack(meta["lidar2img"])).float()[None]
    prev_bev = torch.randn(1, QUERIES, CHANNELS, generator=torch.Generator().manual_seed(seed))
    return images(0, frame)[None], matrices, torch.from_numpy(meta["can_bus"])[None], prev_bev


def test_encode_can_be_traced():
    """Traced once, it follows other images, poses and another previous BEV; the rig is a constant."""
    encode, first = Encode(build_detector().eval()), tensors(0, 1)
    with torch.no_grad():
        traced = torch.jit.trace(encode, first, check_trace=False)
        torch.testing.assert_close(traced(*first), encode(*first))
        other = (tensors(1, 2)[0], first[1], *tensors(1, 2)[2:])
        torch.testing.assert_close(traced(*other), encode(*other), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(encode(*other), encode(*first), atol=1e-2)


def test_encode_needs_no_metas():
    detector = build_detector().eval()
    meta, given = make_meta(0, 1), tensors(1, 3)
    with torch.no_grad():
        expected = detector.encode(given[0], Frame.from_metas([meta]), given[3])
        torch.testing.assert_close(Encode(detector)(*given), expected)


@pytest.mark.parametrize("cameras", [1, 5, 7])
def test_any_number_of_cameras(cameras):
    yaws = np.linspace(0, 360, cameras, endpoint=False)
    detector = build_detector(head=dict(transformer=dict(transformer_config(), num_cams=cameras)))

    def with_rig(meta):
        shapes = [(*IMAGE_HW, 3)] * cameras
        return dict(
            meta, lidar2img=[lidar2img(yaw) for yaw in yaws], img_shape=shapes, pad_shape=shapes
        )

    batch = training_batch((0,), frames=2)
    batch["img"] = torch.randn(1, 2, cameras, 3, *IMAGE_HW)
    batch["img_metas"] = [{t: with_rig(meta) for t, meta in batch["img_metas"][0].items()}]
    losses = detector(return_loss=True, **batch)
    assert all(torch.isfinite(loss) for loss in losses.values())
    test = inference_batch((0,))
    metas = [[with_rig(meta) for meta in test["img_metas"][0]]]
    with torch.no_grad():
        (result,) = detector.eval()(return_loss=False, img=[batch["img"][:, 0]], img_metas=metas)
    assert len(result["pts_bbox"]["scores_3d"])


@HEADS.register_module()
class HeadFromElsewhere(nn.Module):
    """Does what the detector asks of a head, and does not say what its grid is."""

    def __init__(self, train_cfg=None, **options):
        super().__init__()
        self.inner = HEADS.build(dict(options, type="BEVFormerHead", train_cfg=train_cfg))
        for name in ("find_visible", "encode", "detect", "loss", "get_bboxes"):
            setattr(self, name, getattr(self.inner, name))


def test_a_head_from_another_package_trains_and_tests():
    detector = build_detector(head=dict(type="HeadFromElsewhere"))
    sum(detector(return_loss=True, **training_batch((0,))).values()).backward()
    grad = detector.pts_bbox_head.inner.bev_embedding.weight.grad
    assert grad.abs().sum() > 0
    with torch.no_grad():
        (result,) = detector.eval()(return_loss=False, **inference_batch((0,)))
    assert len(result["pts_bbox"]["scores_3d"])
    stamp = training_stamp(Config(dict(data={})), detector)
    assert "rotate_center" not in stamp


@BACKBONES.register_module()
class BackboneFromElsewhere(nn.Module):
    """Two levels from strided convolutions; no mmdet class, no `init_weights`."""

    def __init__(self, width):
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, stride=16, padding=1)
        self.second = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)

    def forward(self, x):
        first = self.first(x)
        return first, self.second(first.relu())


def test_a_backbone_from_another_package_trains():
    detector = build_detector(
        img_backbone=dict(type="BackboneFromElsewhere", width=8),
        img_neck=dict(type="FPN", in_channels=[8, 16], out_channels=CHANNELS, num_outs=2),
    )
    losses = detector(return_loss=True, **training_batch((0,)))
    sum(losses.values()).backward()
    assert all(p.grad.abs().sum() > 0 for p in detector.img_backbone.parameters())


def test_published_types_are_replaced_and_logged_without_our_engine(tmp_path, caplog):
    """A config of published names, read by mmcv only."""
    decoder = decoder_config()
    decoder["transformerlayers"]["type"] = "DetrTransformerDecoderLayer"
    head = head_config(
        transformer=dict(transformer_config(), decoder=decoder),
        loss_iou=dict(type="GIoULoss", loss_weight=0.0),
        as_two_stage=False,
    )
    model = dict(
        type="BEVFormer",
        img_backbone=dict(
            type="ResNet", depth=18, base_channels=8, out_indices=(2, 3), norm_cfg=dict(type="BN2d")
        ),
        img_neck=dict(type="FPN", in_channels=[32, 64], out_channels=CHANNELS, num_outs=2),
        pts_bbox_head=head,
        video_test_mode=True,
        train_cfg=dict(pts=train_config()),
    )
    path = tmp_path / "published.py"
    path.write_text(f"model = {model!r}\n")
    with caplog.at_level(logging.INFO):
        detector = build_model(Config.fromfile(str(path)).model)
    head = detector.pts_bbox_head
    assert isinstance(head.loss_cls, TorchFocalLoss)
    assert isinstance(head.transformer.decoder.layers[0], BEVFormerDecoderLayer)
    assert isinstance(detector.img_backbone.bn1, LeanBatchNorm2d)
    (line,) = {r.getMessage() for r in caplog.records if "replaced types" in r.getMessage()}
    for swap in ("FocalLoss -> TorchFocalLoss", "BN2d -> LeanBN2d", "-> BEVFormerDecoderLayer"):
        assert swap in line
    boxes, labels = ground_truth()
    outputs = head.detect(torch.randn(1, QUERIES, CHANNELS))
    assert set(head.loss([boxes], [labels], outputs)) >= {"loss_cls", "loss_bbox"}


def test_a_frame_is_frozen():
    frame = Frame.from_metas([make_meta()])
    with pytest.raises(AttributeError):
        frame.has_prev = False
    assert replace(frame, has_prev=False).lidar2img is frame.lidar2img

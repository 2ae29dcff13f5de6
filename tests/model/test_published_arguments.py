"""Arguments of the original's constructors, and parts that are switched off."""

import copy

import pytest
import torch
import torch.distributed as dist
from mmcv import ConfigDict
from mmdet.models.builder import DETECTORS
from mmdet3d.datasets.builder import DATASETS
from mmdet3d.models import build_model
from tiny_bevformer import (
    CHANNELS,
    build_detector,
    head_config,
    train_config,
    training_batch,
    transformer_config,
)
from torch import nn

from projects.bevformer.engine import training_model
from projects.bevformer.engine.training_model import TrainingModel
from projects.bevformer.model.detection.bev_attention import GroupMultiheadAttention

HEAD = "pts_bbox_head"
TRANSFORMER = f"{HEAD}.transformer"
ENCODER, DECODER = (f"{TRANSFORMER}.{part}" for part in ("encoder", "decoder"))
ENCODER_LAYER, DECODER_LAYER = (f"{part}.transformerlayers" for part in (ENCODER, DECODER))
TSA, SCA = (f"{ENCODER_LAYER}.attn_cfgs.{i}" for i in (0, 1))
IN_CAMERA = f"{SCA}.deformable_attention"
SELF, TO_BEV = (f"{DECODER_LAYER}.attn_cfgs.{i}" for i in (0, 1))
ASSIGNER = f"{HEAD}.train_cfg.assigner"
FFN = dict(type="FFN", embed_dims=CHANNELS, feedforward_channels=24, num_fcs=2, ffn_drop=0.0)
SLOTS = ("voxel_layer", "voxel_encoder", "middle_encoder", "fusion_layer", "backbone", "neck")


def tiny(path="", **arguments):
    """Config of the tiny detector with arguments of one of its parts, on random weights."""
    head = head_config()
    config = ConfigDict(
        type="BEVFormer",
        img_backbone=dict(
            type="ResNet", depth=18, base_channels=4, num_stages=1, strides=(2,), dilations=(1,),
            out_indices=(0,),
        ),
        img_neck=dict(type="FPN", in_channels=[4], out_channels=CHANNELS, num_outs=2),
        pts_bbox_head=dict(head, train_cfg=train_config()),
    )  # fmt: skip
    part = config
    for key in filter(None, path.split(".")):
        part = part[int(key)] if key.isdigit() else part[key]
    part.update(arguments)
    return config


def build(path="", **arguments):
    config = tiny(path, **arguments)
    return build_model(config, train_cfg=dict(pts=config.pts_bbox_head.pop("train_cfg")))


@pytest.fixture(scope="module")
def shapes():
    return {name: value.shape for name, value in build().state_dict().items()}


@pytest.mark.parametrize(
    ("path", "arguments"),
    [
        *((path, dict(im2col_step=64)) for path in (TSA, IN_CAMERA, TO_BEV)),
        *((path, dict(batch_first=True)) for path in (TSA, SCA, IN_CAMERA, TO_BEV, SELF)),
        *((path, dict(batch_first=False)) for path in (SCA, TO_BEV, SELF, ENCODER_LAYER)),
        *((path, dict(norm_cfg=None)) for path in (TSA, IN_CAMERA, TO_BEV)),
        (IN_CAMERA, dict(dropout=0.1)),
        (TSA, dict(num_levels=1, num_bev_queue=2)),
        (SCA, dict(num_cams=6, pc_range=[0, 0, 0, 1, 1, 1])),
        *(
            (layer, arguments)
            for layer in (ENCODER_LAYER, DECODER_LAYER)
            for arguments in (
                dict(ffn_cfgs=FFN),
                dict(ffn_cfgs=[FFN], ffn_dropout=None, feedforward_channels=None),
                dict(norm_cfg=dict(type="LN")),
                dict(act_cfg=dict(type="ReLU", inplace=True)),
                dict(ffn_num_fcs=2),
                dict(operation_order=["self_attn", "norm", "cross_attn", "norm", "ffn", "norm"]),
            )
        ),
        (ENCODER, dict(return_intermediate=False, dataset_type="nuscenes")),
        (DECODER, dict(return_intermediate=True)),
        (TRANSFORMER, dict(two_stage_num_proposals=300)),
        (HEAD, dict(code_size=10, num_cls_fcs=2, num_reg_fcs=2, as_two_stage=False, test_cfg=None)),
        (f"{HEAD}.bbox_coder", dict(voxel_size=[0.2, 0.2, 8])),
        (ASSIGNER, dict(iou_cost=dict(type="IoUCost", weight=0.0), pc_range=[0, 0, 0, 1, 1, 1])),
        ("", {f"pts_{slot}": None for slot in SLOTS}),
        ("", dict(pts_backbone={}, img_roi_head=None, img_rpn_head=None, test_cfg=dict(pts={}))),
        ("", dict(type="BEVFormer_fp16")),
    ],
    ids=str,
)
def test_values_that_change_nothing_are_taken(shapes, path, arguments):
    built = build(path, **arguments)
    assert {name: value.shape for name, value in built.state_dict().items()} == shapes


@pytest.mark.parametrize(
    ("path", "arguments", "says"),
    [
        (HEAD, dict(code_size=8), "code_size=8 .*a box has ten code columns.*set code_size=10"),
        (HEAD, dict(num_cls_fcs=3), "num_cls_fcs=3 .*num_reg_fcs is the number of layers"),
        (HEAD, dict(as_two_stage=True), "set as_two_stage=False"),
        *(
            ("", {slot: dict(type="X")}, f"{slot}=.*cameras and heads on the BEV only.*{slot}=None")
            for slot in (*(f"pts_{slot}" for slot in SLOTS), "img_roi_head", "img_rpn_head")
        ),
        *((path, dict(norm_cfg=dict(type="LN")), "norm_cfg=None") for path in (TSA, TO_BEV)),
        (TSA, dict(num_bev_queue=3), "set num_bev_queue=2"),
        (ENCODER, dict(return_intermediate=True), "set return_intermediate=False"),
        (DECODER, dict(return_intermediate=False), "set return_intermediate=True"),
        (ENCODER_LAYER, dict(operation_order=("norm", "self_attn")), "set operation_order="),
        (
            ENCODER_LAYER,
            dict(ffn_cfgs=dict(FFN, feedforward_channels=32)),
            "feedforward_channels=24 and ffn_cfgs.feedforward_channels=32 contradict each other",
        ),
        (
            DECODER_LAYER,
            dict(ffn_cfgs=dict(FFN, ffn_drop=0.5)),
            "ffn_dropout=0.0 and ffn_cfgs.ffn_d",
        ),
        (DECODER_LAYER, dict(ffn_cfgs=dict(FFN, embed_dims=8)), r"embed_dims \[8, 16\]: set one"),
        (
            ENCODER_LAYER,
            dict(attn_cfgs=dict(type="TemporalSelfAttention")),
            "two attentions, got 1",
        ),
        (ENCODER, dict(num_layers=3, transformerlayers=[{}]), "num_layers is 3, .*a list of 1"),
        (ASSIGNER, dict(iou_cost=dict(type="IoUCost", weight=1.0)), "does not compute iou_cost"),
    ],
    ids=str,
)
def test_values_that_cannot_be_honoured_are_refused(path, arguments, says):
    with pytest.raises(ValueError, match=says):
        build(path, **arguments)


def test_the_second_version_has_empty_slots_too():
    with pytest.raises(ValueError, match="set pts_neck=None"):
        DETECTORS.build(dict(type="BEVFormerV2", pts_neck=dict(type="FPN")))


def test_data_sets_score_without_the_overlap_test():
    for name in ("CustomNuScenesDataset", "CustomNuScenesDatasetV2"):
        with pytest.raises(ValueError, match="set overlap_test=False"):
            DATASETS.build(dict(type=name, ann_file="none.pkl", overlap_test=True))


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_feed_forward_network_and_norms_are_as_given(part):
    ffn = dict(
        type="FFN", feedforward_channels=32, num_fcs=3, ffn_drop=0.25, act_cfg=dict(type="GELU")
    )
    nothing = dict(feedforward_channels=None, ffn_dropout=None)
    apart = dict(feedforward_channels=32, ffn_num_fcs=3, ffn_dropout=0.25, act_cfg=ffn["act_cfg"])
    path = f"{TRANSFORMER}.{part}.transformerlayers"
    for arguments in (dict(nothing, ffn_cfgs=ffn), apart, dict(apart, ffn_cfgs=ffn)):
        model = build(path, norm_cfg=dict(type="LN", eps=0.5), **arguments)
        layer = getattr(model.pts_bbox_head.transformer, part).layers[0]
        layers = layer.ffns[0].layers
        assert [layers[0][0].out_features, layers[1][0].out_features] == [32, 32]
        assert isinstance(layers[0][1], nn.GELU)
        assert layers[0][2].p == 0.25
        assert [norm.eps for norm in layer.norms] == [0.5] * 3


def test_layers_may_differ():
    one = tiny().pts_bbox_head.transformer.encoder.transformerlayers
    wide = dict(copy.deepcopy(one), feedforward_channels=40)
    layers = build(ENCODER, transformerlayers=[one, wide]).pts_bbox_head.transformer.encoder.layers
    assert [layer.ffns[0].feedforward_channels for layer in layers] == [24, 40]


def test_groups_of_attention_and_head_agree():
    attention = dict(type="GroupMultiheadAttention", embed_dims=CHANNELS, num_heads=2, dropout=0.1)

    def detector(group):
        transformer = transformer_config()
        transformer["decoder"]["transformerlayers"]["attn_cfgs"][0] = dict(attention, **group)
        return build(HEAD, group_detr=2, transformer=transformer)

    for group in ({}, dict(group=2)):
        assert detector(group).pts_bbox_head.group_detr == 2
    with pytest.raises(ValueError, match="group_detr of the head is 2, group of attn_cfgs is 11"):
        detector(dict(group=11))


def test_dropouts_of_the_group_attention():
    old = GroupMultiheadAttention(4, 2, dropout=0.5)
    new = GroupMultiheadAttention(
        4, 2, attn_drop=0.5, proj_drop=0.25, dropout_layer=dict(type="Dropout", drop_prob=0.125)
    )
    for layer, rates in ((old, (0.5, 0.0, 0.5)), (new, (0.5, 0.25, 0.125))):
        assert (layer.attn.dropout, layer.proj_drop.p, layer.dropout_layer.p) == rates
    assert GroupMultiheadAttention(4, 2).dropout_layer.p == 0.0


SWITCHES = [
    dict(use_can_bus=False),
    dict(use_cams_embeds=False),
    dict(rotate_prev_bev=False),
    dict(use_shift=False),
    dict(can_bus_norm=False, use_can_bus=0),
    dict(use_can_bus=False, use_cams_embeds=False, rotate_prev_bev=False, use_shift=False),
]


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_what_is_switched_off_keeps_its_weights_and_is_not_trained(switches):
    detector = build_detector(head=dict(transformer=transformer_config(**switches)))
    norm = {k: v for k, v in switches.items() if k == "can_bus_norm"}
    expected = build_detector(head=dict(transformer=transformer_config(**norm))).state_dict()
    own = detector.state_dict()
    assert {name: value.shape for name, value in own.items()} == {
        name: value.shape for name, value in expected.items()
    }
    sum(detector(return_loss=True, **training_batch()).values()).backward()
    for name, weight in detector.pts_bbox_head.named_parameters():
        assert (weight.grad is not None) == weight.requires_grad, name
        off = ("can_bus_mlp" in name and not switches.get("use_can_bus", True)) or (
            "cams_embeds" in name and not switches.get("use_cams_embeds", True)
        )
        assert weight.requires_grad == (not off and "code_weights" not in name), name


@pytest.fixture
def process_group(monkeypatch):
    """A group of this process only: DDP waits for gradients as in many."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    monkeypatch.setattr(training_model, "is_distributed", lambda: True)
    yield
    dist.destroy_process_group()


def test_what_is_switched_off_trains_in_data_parallel(process_group):
    detector = build_detector(head=dict(transformer=transformer_config(**SWITCHES[-1])))
    model = TrainingModel(detector, torch.device("cpu"))
    for frames in (1, 2, 1):  # the second iteration fails where a gradient of the first was missing
        losses = model.step(return_loss=True, **training_batch(frames=frames))
        sum(losses.values()).backward()

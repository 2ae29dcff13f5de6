from dataclasses import replace

import numpy as np
import pytest
import torch
from mmcv.cnn.bricks.registry import ATTENTION
from mmcv.runner import BaseModule
from mmdet.models.utils import build_transformer
from tiny_bevformer import (
    BEV_HW,
    CAMERAS,
    CHANNELS,
    PC_RANGE,
    image_features,
    make_meta,
    shake_weights,
    transformer_config,
)

from projects.bevformer.geometry.can_bus import CAN_SIZE, CAN_YAW_DEG, CAN_YAW_RAD
from projects.bevformer.geometry.ego_motion import bev_shift, rotate_bev
from projects.bevformer.model import Frame
from projects.bevformer.model.detection.context import ObjectContext

QUERIES = BEV_HW[0] * BEV_HW[1]


def make_transformer(**options):
    torch.manual_seed(0)
    transformer = build_transformer(transformer_config(**options))
    shake_weights(transformer)
    return transformer


def context_of(transformer, samples=(0,), has_prev=True, metas=None):
    """Context of a frame; the learned queries and the previous BEV that went into it."""
    generator = torch.Generator().manual_seed(1)
    bev_queries = torch.randn(*BEV_HW, CHANNELS, generator=generator)
    prev_bev = torch.stack(
        [
            torch.randn(QUERIES, CHANNELS, generator=torch.Generator().manual_seed(sample))
            for sample in samples
        ]
    )
    feats = [torch.cat(level) for level in zip(*[image_features(sample) for sample in samples])]
    bev_pos = torch.zeros(len(samples), QUERIES, CHANNELS)
    metas = [make_meta(sample) for sample in samples] if metas is None else metas
    frame = replace(Frame.from_metas(metas), has_prev=has_prev)
    context = transformer.frame_context(feats, bev_queries, bev_pos, frame, prev_bev)
    return context, bev_queries.flatten(0, 1), prev_bev


def test_can_bus_embedding_is_added_to_every_query_of_its_sample():
    transformer = make_transformer()
    context, bev_queries, _ = context_of(transformer, (0, 1))
    for sample in range(2):
        can_bus = torch.from_numpy(make_meta(sample)["can_bus"]).float()
        assert can_bus.shape == (CAN_SIZE,)
        expected = bev_queries + transformer.can_bus_mlp(can_bus)
        torch.testing.assert_close(context.bev_queries[sample], expected)


def test_can_bus_embedding_can_be_left_out():
    context, bev_queries, _ = context_of(make_transformer(use_can_bus=False))
    torch.testing.assert_close(context.bev_queries[0], bev_queries)


def previous_values(context):
    """(B, Q, C) the previous BEV as the encoder sees it, and (B, 2) how far its points are shifted."""
    previous, current = context.reference_bev.unbind(dim=1)
    return context.prev_and_current[:, 0], (previous - current)[:, 0]


def test_prev_bev_is_rotated_and_shifted_by_each_samples_motion():
    context, _, prev_bev = context_of(make_transformer(), (0, 1))
    can_bus = np.stack([make_meta(sample)["can_bus"] for sample in range(2)])
    rotated = rotate_bev(prev_bev, can_bus[:, CAN_YAW_DEG], BEV_HW, PC_RANGE)
    assert not torch.equal(rotated, prev_bev)
    actual, actual_shift = previous_values(context)
    assert torch.equal(actual, rotated)
    shift = bev_shift(
        torch.from_numpy(can_bus[:, :2]), torch.from_numpy(can_bus[:, CAN_YAW_RAD]), PC_RANGE
    )
    torch.testing.assert_close(actual_shift, shift)
    assert context.has_prev is None


def test_rotation_centre_can_be_the_official_one():
    context, _, prev_bev = context_of(make_transformer(rotate_center=[2, 1]))
    turn_deg = [make_meta()["can_bus"][CAN_YAW_DEG]]
    rotated = rotate_bev(prev_bev, turn_deg, BEV_HW, PC_RANGE, (2, 1))
    assert torch.equal(previous_values(context)[0], rotated)


def test_rotation_and_shift_can_be_left_out():
    transformer = make_transformer(rotate_prev_bev=False, use_shift=False)
    context, _, prev_bev = context_of(transformer)
    actual, shift = previous_values(context)
    assert torch.equal(actual, prev_bev)
    assert not shift.any()


def test_no_shift_without_previous_frames():
    context, _, _ = context_of(make_transformer(), (0, 1), has_prev=False)
    assert context.prev_and_current is None
    assert context.has_prev is None
    assert torch.equal(*context.reference_bev.unbind(dim=1))


def test_scene_starts_are_distinguished_per_sample():
    context, _, _ = context_of(make_transformer(), (0, 1), has_prev=torch.tensor([False, True]))
    assert context.has_prev.tolist() == [False, True]
    _, shift = previous_values(context)
    assert not shift[0].any()
    assert shift[1].any()


def test_visible_queries_can_be_precomputed():
    transformer = make_transformer()
    context, _, _ = context_of(transformer)
    (frame,) = transformer.encoder.find_visible([Frame.from_metas([make_meta()])], BEV_HW)
    assert frame.visible.lengths == context.visible.lengths
    assert torch.equal(frame.visible.reference_uv, context.visible.reference_uv)


@pytest.mark.parametrize("use_cams_embeds", [True, False])
def test_levels_are_flattened_with_their_embeddings(use_cams_embeds):
    transformer = make_transformer(use_cams_embeds=use_cams_embeds)
    context, _, _ = context_of(transformer, (0, 1))
    first, second = (
        torch.cat(level) for level in zip(*[image_features(sample) for sample in range(2)])
    )
    assert context.image_shapes == [(4, 8), (2, 4)]
    assert context.image_features.shape == (2, CAMERAS, 4 * 8 + 2 * 4, CHANNELS)
    camera = transformer.cams_embeds[1] if use_cams_embeds else 0
    torch.testing.assert_close(
        context.image_features[0, 1, 3 * 8 + 5],
        first[0, 1, :, 3, 5] + transformer.level_embeds[0] + camera,
    )
    torch.testing.assert_close(
        context.image_features[1, 1, 4 * 8 + 1 * 4 + 2],
        second[1, 1, :, 1, 2] + transformer.level_embeds[1] + camera,
    )


def test_decoding_starts_from_the_learned_reference_points():
    transformer = make_transformer()
    object_queries = torch.randn(6, 2 * CHANNELS)
    bev = torch.randn(2, QUERIES, CHANNELS)
    states, references = transformer.decode(bev, BEV_HW, object_queries, None)
    position = object_queries[:, :CHANNELS]
    expected = transformer.reference_points(position).sigmoid()
    torch.testing.assert_close(references[0], expected.expand(2, -1, -1))
    content = object_queries[:, CHANNELS:].expand(2, -1, -1)
    layer = transformer.decoder.layers[0]
    context = ObjectContext(position.expand(2, -1, -1), bev, BEV_HW)
    first = layer(content, references[0, ..., :2], context)
    torch.testing.assert_close(states[0], first, rtol=1e-5, atol=1e-5)


def test_initialisation_keeps_deformable_attention_rays():
    transformer = build_transformer(transformer_config())
    transformer.init_weights()
    for name, parameter in transformer.named_parameters():
        if "sampling_offsets.weight" in name or "attention_weights" in name:
            assert not parameter.detach().any(), name
        elif "sampling_offsets.bias" in name:
            assert parameter.abs().max() >= 1, name
    assert not transformer.reference_points.bias.detach().any()


class OwnAttention(torch.nn.Module):
    """An attention from elsewhere that initialises itself, its inner projection included."""

    def __init__(self, **_):
        super().__init__()
        self.embed_dims = CHANNELS
        self.projection = torch.nn.Linear(CHANNELS, CHANNELS)
        self.init_weights()

    def init_weights(self):
        torch.nn.init.constant_(self.projection.weight, 0.25)

    def forward(self, query, context):
        return query + self.projection(context.bev_queries)


class ConfiguredAttention(OwnAttention, BaseModule):
    """The same by mmcv's `init_cfg`."""

    def __init__(self, **_):
        BaseModule.__init__(self, init_cfg=dict(type="Constant", layer="Linear", val=0.25))
        self.projection = torch.nn.Linear(CHANNELS, CHANNELS)

    init_weights = BaseModule.init_weights


class NestedAttention(OwnAttention, BaseModule):
    """Its `init_weights` is mmcv's, over a child with an `init_cfg`."""

    def __init__(self, **_):
        BaseModule.__init__(self)
        self.inner = BaseModule(dict(type="Constant", layer="Linear", val=0.25))
        self.inner.projection = torch.nn.Linear(CHANNELS, CHANNELS)

    @property
    def projection(self):
        return self.inner.projection

    def init_weights(self):
        BaseModule.init_weights(self)


@pytest.mark.parametrize("kind", [OwnAttention, ConfiguredAttention, NestedAttention])
@pytest.mark.parametrize("calls", [1, 2])
def test_custom_init_weights_are_not_overwritten(kind, calls):
    ATTENTION.register_module(module=kind, name="AttentionFromElsewhere", force=True)
    config = transformer_config()
    config["encoder"]["transformerlayers"]["attn_cfgs"][0] = dict(
        type="AttentionFromElsewhere", embed_dims=CHANNELS
    )
    transformer = build_transformer(config)
    for _ in range(calls):
        transformer.init_weights()
    for layer in transformer.encoder.layers:
        assert (layer.attentions[0].projection.weight == 0.25).all()
    context, _, _ = context_of(transformer)
    assert torch.isfinite(transformer.encoder(context)).all()


@pytest.mark.parametrize("samples", [(0,), (0, 1, 2)])
def test_metas_of_another_batch_are_rejected(samples):
    metas = [make_meta(0), make_meta(1)]
    with pytest.raises(ValueError, match="lidar2img of 2 and 2"):
        context_of(make_transformer(), samples, metas=metas)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            dict(num_feature_levels=1),
            "gives 2 levels of 16 channels, num_feature_levels of the transformer is 1",
        ),
        (dict(num_cams=1), "images of 2 cameras .* num_cams of the transformer is 1"),
        (dict(num_cams=6), "images of 2 cameras .* num_cams of the transformer is 6"),
    ],
)
def test_features_without_embeddings_are_refused(options, message):
    transformer = build_transformer(dict(transformer_config(), **options))
    with pytest.raises(ValueError, match=message):
        context_of(transformer)


def test_features_of_another_width_are_rejected():
    transformer, frame = make_transformer(), Frame.from_metas([make_meta()])
    feats = [feat[:, :, :8] for feat in image_features(0)]
    with pytest.raises(ValueError, match="gives 2 levels of 8 channels.* embed_dims 16"):
        transformer.frame_context(feats, torch.zeros(*BEV_HW, 16), torch.zeros(1, 20, 16), frame)


def test_the_rotation_centre_is_a_pair():
    with pytest.raises(
        ValueError, match=r"rotate_center must be \(column, row\) or None, got \[100\]"
    ):
        make_transformer(rotate_center=[100])

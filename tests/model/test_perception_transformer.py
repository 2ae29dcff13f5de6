import copy

import numpy as np
import pytest
import torch
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

QUERIES = BEV_HW[0] * BEV_HW[1]


def make_transformer(**options):
    torch.manual_seed(0)
    transformer = build_transformer(transformer_config(**options))
    shake_weights(transformer)
    return transformer


class Recorder(torch.nn.Module):
    """Stands in for the encoder and keeps its arguments."""

    pc_range = PC_RANGE

    def camera_hits(self, bev_hw, lidar2img, image_hw):
        self.cameras = dict(bev_hw=bev_hw, lidar2img=lidar2img, image_hw=image_hw)
        return ["hits"]

    def frame_context(self, **arguments):
        assert arguments["hits"] == "hits"
        self.arguments = arguments
        return arguments["bev_queries"]

    def forward(self, context):
        return context


def encoder_arguments(transformer, samples=(0,), has_prev=(True,)):
    """What `get_bev_features` hands to the encoder; the learned queries and the previous BEV."""
    transformer.encoder = Recorder()
    generator = torch.Generator().manual_seed(1)
    bev_queries = torch.randn(QUERIES, CHANNELS, generator=generator)
    prev_bev = torch.stack(
        [
            torch.randn(QUERIES, CHANNELS, generator=torch.Generator().manual_seed(sample))
            for sample in samples
        ]
    )
    feats = [torch.cat(level) for level in zip(*[image_features(sample) for sample in samples])]
    bev_pos = torch.zeros(len(samples), QUERIES, CHANNELS)
    metas = [make_meta(sample) for sample in samples]
    transformer.get_bev_features(
        feats, bev_queries, bev_pos, BEV_HW, metas, prev_bev, list(has_prev)
    )
    return transformer.encoder.arguments, bev_queries, prev_bev


def test_can_bus_embedding_is_added_to_every_query_of_its_sample():
    transformer = make_transformer()
    arguments, bev_queries, _ = encoder_arguments(transformer, (0, 1), (True, True))
    for sample in range(2):
        can_bus = torch.from_numpy(make_meta(sample)["can_bus"]).float()
        assert can_bus.shape == (CAN_SIZE,)
        expected = bev_queries + transformer.can_bus_mlp(can_bus)
        torch.testing.assert_close(arguments["bev_queries"][sample], expected)


def test_can_bus_embedding_can_be_left_out():
    arguments, bev_queries, _ = encoder_arguments(make_transformer(use_can_bus=False))
    torch.testing.assert_close(arguments["bev_queries"][0], bev_queries)


def test_previous_bev_is_turned_and_shifted_by_each_samples_motion():
    arguments, _, prev_bev = encoder_arguments(make_transformer(), (0, 1), (True, True))
    can_bus = np.stack([make_meta(sample)["can_bus"] for sample in range(2)])
    turned = rotate_bev(prev_bev, can_bus[:, CAN_YAW_DEG], BEV_HW)
    assert not torch.equal(turned, prev_bev)
    assert torch.equal(arguments["history"], turned)
    shift = bev_shift(
        torch.from_numpy(can_bus[:, :2]), torch.from_numpy(can_bus[:, CAN_YAW_RAD]), PC_RANGE
    )
    torch.testing.assert_close(arguments["shift"], shift)


def test_the_rotation_centre_can_be_the_official_one():
    arguments, _, prev_bev = encoder_arguments(make_transformer(rotate_center=[2, 1]))
    turned = rotate_bev(prev_bev, [make_meta()["can_bus"][CAN_YAW_DEG]], BEV_HW, (2, 1))
    assert torch.equal(arguments["history"], turned)


def test_rotation_and_shift_can_be_left_out():
    transformer = make_transformer(rotate_prev_bev=False, use_shift=False)
    arguments, _, prev_bev = encoder_arguments(transformer)
    assert torch.equal(arguments["history"], prev_bev)
    assert not arguments["shift"].any()


def test_without_any_previous_frame_there_is_no_history():
    arguments, _, _ = encoder_arguments(make_transformer(), (0, 1), (False, False))
    assert arguments["history"] is None
    assert arguments["has_history"] == [False, False]


def test_scene_starts_are_told_apart():
    arguments, _, _ = encoder_arguments(make_transformer(), (0, 1), (False, True))
    assert arguments["history"] is not None
    assert arguments["has_history"] == [False, True]


@pytest.mark.parametrize("use_cams_embeds", [True, False])
def test_levels_are_flattened_with_their_embeddings(use_cams_embeds):
    transformer = make_transformer(use_cams_embeds=use_cams_embeds)
    arguments, _, _ = encoder_arguments(transformer, (0, 1), (True, True))
    first, second = (
        torch.cat(level) for level in zip(*[image_features(sample) for sample in range(2)])
    )
    assert arguments["image_shapes"] == [(4, 8), (2, 4)]
    assert arguments["image_features"].shape == (2, CAMERAS, 4 * 8 + 2 * 4, CHANNELS)
    camera = transformer.cams_embeds[1] if use_cams_embeds else 0
    torch.testing.assert_close(
        arguments["image_features"][0, 1, 3 * 8 + 5],
        first[0, 1, :, 3, 5] + transformer.level_embeds[0] + camera,
    )
    torch.testing.assert_close(
        arguments["image_features"][1, 1, 4 * 8 + 1 * 4 + 2],
        second[1, 1, :, 1, 2] + transformer.level_embeds[1] + camera,
    )


def test_cameras_and_image_size_come_from_the_metas():
    transformer = make_transformer()
    encoder_arguments(transformer, (0, 1), (True, True))
    cameras = transformer.encoder.cameras
    assert cameras["bev_hw"] == BEV_HW
    assert cameras["image_hw"] == [(32, 64)]
    for sample in range(2):
        expected = np.stack(make_meta(sample)["lidar2img"]).astype(np.float32)
        np.testing.assert_array_equal(cameras["lidar2img"][0][sample], expected)


def test_images_of_different_sizes_are_refused():
    transformer, metas = make_transformer(), [make_meta(0), make_meta(1)]
    metas[1]["img_shape"] = [(32, 64, 3), (64, 64, 3)]
    feats = [torch.cat(level) for level in zip(image_features(0), image_features(1))]
    with pytest.raises(ValueError, match="padded to one size"):
        transformer.get_bev_features(
            feats,
            torch.zeros(QUERIES, CHANNELS),
            torch.zeros(2, QUERIES, CHANNELS),
            BEV_HW,
            metas,
            None,
            [False, False],
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
    first = layer(content, position.expand(2, -1, -1), bev, BEV_HW, references[0, ..., :2])
    torch.testing.assert_close(states[0], first, rtol=1e-5, atol=1e-5)


def test_metas_are_not_edited():
    meta = make_meta()
    before = copy.deepcopy(meta)
    transformer = make_transformer()
    with torch.no_grad():
        transformer.get_bev_features(
            image_features(0),
            torch.zeros(QUERIES, CHANNELS),
            torch.zeros(1, QUERIES, CHANNELS),
            BEV_HW,
            [meta],
            torch.zeros(1, QUERIES, CHANNELS),
            [True],
        )
    assert meta.keys() == before.keys()
    np.testing.assert_array_equal(meta["can_bus"], before["can_bus"])
    np.testing.assert_array_equal(meta["lidar2img"], before["lidar2img"])


def test_initial_weights_keep_the_rays_of_deformable_attention():
    transformer = build_transformer(transformer_config())
    transformer.init_weights()
    for name, parameter in transformer.named_parameters():
        if "sampling_offsets.weight" in name or "attention_weights" in name:
            assert not parameter.detach().any(), name
        elif "sampling_offsets.bias" in name:
            assert parameter.abs().max() >= 1, name
    assert not transformer.reference_points.bias.detach().any()


@pytest.mark.parametrize("wrong", ["metas", "cameras"])
def test_metas_that_do_not_fit_the_images_are_refused(wrong):
    transformer = make_transformer()
    metas = [make_meta(0)]
    if wrong == "metas":
        metas = metas * 2
    else:
        metas[0]["lidar2img"] = metas[0]["lidar2img"][:1]
    with pytest.raises(ValueError, match="2 metas|1 lidar2img"):
        transformer.get_bev_features(
            image_features(0),
            torch.zeros(QUERIES, CHANNELS),
            torch.zeros(1, QUERIES, CHANNELS),
            BEV_HW,
            metas,
            None,
            [False],
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_feature_levels=1), "gives 2 levels, num_feature_levels of the transformer is 1"),
        (dict(num_cams=1), "images of 2 cameras, num_cams of the transformer is 1"),
        (dict(num_cams=6), "images of 2 cameras, num_cams of the transformer is 6"),
    ],
)
def test_features_without_embeddings_are_refused(options, message):
    transformer = build_transformer(dict(transformer_config(), **options))
    with pytest.raises(ValueError, match=message):
        encoder_arguments(transformer)


def test_features_of_another_width_are_refused():
    with pytest.raises(ValueError, match="gives 8 channels, embed_dims of the transformer is 16"):
        make_transformer()._check_features([feat[:, :, :8] for feat in image_features(0)])


def test_the_rotation_centre_is_a_pair():
    with pytest.raises(
        ValueError, match=r"rotate_center must be \(column, row\) or None, got \[100\]"
    ):
        make_transformer(rotate_center=[100])

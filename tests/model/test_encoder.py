from dataclasses import replace

import naive_equations
import numpy as np
import pytest
import torch
from mmcv.cnn.bricks.transformer import build_transformer_layer_sequence
from mmdet.models.utils import build_transformer
from tiny_bevformer import (
    BEV_HW,
    CHANNELS,
    IMAGE_HW,
    PC_RANGE,
    encoder_config,
    image_features,
    make_meta,
    shake_weights,
    transformer_config,
)

from projects.bevformer.model import Frame

QUERIES = BEV_HW[0] * BEV_HW[1]


@pytest.fixture(scope="module")
def transformer():
    """A transformer that is nothing but an encoder: no embeddings are added to queries and features."""
    torch.manual_seed(0)
    transformer = build_transformer(
        transformer_config(rotate_prev_bev=False, use_can_bus=False, use_cams_embeds=False)
    )
    shake_weights(transformer)
    transformer.level_embeds.data.zero_()
    return transformer


@pytest.fixture
def encoder(transformer):
    return transformer.encoder


def inputs(samples=(0,), has_prev=True):
    """Arguments of `frame_context`; sample b depends on `samples[b]` only."""
    noise = [
        torch.randn(2, QUERIES, CHANNELS, generator=torch.Generator().manual_seed(sample))
        for sample in samples
    ]
    bev_pos, prev_bev = torch.stack(noise, dim=1)
    frame = Frame.from_metas([make_meta(sample) for sample in samples])
    return dict(
        feats=[torch.cat(level) for level in zip(*[image_features(sample) for sample in samples])],
        bev_queries=torch.randn(*BEV_HW, CHANNELS, generator=torch.Generator().manual_seed(9)),
        bev_pos=bev_pos,
        frame=replace(frame, has_prev=has_prev),
        prev_bev=prev_bev,
    )


def encode(transformer, **arguments):
    return transformer.encoder(transformer.frame_context(**arguments))


@pytest.mark.parametrize("has_prev", [True, False])
def test_equals_loops(transformer, has_prev):
    arguments = inputs((0,), has_prev)
    frame = arguments["frame"]
    context = transformer.frame_context(**arguments)
    expected = naive_equations.encode(
        transformer.encoder,
        arguments["bev_queries"].flatten(0, 1).double().numpy(),
        arguments["bev_pos"][0].double().numpy(),
        BEV_HW,
        context.image_features[0].detach().double().numpy(),
        context.image_shapes,
        frame.lidar2img[0].double().numpy(),
        IMAGE_HW,
        arguments["prev_bev"][0].double().numpy() if has_prev else None,
        frame.motion.bev_shift(PC_RANGE)[0].numpy(),
    )
    result = transformer.encoder(context)
    assert result.shape == (1, QUERIES, CHANNELS)
    np.testing.assert_allclose(result[0].detach().numpy(), expected, atol=1e-3)


def test_mixed_history_batch_equals_single_samples(transformer):
    together = encode(transformer, **inputs((0, 1), torch.tensor([False, True])))
    for sample, has_prev in ((0, False), (1, True)):
        alone = encode(transformer, **inputs((sample,), has_prev))
        torch.testing.assert_close(together[sample], alone[0], rtol=1e-4, atol=1e-5)


def test_ego_translation_changes_the_bev(transformer):
    arguments = inputs()
    motion = arguments["frame"].motion
    still = replace(motion, delta_xy_global=torch.zeros_like(motion.delta_xy_global))
    other = dict(arguments, frame=replace(arguments["frame"], motion=still))
    assert not torch.allclose(
        encode(transformer, **arguments), encode(transformer, **other), atol=1e-3
    )


def test_current_cells_are_reference_points_of_themselves(transformer):
    context = transformer.frame_context(**inputs((0, 1)))
    current = context.reference_bev[:, 1]
    assert torch.equal(current[0], current[1])
    torch.testing.assert_close(current[0, 0], torch.tensor([0.5 / BEV_HW[1], 0.5 / BEV_HW[0]]))


def test_cameras_that_see_nothing_leave_finite_features(transformer):
    arguments = inputs()
    # Looking at the sky: every pillar point lies behind the image plane.
    sky = torch.eye(4)
    sky[2, 2], sky[2, 3] = 1.0, -100.0
    arguments["frame"] = replace(arguments["frame"], lidar2img=sky.expand(1, 2, 4, 4))
    context = transformer.frame_context(**arguments)
    assert context.visible.lengths == (0, 0)
    result = transformer.encoder(context)
    assert torch.isfinite(result).all()
    other = replace(context, image_features=context.image_features + 5)
    assert torch.equal(transformer.encoder(other), result)


def test_arguments_are_not_modified(transformer):
    arguments = inputs((0, 1), torch.tensor([False, True]))
    before = {k: v.clone() for k, v in arguments.items() if torch.is_tensor(v)}
    encode(transformer, **arguments)
    assert all(torch.equal(arguments[key], value) for key, value in before.items())


def test_gradients_reach_every_weight(transformer):
    transformer.zero_grad()
    encode(transformer, **inputs()).square().sum().backward()
    for name, parameter in transformer.encoder.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def kept_numbers(encoder, context):
    """How many numbers autograd keeps of the encoder's own work."""
    sizes = []

    def pack(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        encoder(context)
    return sum(sizes)


@pytest.mark.parametrize("has_prev", [True, torch.tensor([False, True]), False])
def test_checkpoints_change_no_gradient(has_prev):
    """Of weights and inputs, with dropout: the second time draws what the first drew."""
    transformer = build_transformer(transformer_config(dropout=0.3)).train()
    shake_weights(transformer)
    gradients = []
    for with_cp in (False, True):
        transformer.encoder.with_cp = with_cp
        transformer.zero_grad()
        arguments = inputs((0, 1), has_prev)
        leaves = [arguments["bev_queries"], arguments["bev_pos"], *arguments["feats"]]
        for leaf in leaves:
            leaf.requires_grad_()
        torch.manual_seed(3)
        encode(transformer, **arguments).square().sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
        gradients[-1] += [parameter.grad for parameter in transformer.encoder.parameters()]
    for plain, recomputed in zip(*gradients):
        assert plain.abs().sum() > 0
        torch.testing.assert_close(recomputed, plain)


def test_checkpoints_keep_less(transformer):
    encoder = build_transformer_layer_sequence(encoder_config(num_layers=4))
    arguments = inputs()
    arguments["bev_queries"].requires_grad_()
    context = transformer.frame_context(**arguments)
    plain = kept_numbers(encoder, context)
    encoder.with_cp = True
    # Autograd keeps the arguments of each layer: its queries, and what all layers share.
    shared = [context.bev_pos, context.prev_and_current, context.image_features]
    own = kept_numbers(encoder, context) - 4 * sum(tensor.numel() for tensor in shared)
    assert own <= 4 * context.bev_queries.numel() + 8 < 0.2 * plain


def test_intermediate_results_are_rejected():
    with pytest.raises(ValueError, match="set return_intermediate=False"):
        build_transformer_layer_sequence(dict(encoder_config(), return_intermediate=True))


def test_the_range_is_checked():
    with pytest.raises(ValueError, match="pc_range must be"):
        build_transformer_layer_sequence(dict(encoder_config(), pc_range=[-8.0, 8.0, -6.0, 6.0]))

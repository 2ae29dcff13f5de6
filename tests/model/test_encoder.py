import naive_equations
import numpy as np
import pytest
import torch
from einops import rearrange
from mmcv.cnn.bricks.transformer import build_transformer_layer_sequence
from tiny_bevformer import (
    BEV_HW,
    CHANNELS,
    IMAGE_HW,
    encoder_config,
    image_features,
    make_meta,
    shake_weights,
)

QUERIES = BEV_HW[0] * BEV_HW[1]
SHIFTS = {0: (0.11, -0.06), 1: (-0.2, 0.31)}


@pytest.fixture(scope="module")
def encoder():
    encoder = build_transformer_layer_sequence(encoder_config())
    shake_weights(encoder)
    return encoder


def cameras(samples):
    """(B, N, 4, 4) matrices."""
    return torch.from_numpy(
        np.stack([np.stack(make_meta(sample)["lidar2img"]) for sample in samples])
    ).float()


def frame(encoder, samples=(0,), has_history=(True,)):
    """Arguments of `frame_context`; sample b depends on `samples[b]` alone."""
    noise = [
        torch.randn(3, QUERIES, CHANNELS, generator=torch.Generator().manual_seed(sample))
        for sample in samples
    ]
    bev_queries, bev_pos, history = torch.stack(noise, dim=1)
    levels = [torch.cat(level) for level in zip(*[image_features(sample) for sample in samples])]
    return dict(
        bev_queries=bev_queries,
        bev_pos=bev_pos,
        bev_hw=BEV_HW,
        image_features=torch.cat(
            [rearrange(level, "b n c h w -> b n (h w) c") for level in levels], dim=2
        ),
        image_shapes=[tuple(level.shape[-2:]) for level in levels],
        hits=encoder.camera_hits(BEV_HW, [cameras(samples)], [IMAGE_HW])[0],
        history=history if any(has_history) else None,
        has_history=list(has_history),
        shift=torch.tensor([SHIFTS[sample] for sample in samples]),
    )


@pytest.mark.parametrize("has_history", [True, False])
def test_equals_loops(encoder, has_history):
    arguments = frame(encoder, (0,), (has_history,))
    expected = naive_equations.encode(
        encoder,
        arguments["bev_queries"][0].double().numpy(),
        arguments["bev_pos"][0].double().numpy(),
        BEV_HW,
        arguments["image_features"][0].double().numpy(),
        arguments["image_shapes"],
        cameras((0,))[0].double().numpy(),
        IMAGE_HW,
        arguments["history"][0].double().numpy() if has_history else None,
        SHIFTS[0],
    )
    result = encoder(encoder.frame_context(**arguments))
    assert result.shape == (1, QUERIES, CHANNELS)
    np.testing.assert_allclose(result[0].detach().numpy(), expected, atol=1e-3)


def test_two_samples_of_which_one_starts_its_scene_are_two_times_one(encoder):
    together = encoder(encoder.frame_context(**frame(encoder, (0, 1), (False, True))))
    for sample, has_history in ((0, False), (1, True)):
        alone = encoder(encoder.frame_context(**frame(encoder, (sample,), (has_history,))))
        torch.testing.assert_close(together[sample], alone[0], rtol=1e-4, atol=1e-5)


def test_only_the_previous_frame_is_shifted(encoder):
    context = encoder.frame_context(**frame(encoder, (0, 1), (False, True)))
    previous, current = context.reference_bev.unbind(dim=1)
    assert torch.equal(previous[0], current[0])
    torch.testing.assert_close(previous[1] - current[1], torch.tensor([SHIFTS[1]] * QUERIES))
    torch.testing.assert_close(current[0], current[1])
    torch.testing.assert_close(current[0, 0], torch.tensor([0.5 / BEV_HW[1], 0.5 / BEV_HW[0]]))


def test_the_shift_matters(encoder):
    arguments = frame(encoder)
    still = dict(arguments, shift=torch.zeros(1, 2))
    assert not torch.allclose(
        encoder(encoder.frame_context(**arguments)),
        encoder(encoder.frame_context(**still)),
        atol=1e-3,
    )


def test_cameras_that_see_nothing_leave_finite_features(encoder):
    arguments = frame(encoder)
    # Looking at the sky: every pillar point lies behind the image plane.
    sky = torch.eye(4)
    sky[2, 2], sky[2, 3] = 1.0, -100.0
    (hits,) = encoder.camera_hits(BEV_HW, [sky.expand(1, 2, 4, 4)], [IMAGE_HW])
    assert hits.rows_per_map == (0, 0)
    arguments["hits"] = hits
    result = encoder(encoder.frame_context(**arguments))
    assert torch.isfinite(result).all()
    other = dict(arguments, image_features=arguments["image_features"] + 5)
    assert torch.equal(encoder(encoder.frame_context(**other)), result)


def test_no_argument_is_edited(encoder):
    arguments = frame(encoder, (0, 1), (False, True))
    before = {k: v.clone() for k, v in arguments.items() if torch.is_tensor(v)}
    encoder(encoder.frame_context(**arguments))
    assert all(torch.equal(arguments[key], value) for key, value in before.items())


def test_gradients_reach_every_weight(encoder):
    encoder.zero_grad()
    encoder(encoder.frame_context(**frame(encoder))).square().sum().backward()
    for name, parameter in encoder.named_parameters():
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


@pytest.mark.parametrize("has_history", [(True, True), (False, True), (False, False)])
def test_checkpoints_change_no_gradient(has_history):
    """Of weights and inputs, with dropout: the second time draws what the first drew."""
    leaves = ("bev_queries", "bev_pos", "image_features")
    encoder = build_transformer_layer_sequence(encoder_config(dropout=0.3)).train()
    shake_weights(encoder)
    gradients = []
    for with_cp in (False, True):
        encoder.with_cp = with_cp
        encoder.zero_grad()
        arguments = frame(encoder, (0, 1), has_history)
        for name in leaves:
            arguments[name].requires_grad_()
        torch.manual_seed(3)
        encoder(encoder.frame_context(**arguments)).square().sum().backward()
        gradients.append([arguments[name].grad for name in leaves])
        gradients[-1] += [parameter.grad for parameter in encoder.parameters()]
    for plain, recomputed in zip(*gradients):
        assert plain.abs().sum() > 0
        torch.testing.assert_close(recomputed, plain)


def test_checkpoints_keep_less(encoder):
    encoder = build_transformer_layer_sequence(dict(encoder_config(num_layers=4)))
    arguments = frame(encoder)
    arguments["bev_queries"].requires_grad_()
    context = encoder.frame_context(**arguments)
    plain = kept_numbers(encoder, context)
    encoder.with_cp = True
    # Autograd keeps the arguments of each layer: its queries, and what all layers share.
    shared = [context.bev_pos, context.temporal_pair, context.image_features]
    own = kept_numbers(encoder, context) - 4 * sum(tensor.numel() for tensor in shared)
    assert own <= 4 * context.initial_query.numel() + 8 < 0.2 * plain


def test_intermediate_results_are_refused():
    with pytest.raises(ValueError, match="last layer"):
        build_transformer_layer_sequence(dict(encoder_config(), return_intermediate=True))


def test_the_range_is_checked():
    with pytest.raises(ValueError, match="pc_range must be"):
        build_transformer_layer_sequence(dict(encoder_config(), pc_range=[-8.0, 8.0, -6.0, 6.0]))

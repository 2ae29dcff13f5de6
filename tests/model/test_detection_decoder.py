import pytest
import torch
from mmcv.cnn.bricks.transformer import build_transformer_layer_sequence
from tiny_bevformer import BEV_HW, CHANNELS, DECODER_LAYERS, decoder_config, shake_weights
from torch import nn

from projects.bevformer.geometry.boxes import CODE_SIZE, CX, CY, CZ
from projects.bevformer.model.detection.context import ObjectContext

OBJECTS = 5


@pytest.fixture
def decoder():
    decoder = build_transformer_layer_sequence(decoder_config())
    shake_weights(decoder)
    return decoder


@pytest.fixture
def inputs():
    """query, reference_points and ObjectContext of two samples."""
    generator = torch.Generator().manual_seed(0)
    query, query_pos = torch.randn(2, 2, OBJECTS, CHANNELS, generator=generator)
    bev = torch.randn(2, BEV_HW[0] * BEV_HW[1], CHANNELS, generator=generator)
    reference = torch.rand(2, OBJECTS, 3, generator=generator)
    return query, reference, ObjectContext(query_pos, bev, BEV_HW)


@pytest.fixture
def reg_branches():
    torch.manual_seed(0)
    return nn.ModuleList([nn.Linear(CHANNELS, CODE_SIZE) for _ in range(DECODER_LAYERS)])


def test_each_layer_starts_from_the_refined_points_of_the_one_before(decoder, inputs, reg_branches):
    query, reference, context = inputs
    states, references = decoder(*inputs, reg_branches)
    assert states.shape == (DECODER_LAYERS, 2, OBJECTS, CHANNELS)
    assert references.shape == (DECODER_LAYERS, 2, OBJECTS, 3)

    first = decoder.layers[0](query, reference[..., :2], context)
    code = reg_branches[0](first)
    update = torch.stack((code[..., CX], code[..., CY], code[..., CZ]), dim=-1)
    refined = torch.sigmoid(torch.logit(reference) + update)
    second = decoder.layers[1](first, refined[..., :2], context)
    torch.testing.assert_close(states, torch.stack((first, second)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(references, torch.stack((reference, refined)), rtol=1e-4, atol=1e-5)


def test_without_branches_the_points_stay(decoder, inputs):
    reference = inputs[1]
    _, references = decoder(*inputs, None)
    assert all(torch.equal(points, reference) for points in references)


def test_refined_points_carry_no_gradient(decoder, inputs, reg_branches):
    states, references = decoder(*inputs, reg_branches)
    assert states.requires_grad
    assert not references[1].requires_grad


def test_batch_equals_single_samples(decoder, inputs, reg_branches):
    query, reference, context = inputs
    together, _ = decoder(*inputs, reg_branches)
    for b in range(2):
        one = slice(b, b + 1)
        sample = ObjectContext(context.query_pos[one], context.bev[one], context.bev_hw)
        alone, _ = decoder(query[one], reference[one], sample, reg_branches)
        torch.testing.assert_close(together[:, one], alone, rtol=1e-5, atol=1e-5)


def test_returning_the_last_layer_only_is_rejected():
    with pytest.raises(ValueError, match="set return_intermediate=True"):
        build_transformer_layer_sequence(dict(decoder_config(), return_intermediate=False))

import pytest
import torch
from tiny_bevformer import shake_weights

from projects.bevformer.model.mm.norms import WeightPrecisionLayerNorm


@pytest.fixture
def norms():
    """This layer and torch's, with the same weights."""
    ours, theirs = WeightPrecisionLayerNorm(6), torch.nn.LayerNorm(6)
    shake_weights(ours)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs


def test_equals_torchs(norms):
    ours, theirs = norms
    x = torch.rand(2, 3, 6)
    assert torch.equal(ours(x), theirs(x))


def test_half_precision_input_is_normalised_in_the_precision_of_the_weights(norms):
    ours, theirs = norms
    x = torch.rand(2, 3, 6).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = ours(x)
    assert result.dtype == torch.float32
    assert torch.equal(result, theirs(x.float()))

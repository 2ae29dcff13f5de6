import pytest
import torch
from mmcv.cnn import build_norm_layer
from torch import nn

from projects.bevformer.model.mm.norms import LeanBatchNorm2d

CHANNELS = 5


def make_norms(frozen=True):
    """A LeanBatchNorm2d and the nn.BatchNorm2d with the same weights and statistics."""
    generator = torch.Generator().manual_seed(0)
    norms = LeanBatchNorm2d(CHANNELS), nn.BatchNorm2d(CHANNELS)
    with torch.no_grad():
        for tensor in (norms[0].weight, norms[0].bias, norms[0].running_mean):
            tensor.copy_(torch.randn(CHANNELS, generator=generator))
        norms[0].running_var.copy_(torch.rand(CHANNELS, generator=generator) + 0.3)
    norms[1].load_state_dict(norms[0].state_dict(), strict=True)
    for norm in norms:
        norm.requires_grad_(not frozen)
        norm.train(not frozen)
    return norms


def images(seed=1, **options):
    return torch.randn(2, CHANNELS, 4, 6, generator=torch.Generator().manual_seed(seed), **options)


def kept_numbers(module, x):
    """How many numbers autograd keeps for the backward pass of `module(x)`."""
    sizes = []

    def pack(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(x)
    return sum(sizes)


def test_frozen_norm_equals_batch_norm_and_saves_no_activation():
    lean, plain = make_norms()
    x, y = images(requires_grad=True), images(requires_grad=True)
    assert torch.equal(lean(x), plain(y))
    lean(x).square().sum().backward()
    plain(y).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    assert kept_numbers(lean, x) == 2 * CHANNELS
    assert kept_numbers(plain, x) > x.numel()


@pytest.mark.parametrize("training", [True, False])
def test_trainable_norm_equals_batch_norm(training):
    lean, plain = (norm.train(training) for norm in make_norms(frozen=False))
    x, y = images(requires_grad=True), images(requires_grad=True)
    for norm, inputs in ((lean, x), (plain, y)):
        norm(inputs).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(lean.weight.grad, plain.weight.grad)
    torch.testing.assert_close(lean.bias.grad, plain.bias.grad)
    for name, value in plain.state_dict().items():
        assert torch.equal(lean.state_dict()[name], value), name
    assert lean.num_batches_tracked == int(training)


def test_train_and_eval_switch_between_the_two():
    lean, plain = make_norms()
    lean.train(), plain.train()
    assert torch.equal(lean(images()), plain(images()))
    lean.eval(), plain.eval()
    assert torch.equal(lean(images(2)), plain(images(2)))
    assert lean.num_batches_tracked == 1


def test_output_can_be_modified_in_place():
    lean, plain = make_norms()
    x, y = images(requires_grad=True), images(requires_grad=True)
    for norm, inputs in ((lean, x), (plain, y)):
        out = norm(inputs * 2)
        out += inputs
        nn.ReLU(inplace=True)(out).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)


def test_half_precision_and_memory_format_are_kept():
    lean, plain = make_norms()
    x = images().to(memory_format=torch.channels_last).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = x.bfloat16()
        out = lean(half)
        assert torch.equal(out, plain(half))
    out.float().sum().backward()
    expected = (plain.weight / (plain.running_var + plain.eps).sqrt())[:, None, None].expand_as(x)
    torch.testing.assert_close(x.grad, expected, rtol=1e-2, atol=1e-2)
    assert lean(x).is_contiguous(memory_format=torch.channels_last)


def test_a_traced_graph_holds_the_standard_operator():
    lean, _ = make_norms()
    graph = str(torch.jit.trace(lean, images()).graph)
    assert "aten::batch_norm" in graph
    assert "PythonOp" not in graph


def test_it_is_named_like_a_batch_norm():
    name, norm = build_norm_layer(dict(type="LeanBN2d", requires_grad=False), CHANNELS, postfix=1)
    assert name == "bn1"
    assert norm.state_dict().keys() == nn.BatchNorm2d(CHANNELS).state_dict().keys()
    assert not norm.weight.requires_grad

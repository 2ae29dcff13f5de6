import pytest
import torch
from mmcv.ops import ModulatedDeformConv2dPack
from naive_bevformer import deform_conv
from tiny_bevformer import shake_weights

from projects.bevformer.model.mm.deform_conv import TorchvisionDCNv2

VARIANTS = [
    dict(kernel_size=3, padding=1, bias=False),
    dict(kernel_size=3, padding=1, stride=2, bias=True),
    dict(kernel_size=3, padding=2, dilation=2, groups=2, deform_groups=2, bias=False),
    dict(kernel_size=1, bias=True),
]


def make_pair(options):
    """The same convolution in both implementations, offsets far from zero."""
    torch.manual_seed(0)
    ours, theirs = TorchvisionDCNv2(4, 6, **options), ModulatedDeformConv2dPack(4, 6, **options)
    shake_weights(ours)
    with torch.no_grad():
        ours.conv_offset.bias.mul_(5)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs


@pytest.mark.parametrize("options", VARIANTS)
def test_equals_mmcvs_with_the_same_state_dict(options):
    ours, theirs = make_pair(options)
    x = torch.randn(2, 4, 6, 7)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", VARIANTS)
def test_equals_a_loop(options):
    ours, _ = make_pair(options)
    images = torch.randn(2, 4, 6, 7, requires_grad=True)
    result = ours(images)
    result.square().sum().backward()
    gradients = [images.grad, *(p.grad for p in ours.parameters())]
    images.grad = None
    ours.zero_grad(set_to_none=True)

    settings = [options.get(key, default) for key, default in (("stride", 1), ("padding", 0))]
    settings += [options.get(key, 1) for key in ("dilation", "groups", "deform_groups")]
    expected = []
    for image, offset_and_mask in zip(images, ours.conv_offset(images)):
        offset, mask = offset_and_mask.double().split(
            [len(offset_and_mask) // 3 * n for n in (2, 1)]
        )
        out = deform_conv(image.double(), offset, mask.sigmoid(), ours.weight.double(), *settings)
        expected.append(out if ours.bias is None else out + ours.bias[:, None, None])
    expected = torch.stack(expected)
    torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-4)
    expected.square().sum().backward()
    for gradient, parameter in zip(gradients, (images, *ours.parameters())):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-3, atol=1e-3)


def test_gradients_equal_mmcvs():
    ours, theirs = make_pair(VARIANTS[1])
    x = torch.randn(2, 4, 6, 7)
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    for convolution, image in zip((ours, theirs), inputs):
        convolution(image).square().sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-3, atol=1e-4)
    for name, parameter in ours.named_parameters():
        expected = dict(theirs.named_parameters())[name].grad
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-3, atol=1e-3)


def test_starts_as_half_a_plain_convolution():
    convolution = TorchvisionDCNv2(4, 6, kernel_size=3, padding=1, bias=False)
    x = torch.randn(1, 4, 5, 5)
    expected = torch.nn.functional.conv2d(x, convolution.weight, padding=1) / 2
    torch.testing.assert_close(convolution(x), expected, rtol=1e-4, atol=1e-5)


def test_runs_under_autocast():
    convolution, _ = make_pair(VARIANTS[0])
    x = torch.randn(1, 4, 5, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = convolution(x)
    assert result.dtype == torch.bfloat16
    expected = convolution(x)
    assert (result.float() - expected).abs().max() < 0.1 * expected.abs().max()

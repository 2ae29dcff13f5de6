"""VoVNet V2: names and shapes of the public weight files, equations, frozen parts, recomputation."""

import pytest
import torch
import torch.nn.functional as F
from mmdet.models.builder import build_backbone

from projects.bevformer import plugin  # noqa: F401

# A hand-written excerpt of DD3D's V2-99.
V2_99 = {
    "stem.stem_1/conv.weight": (64, 3, 3, 3),
    "stem.stem_1/norm.running_mean": (64,),
    "stem.stem_3/conv.weight": (128, 64, 3, 3),
    "stage2.OSA2_1.layers.0.OSA2_1_0/conv.weight": (128, 128, 3, 3),
    "stage2.OSA2_1.concat.OSA2_1_concat/conv.weight": (256, 128 + 5 * 128, 1, 1),
    "stage2.OSA2_1.ese.fc.weight": (256, 256, 1, 1),
    "stage3.OSA3_3.layers.4.OSA3_3_4/norm.weight": (160,),
    "stage3.OSA3_1.ese.fc.bias": (512,),
    "stage4.OSA4_1.layers.0.OSA4_1_0/conv.weight": (192, 512, 3, 3),
    "stage4.OSA4_9.layers.0.OSA4_9_0/conv.weight": (192, 768, 3, 3),
    "stage4.OSA4_9.concat.OSA4_9_concat/conv.weight": (768, 768 + 5 * 192, 1, 1),
    "stage5.OSA5_3.concat.OSA5_3_concat/norm.bias": (1024,),
    "stage5.OSA5_3.ese.fc.weight": (1024, 1024, 1, 1),
}


def make(spec_name="V-19-slim-eSE", seed=0, **options):
    torch.manual_seed(seed)
    backbone = build_backbone(dict(type="VoVNet", spec_name=spec_name, **options))
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return backbone.train()


def conv_norm(inputs, outputs, kernel):
    return inputs * outputs * kernel**2 + 2 * outputs


def test_v2_99_has_the_public_names_shapes_and_size():
    backbone = make("V-99-eSE")
    shapes = {name: tuple(value.shape) for name, value in backbone.state_dict().items()}
    assert V2_99.items() <= shapes.items()
    numbers = conv_norm(3, 64, 3) + conv_norm(64, 64, 3) + conv_norm(64, 128, 3)
    inputs = 128
    for width, outputs, blocks in ((128, 256, 1), (160, 512, 3), (192, 768, 9), (224, 1024, 3)):
        for _ in range(blocks):
            numbers += conv_norm(inputs, width, 3) + 4 * conv_norm(width, width, 3)
            numbers += conv_norm(inputs + 5 * width, outputs, 1) + outputs**2 + outputs
            inputs = outputs
    assert numbers == 69_523_520
    assert sum(p.numel() for p in backbone.parameters()) == numbers


def naive(weights, x, name, **options):
    """Convolution, norm in eval mode and ReLU, of the weights of a name."""
    depthwise = f"{name}/dw_conv3x3.weight" in weights
    conv, norm = ("pw_conv1x1", "pw_norm") if depthwise else ("conv", "norm")
    if depthwise:
        channels = x.shape[1]
        x = F.conv2d(x, weights[f"{name}/dw_conv3x3.weight"], padding=1, groups=channels, **options)
        options = {}
    kernel = weights[f"{name}/{conv}.weight"]
    x = F.conv2d(x, kernel, padding=kernel.shape[-1] // 2, **options)
    values = [
        weights[f"{name}/{norm}.{part}"] for part in ("running_mean", "running_var", "weight")
    ]
    return F.batch_norm(x, *values, weights[f"{name}/{norm}.bias"]).relu()


@pytest.mark.parametrize("spec_name", ["V-39-eSE", "V-19-slim-dw-eSE"])
def test_outputs_equal_the_equations(spec_name):
    backbone, x = make(spec_name).eval(), torch.randn(2, 3, 44, 70)
    weights = backbone.state_dict()
    blocks, layers = ((1, 1, 2, 2), 5) if spec_name == "V-39-eSE" else ((1, 1, 1, 1), 3)
    expected = naive(weights, x, "stem.stem_1", stride=2)
    expected = naive(weights, expected, "stem.stem_2")
    expected = naive(weights, expected, "stem.stem_3", stride=2)
    with torch.no_grad():
        outputs = backbone(x)
    for stage, output in enumerate(outputs, start=2):
        if stage > 2:
            expected = F.max_pool2d(expected, 3, 2, ceil_mode=True)
        for block in range(1, blocks[stage - 2] + 1):
            start = f"stage{stage}.OSA{stage}_{block}"
            name = f"OSA{stage}_{block}"
            parts = [expected]
            y = expected
            if f"{start}.conv_reduction.{name}_reduction_0/conv.weight" in weights:
                y = naive(weights, y, f"{start}.conv_reduction.{name}_reduction_0")
            for layer in range(layers):
                y = naive(weights, y, f"{start}.layers.{layer}.{name}_{layer}")
                parts.append(y)
            y = naive(weights, torch.cat(parts, 1), f"{start}.concat.{name}_concat")
            gate = F.conv2d(
                y.mean((2, 3), keepdim=True),
                weights[f"{start}.ese.fc.weight"],
                weights[f"{start}.ese.fc.bias"],
            )
            y = y * ((gate + 3).clamp(0, 6) / 6)
            expected = y + expected if block > 1 else y
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)


def test_chosen_outputs_frozen_parts_and_norms():
    backbone = make(out_features=["stage3", "stage5"], frozen_stages=1)
    assert [tuple(y.shape) for y in backbone(torch.zeros(1, 3, 32, 64))] == [
        (1, 256, 4, 8), (1, 512, 1, 2)
    ]  # fmt: skip
    frozen = {name.split(".")[0] for name, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen == {"stem", "stage2"}
    norms = [m for m in backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert not any(norm.training for norm in norms)
    trained = make(frozen_stages=0, norm_eval=False)
    assert not trained.stem.training
    assert trained.stage2.training
    assert all(p.requires_grad for p in trained.stage2.parameters())


def test_recomputed_blocks_have_the_same_gradients():
    x = torch.randn(1, 3, 32, 64)
    gradients = []
    for with_cp in (False, True):
        backbone = make(with_cp=with_cp)
        sum(y.square().mean() for y in backbone(x)).backward()
        gradients.append([p.grad for p in backbone.parameters()])
    for one, other in zip(*gradients):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("wrong", [dict(spec_name="V-98-eSE"), dict(out_features=["stage6"])])
def test_unknown_names_are_refused(wrong):
    with pytest.raises(ValueError, match=r"of VoVNet: they must be of .*V-99-eSE; stem, stage2"):
        make(**wrong)

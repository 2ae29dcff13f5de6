"""mmcv's operator as a backend: the arguments of its calls, with a stand-in for the operator."""

import pytest
import torch
from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

from projects.bevformer import ops
from projects.bevformer.model.mm import mmcv_deform_attn

SHAPES = [(3, 4), (2, 2)]


class PlainOperator:
    """The Python fallback behind the operator's signature and conditions."""

    @staticmethod
    def apply(value, shapes, starts, locations, weights, im2col_step):
        assert starts.tolist() == [0, 12]
        assert value.shape[0] % min(value.shape[0], im2col_step) == 0
        assert all(t.is_contiguous() and t.dtype == torch.float32 for t in (value, locations))
        return multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)


@pytest.mark.parametrize("rows_per_map", [(4, 4), (5, 0), (3, 5), (0, 0)])
def test_rows_are_passed_map_by_map(monkeypatch, rows_per_map):
    monkeypatch.setattr(mmcv_deform_attn, "MultiScaleDeformableAttnFunction", PlainOperator)
    value = torch.randn(2, 16, 2, 4).bfloat16()
    locations = torch.rand(sum(rows_per_map), 2, 2, 3, 2)
    weights = torch.rand(sum(rows_per_map), 2, 2, 3)
    result = mmcv_deform_attn.attend(value, SHAPES, locations, weights, rows_per_map)
    expected = ops.packed_multi_scale_deformable_attn(
        value, SHAPES, locations, weights, rows_per_map, backend="reference"
    )
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("compiled", [False, True])
def test_missing_support_is_named(monkeypatch, compiled):
    monkeypatch.setattr(mmcv_deform_attn, "mmcv_has_cuda_operators", lambda: compiled)
    reason = "CUDA devices" if compiled else "compiled without CUDA"
    with pytest.raises(ValueError, match=reason):
        ops.multi_scale_deformable_attn(
            torch.zeros(1, 16, 2, 4),
            SHAPES,
            torch.zeros(1, 1, 2, 2, 3, 2),
            torch.zeros(1, 1, 2, 2, 3),
            backend="mmcv",
        )

"""The benchmark compares equal functions, and its ratios meet their bounds."""

import bench_msda
import common
import pytest
import torch
from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

CPU = torch.device("cpu")
TINY_PACKED = bench_msda.Case(((4, 6), (2, 3)), 2, (3, 0, 7), packed=True)


def test_restated_fallback_equals_mmcv():
    case = bench_msda.CASES["dec_50"]
    value, locations, weights = bench_msda.make_inputs(case, CPU)
    torch.testing.assert_close(
        bench_msda.stacked_grid_sample(value, case.shapes, locations, weights),
        multi_scale_deformable_attn_pytorch(value, torch.tensor(case.shapes), locations, weights),
    )


def test_wrong_backend_is_detected():
    functions = bench_msda.contenders(
        TINY_PACKED, bench_msda.make_inputs(TINY_PACKED, CPU), ["lean"], bench_msda.fallback()
    )
    bench_msda.check(TINY_PACKED, functions, 1e-4)
    function, tensors = functions["lean"]
    functions["lean"] = (lambda *args: function(*args) * 1.001, tensors)
    with pytest.raises(AssertionError, match="lean: output"):
        bench_msda.check(TINY_PACKED, functions, 1e-4)


def test_peak_bytes():
    pytest.importorskip("torch._subclasses")
    before = torch.zeros(1000)

    def function():
        first = before + 1  # 4000 bytes
        second = first * 2  # 8000
        del first
        return second.sum()

    assert common.peak_bytes(function) == 8000


def test_saved_bytes():
    x = torch.ones(10, requires_grad=True)
    assert common.saved_bytes(lambda: (x * x).exp(), [x]) == (80, 40)  # x, and what exp returns


def test_lean_needs_less_memory_than_the_fallback():
    pytest.importorskip("torch._subclasses.fake_tensor")
    for name in ("sca_base_1_camera", "sca_tiny"):
        measured = bench_msda.measure_memory(bench_msda.CASES[name], ["lean"])
        fallback, lean = measured["fallback"], measured["lean"]
        assert lean["peak_bytes"] <= fallback["peak_bytes"] / 4
        assert lean["saved_bytes_beyond_inputs"] == 0
        assert lean["saved_bytes"] <= fallback["saved_bytes"] / 4


@pytest.mark.slow
def test_lean_is_faster_than_the_fallback():
    case = bench_msda.CASES["sca_tiny"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = bench_msda.measure_time(case, CPU, ["lean"], rounds=5)
    finally:
        torch.set_num_threads(threads)
    assert bench_msda.speedup(times["forward"], "lean") > 2
    assert bench_msda.speedup(times["forward_backward"], "lean") > 0.9

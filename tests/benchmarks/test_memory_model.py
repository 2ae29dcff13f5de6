"""Upper bounds of the memory of a training step, computed without a GPU (docs/performance.md)."""

import pytest
import torch
from torch import nn

pytest.importorskip("torch._subclasses.fake_tensor", reason="torch < 2.1 cannot run the model")

from memory_model import (  # noqa: E402
    MIB,
    ROOT,
    StorageTracker,
    fake_mode,
    main,
    preset,
    training_step,
)
from recipe_input import image_hw  # noqa: E402

BASE = ROOT / "configs" / "config.py"
TINY = ROOT / "configs" / "bevformer" / "bevformer_tiny.py"
# GiB. A change that needs more has to say so here and in docs/performance.md.
BOUNDS = {
    ("default", 200): 15.7,
    ("low_memory", 200): 10.5,
    ("low_memory_backbone", 200): 5.2,
    ("bf16", 200): 3.8,
    ("low_memory", 300): 12.4,
}
MIB_PER_CELL = 0.05


@pytest.fixture(scope="module")
def peaks():
    """MiB of each case of BOUNDS, computed when it is asked for."""
    known = {}

    def peak(case):
        if case not in known:
            known[case] = training_step(preset(BASE, *case))["peak"]
        return known[case]

    return peak


@pytest.mark.slow
@pytest.mark.parametrize("case", list(BOUNDS), ids=[f"{name}_{bev}" for name, bev in BOUNDS])
def test_base_trains_in_bounded_memory(peaks, case):
    assert 0.9 * BOUNDS[case] < peaks(case) / 1024 < BOUNDS[case]


@pytest.mark.slow
def test_memory_grows_slowly_with_the_bev(peaks):
    growth = peaks(("low_memory", 300)) - peaks(("low_memory", 200))
    assert 0 < growth / (300**2 - 200**2) < MIB_PER_CELL


def test_storages_are_counted_while_they_live():
    tracker = StorageTracker()
    with fake_mode(), tracker:
        first = torch.empty(MIB)  # float32: 4 MiB
        view = first[:10].view(2, 5)
        assert tracker.alive == 4 * MIB
        second = first + 1
        assert tracker.alive == tracker.peak == 8 * MIB
        del second
        assert tracker.alive == 4 * MIB
        del first
        assert tracker.alive == 4 * MIB  # the view holds it
        del view
        assert tracker.alive == 0
        layer = nn.Linear(MIB // 4, 1, bias=False)
        out = layer(torch.empty(8, MIB // 4, requires_grad=True)).relu()
        assert tracker.alive >= 9 * MIB  # autograd holds the input
        del out, layer
        assert tracker.alive == 0
    assert tracker.peak >= 9 * MIB


def test_images_have_the_size_of_the_pipeline():
    assert image_hw(preset(BASE, "default")) == (928, 1600)
    assert image_hw(preset(TINY, "default")) == (480, 800)


def test_the_command_prints_a_table_and_writes_numbers(tmp_path, capsys):
    main(["--config", str(TINY), "--presets", "default", "--out", str(tmp_path / "memory.json")])
    lines = capsys.readouterr().out.strip().splitlines()
    assert [cell.strip() for cell in lines[0].strip("|").split("|")] == [
        "config", "preset", "bev", "static", "images", "history", "forward", "peak",
    ]  # fmt: skip
    assert len(lines) == 3
    assert '"peak"' in (tmp_path / "memory.json").read_text()

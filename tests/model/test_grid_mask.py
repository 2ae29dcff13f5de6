import numpy as np
import pytest
import torch

from projects.bevformer.model.grid_mask import GridMask


@pytest.fixture(autouse=True)
def _seeded():
    np.random.seed(0)


def test_eval_mode_returns_the_images():
    images = torch.rand(2, 3, 16, 24)
    assert GridMask(prob=1.0).eval()(images) is images


def test_masks_as_often_as_asked():
    images = torch.ones(1, 3, 16, 24)
    mask = GridMask(prob=0.7).train()
    masked = sum(mask(images) is not images for _ in range(2000))
    assert 0.66 < masked / 2000 < 0.74
    never = GridMask(prob=0.0).train()
    assert all(never(images) is images for _ in range(50))


def period_and_stripe(line):
    """Lengths of the runs of ones and zeros that lie wholly inside a binary line."""
    edges = np.flatnonzero(np.diff(line))
    runs = {0: set(), 1: set()}
    for start, stop in zip(edges[:-1], edges[1:]):
        runs[int(line[start + 1])].add(int(stop - start))
    return runs


def test_blanks_a_regular_grid_of_squares_and_edits_nothing():
    images = torch.rand(2, 3, 40, 64) + 0.1
    before = images.clone()
    mask = GridMask(prob=1.0).train()
    seen_periods = set()
    for _ in range(30):
        masked = mask(images)
        keep = masked != 0
        assert torch.equal(masked, images * keep)
        # One grid for all images and colours.
        assert (keep == keep[:1, :1]).all()
        keep = keep[0, 0].numpy()
        full_rows, full_columns = keep.all(axis=1), keep.all(axis=0)
        np.testing.assert_array_equal(keep, full_rows[:, None] | full_columns[None, :])
        rows, columns = period_and_stripe(full_rows), period_and_stripe(full_columns)
        for kind in (0, 1):  # squares are as high as wide, stripes too
            lengths = rows[kind] | columns[kind]
            assert len(lengths) <= 1
        if rows[0] and rows[1]:
            stripe, square = rows[1].pop(), rows[0].pop()
            assert stripe == min(max(int((stripe + square) * 0.5 + 0.5), 1), stripe + square - 1)
            seen_periods.add(stripe + square)
    assert len(seen_periods) > 3
    assert torch.equal(images, before)


def test_about_a_quarter_is_blanked():
    images = torch.ones(1, 1, 64, 96)
    mask = GridMask(prob=1.0).train()
    blanked = np.mean([float((mask(images) == 0).float().mean()) for _ in range(300)])
    assert 0.15 < blanked < 0.3

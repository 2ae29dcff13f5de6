import numpy as np
import pytest
import torch
from naive_equations import project
from tiny_bevformer import IMAGE_HW, lidar2img

from projects.bevformer.model.bev_encoder.packed_queries import PackedQueries, _sum_bags, _sum_rows


def project_one(pillars, matrices, image_hw=IMAGE_HW):
    pillars, matrices = torch.from_numpy(pillars), torch.from_numpy(matrices)
    return PackedQueries.project(pillars, [matrices], [image_hw])[0]


def test_visible_queries_equal_a_loop():
    rng = np.random.RandomState(0)
    pillars = rng.uniform(-8, 8, (12, 3, 3)).astype(np.float32)
    matrices = np.array([[lidar2img(0), lidar2img(150)], [lidar2img(-80), lidar2img(15)]])
    packed = project_one(pillars, matrices)
    rows, uv, numbers = [], [], []
    for b, n in np.ndindex(2, 2):
        projected = [[project(point, matrices[b, n], IMAGE_HW) for point in p] for p in pillars]
        seen = [q for q in range(12) if any(visible for _, _, visible in projected[q])]
        rows += [12 * b + q for q in seen]
        uv += [[(u, v) for u, v, _ in projected[q]] for q in seen]
        numbers.append(len(seen))
    assert packed.lengths == tuple(numbers)
    assert packed.query_index.tolist() == rows
    np.testing.assert_allclose(packed.reference_uv, uv, rtol=1e-3, atol=1e-4)

    rows_of_query = [[row for row, query in enumerate(rows) if query == q] for q in range(24)]
    views = np.array([len(found) for found in rows_of_query])
    assert (views == 0).any()
    assert views.max() == 2
    assert packed.rows_by_query.tolist() == sum(rows_of_query, [])
    assert packed.query_offsets.tolist() == [0, *np.cumsum(views)[:-1]]
    assert packed.num_views.flatten().tolist() == np.maximum(views, 1).tolist()


def test_frames_projected_together_equal_single_frames():
    rng = np.random.RandomState(0)
    pillars = rng.uniform(-8, 8, (12, 3, 3)).astype(np.float32)
    matrices = [np.array([[lidar2img(yaw), lidar2img(yaw + 150)]]) for yaw in (0, 40, 90)]
    sizes = [IMAGE_HW, (16, 64), IMAGE_HW]
    together = PackedQueries.project(
        torch.from_numpy(pillars), [torch.from_numpy(m) for m in matrices], sizes
    )
    assert len({sum(packed.lengths) for packed in together}) > 1
    for packed, matrix, size in zip(together, matrices, sizes):
        alone = project_one(pillars, matrix, size)
        assert packed.lengths == alone.lengths
        for field in ("reference_uv", "query_index", "rows_by_query", "query_offsets"):
            assert torch.equal(getattr(packed, field), getattr(alone, field)), field


def test_no_visible_query_gives_no_rows():
    behind = np.array([[[0.0, -5.0, 0.0]], [[1.0, -6.0, 0.0]]], dtype=np.float32)
    packed = project_one(behind, np.array([[lidar2img(0)]]))
    assert packed.lengths == (0,)
    assert packed.query_index.tolist() == []
    assert packed.num_views.tolist() == [[1, 1]]
    per_query = torch.rand(1, 2, 5, requires_grad=True)
    rows = packed.pack(per_query)
    assert rows.shape == (0, 5)
    total = packed.mean_over_views(rows)
    assert torch.equal(total, torch.zeros(1, 2, 5))
    total.sum().backward()
    assert not per_query.grad.any()


@pytest.fixture
def packed():
    """Two samples of two queries in two cameras: query 1 of sample 0 is seen twice, one never."""
    seen = torch.tensor([[[True, True], [False, True]], [[False, True], [False, False]]])
    return PackedQueries.from_visibility(torch.rand(2, 2, 2, 1, 2), seen, [2, 1, 1, 0])


@pytest.mark.parametrize("requires_grad", [False, True])
def test_packing_and_mean_by_hand(packed, requires_grad):
    per_query = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]], requires_grad=requires_grad)
    assert packed.pack(per_query).tolist() == [[1.0], [2.0], [2.0], [4.0]]
    per_row = torch.tensor([[1.0], [10.0], [100.0], [1000.0]], requires_grad=requires_grad)
    mean = packed.mean_over_views(per_row)
    assert mean.tolist() == [[[1.0], [55.0]], [[0.0], [1000.0]]]


def test_sums_of_bags_equal_index_add(packed):
    per_row = torch.randn(4, 3)
    assert torch.equal(_sum_bags(per_row, packed), _sum_rows(per_row, packed))
    nothing_seen = torch.zeros(1, 2, 5, dtype=torch.bool)
    empty = PackedQueries.from_visibility(torch.rand(1, 2, 5, 1, 2), nothing_seen, [0, 0])
    assert torch.equal(_sum_bags(per_row[:0], empty), torch.zeros(5, 3))


def test_gradients_of_rows_and_queries(packed):
    per_query = torch.rand(2, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(packed.pack, per_query)
    per_row = torch.rand(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(packed.mean_over_views, per_row)


def test_temporal_values_pair_prev_bev_with_bev_queries(frame_context, bev_query):
    context, query = frame_context((0,), (True,)), bev_query()
    values = context.temporal_values(query)
    assert torch.equal(values, context.prev_and_current)
    assert torch.equal(values[:, 1], context.bev_queries)


def test_temporal_values_without_prev_bev_repeat_the_query(frame_context, bev_query):
    query = bev_query()
    values = frame_context((0,), (False,)).temporal_values(query)
    assert torch.equal(values, torch.stack((query, query), dim=1))


def test_temporal_values_are_chosen_per_sample(frame_context, bev_query):
    context, query = frame_context((0, 1), (False, True)), bev_query((0, 1))
    values = context.temporal_values(query)
    assert torch.equal(values[0], torch.stack((query[0], query[0])))
    assert torch.equal(values[1], context.prev_and_current[1])

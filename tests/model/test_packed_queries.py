import numpy as np
import pytest
import torch
from naive_equations import project
from tiny_bevformer import IMAGE_HW, lidar2img

from projects.bevformer.model.bev_encoder.context import CameraHits, _sum_bags


def project_one(pillars, matrices, image_hw=IMAGE_HW):
    pillars, matrices = torch.from_numpy(pillars), torch.from_numpy(matrices)
    return CameraHits.project(pillars, [matrices], [image_hw])[0]


def test_hits_are_those_of_a_loop():
    rng = np.random.RandomState(0)
    pillars = rng.uniform(-8, 8, (12, 3, 3)).astype(np.float32)
    matrices = np.array([[lidar2img(0), lidar2img(150)], [lidar2img(-80), lidar2img(15)]])
    hits = project_one(pillars, matrices)
    rows, uv, numbers = [], [], []
    for b, n in np.ndindex(2, 2):
        projected = [[project(point, matrices[b, n], IMAGE_HW) for point in p] for p in pillars]
        seen = [q for q in range(12) if any(visible for _, _, visible in projected[q])]
        rows += [12 * b + q for q in seen]
        uv += [[(u, v) for u, v, _ in projected[q]] for q in seen]
        numbers.append(len(seen))
    assert hits.rows_per_map == tuple(numbers)
    assert hits.query_of_row.tolist() == rows
    np.testing.assert_allclose(hits.reference_uv, uv, rtol=1e-3, atol=1e-4)

    rows_of_query = [[row for row, query in enumerate(rows) if query == q] for q in range(24)]
    views = np.array([len(found) for found in rows_of_query])
    assert (views == 0).any()
    assert views.max() == 2
    assert hits.rows_by_query.tolist() == sum(rows_of_query, [])
    assert hits.start_of_query.tolist() == [0, *np.cumsum(views)[:-1]]
    assert hits.views_per_query.flatten().tolist() == np.maximum(views, 1).tolist()


def test_frames_that_are_projected_together_are_as_if_alone():
    rng = np.random.RandomState(0)
    pillars = rng.uniform(-8, 8, (12, 3, 3)).astype(np.float32)
    matrices = [np.array([[lidar2img(yaw), lidar2img(yaw + 150)]]) for yaw in (0, 40, 90)]
    sizes = [IMAGE_HW, (16, 64), IMAGE_HW]
    together = CameraHits.project(
        torch.from_numpy(pillars), [torch.from_numpy(m) for m in matrices], sizes
    )
    assert len({sum(hits.rows_per_map) for hits in together}) > 1
    for hits, matrix, size in zip(together, matrices, sizes):
        alone = project_one(pillars, matrix, size)
        assert hits.rows_per_map == alone.rows_per_map
        for field in ("reference_uv", "query_of_row", "rows_by_query", "start_of_query"):
            assert torch.equal(getattr(hits, field), getattr(alone, field)), field


def test_nothing_visible_leaves_no_row():
    behind = np.array([[[0.0, -5.0, 0.0]], [[1.0, -6.0, 0.0]]], dtype=np.float32)
    hits = project_one(behind, np.array([[lidar2img(0)]]))
    assert hits.rows_per_map == (0,)
    assert hits.query_of_row.tolist() == []
    assert hits.views_per_query.tolist() == [[1, 1]]
    per_query = torch.rand(1, 2, 5, requires_grad=True)
    rows = hits.to_rows(per_query)
    assert rows.shape == (0, 5)
    total = hits.to_queries(rows)
    assert torch.equal(total, torch.zeros(1, 2, 5))
    total.sum().backward()
    assert not per_query.grad.any()


@pytest.fixture
def hand_made_hits():
    """Two samples of two queries in two cameras: query 1 of sample 0 is seen twice, one never."""
    seen = torch.tensor([[[True, True], [False, True]], [[False, True], [False, False]]])
    return CameraHits.pack(torch.rand(2, 2, 2, 1, 2), seen, [2, 1, 1, 0])


@pytest.mark.parametrize("requires_grad", [False, True])
def test_rows_and_queries_by_hand(hand_made_hits, requires_grad):
    per_query = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]], requires_grad=requires_grad)
    assert hand_made_hits.to_rows(per_query).tolist() == [[1.0], [2.0], [2.0], [4.0]]
    per_row = torch.tensor([[1.0], [10.0], [100.0], [1000.0]], requires_grad=requires_grad)
    assert hand_made_hits.to_queries(per_row).tolist() == [[[1.0], [110.0]], [[0.0], [1000.0]]]


def test_sums_of_bags_equal_index_add(hand_made_hits):
    per_row = torch.randn(4, 3)
    assert torch.equal(
        _sum_bags(per_row, hand_made_hits), hand_made_hits.to_queries(per_row).flatten(0, 1)
    )
    nothing_seen = torch.zeros(1, 2, 5, dtype=torch.bool)
    empty = CameraHits.pack(torch.rand(1, 2, 5, 1, 2), nothing_seen, [0, 0])
    assert torch.equal(_sum_bags(per_row[:0], empty), torch.zeros(5, 3))


def test_gradients_of_rows_and_queries(hand_made_hits):
    per_query = torch.rand(2, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(hand_made_hits.to_rows, per_query)
    per_row = torch.rand(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(hand_made_hits.to_queries, per_row)


def test_temporal_values_pair_the_history_with_the_initial_query(frame_context, bev_query):
    context, query = frame_context((0,), (True,)), bev_query()
    values = context.temporal_values(query)
    assert torch.equal(values, context.temporal_pair)
    assert torch.equal(values[:, 1], context.initial_query)


def test_temporal_values_without_history_are_the_query_twice(frame_context, bev_query):
    query = bev_query()
    values = frame_context((0,), (False,)).temporal_values(query)
    assert torch.equal(values, torch.stack((query, query), dim=1))


def test_temporal_values_are_chosen_for_each_sample(frame_context, bev_query):
    context, query = frame_context((0, 1), (False, True)), bev_query((0, 1))
    values = context.temporal_values(query)
    assert torch.equal(values[0], torch.stack((query[0], query[0])))
    assert torch.equal(values[1], context.temporal_pair[1])

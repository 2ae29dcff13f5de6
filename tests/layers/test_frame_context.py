import numpy as np
import torch
from naive_equations import project
from tiny_bevformer import IMAGE_HW, lidar2img

from projects.bevformer.layers import CameraHits


def test_hits_are_those_of_a_loop():
    rng = np.random.RandomState(0)
    pillars = rng.uniform(-8, 8, (12, 3, 3)).astype(np.float32)
    matrices = np.array([[lidar2img(0), lidar2img(150)], [lidar2img(-80), lidar2img(15)]])
    hits = CameraHits.project(torch.from_numpy(pillars), torch.from_numpy(matrices), IMAGE_HW)
    views = np.zeros((2, 12), dtype=int)
    most = 0
    for b, n in np.ndindex(2, 2):
        projected = [[project(point, matrices[b, n], IMAGE_HW) for point in p] for p in pillars]
        seen = [q for q in range(12) if any(visible for _, _, visible in projected[q])]
        views[b, seen] += 1
        most = max(most, len(seen))
        assert hits.query_index[b, n][hits.filled[b, n]].tolist() == seen
        for slot, q in enumerate(seen):
            expected = [(u, v) for u, v, _ in projected[q]]
            np.testing.assert_allclose(
                hits.reference_uv[b, n, slot], expected, rtol=1e-3, atol=1e-4
            )
    assert hits.filled.shape == (2, 2, most)
    assert (hits.query_index[~hits.filled] == 0).all()
    assert not hits.filled.all()
    assert (views == 0).any()
    assert hits.views_per_query.tolist() == np.maximum(views, 1).tolist()


def test_nothing_visible_leaves_one_empty_slot():
    behind = torch.tensor([[[0.0, -5.0, 0.0]], [[1.0, -6.0, 0.0]]])
    matrices = torch.from_numpy(np.array([[lidar2img(0)]]))
    hits = CameraHits.project(behind, matrices, IMAGE_HW)
    assert hits.filled.tolist() == [[[False]]]
    assert hits.query_index.tolist() == [[[0]]]
    assert hits.views_per_query.tolist() == [[1, 1]]


def test_temporal_values_pair_the_history_with_the_initial_query(frame_context, bev_query):
    context, query = frame_context((0,), (True,)), bev_query()
    values = context.temporal_values(query)
    assert torch.equal(values[:, 0], context.history)
    assert torch.equal(values[:, 1], context.initial_query)


def test_temporal_values_without_history_are_the_query_twice(frame_context, bev_query):
    query = bev_query()
    values = frame_context((0,), (False,)).temporal_values(query)
    assert torch.equal(values, torch.stack((query, query), dim=1))


def test_temporal_values_are_chosen_for_each_sample(frame_context, bev_query):
    context, query = frame_context((0, 1), (False, True)), bev_query((0, 1))
    values = context.temporal_values(query)
    assert torch.equal(values[0], torch.stack((query[0], query[0])))
    assert torch.equal(values[1], torch.stack((context.history[1], context.initial_query[1])))

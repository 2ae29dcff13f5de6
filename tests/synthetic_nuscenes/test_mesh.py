"""Shapes: closed, turned outwards, and as large as their boxes."""

import numpy as np
import pytest

from projects.synthetic_nuscenes.catalogue import KINDS, draw_size
from projects.synthetic_nuscenes.mesh import INSET, MeshBuilder
from projects.synthetic_nuscenes.objects import Path, make_object

SCENERY = {"building": (12, 10, 9), "tree": (3, 3, 6), "lamp_post": (1.8, 0.22, 7)}


def _object(kind, seed=0):
    path = Path.still(0.0, 0.0, 0.0, steps=2)
    return make_object(kind, path, np.random.default_rng(seed), SCENERY.get(kind))


def test_faces_of_a_box_look_outwards():
    builder = MeshBuilder((4.0, 2.0, 1.0))
    builder.box(-0.5, 0.5, -0.5, 0.5, 0.0, 1.0, (1, 0, 0))
    mesh = builder.build()
    outward = mesh.corners.mean(axis=1) - [0, 0, 0.5]
    assert len(mesh.corners) == 6
    np.testing.assert_allclose((mesh.normals() * outward).sum(axis=1), [0.5, 0.5, 2, 1, 2, 1])


def test_rotated_triangle_keeps_its_repeated_corner_last():
    triangle = [(0.5, 0, 0), (0.5, 1, 0), (0.5, 0, 1), (0.5, 0, 1)]
    for inside, normal in (((0, 0, 0), 1.0), ((1, 0, 0), -1.0)):
        builder = MeshBuilder((1, 1, 1))
        builder.quad(triangle, (1, 1, 1), inside=inside)
        mesh = builder.build()
        np.testing.assert_allclose(mesh.corners[0, 2], mesh.corners[0, 3])
        np.testing.assert_allclose(mesh.normals()[0], [normal, 0, 0])


@pytest.mark.parametrize("kind", [*KINDS, *SCENERY])
def test_mesh_fills_its_box(kind):
    item = _object(kind)
    length, width, height = item.size_lwh
    low, high = item.mesh.corners.min(axis=(0, 1)), item.mesh.corners.max(axis=(0, 1))
    np.testing.assert_allclose(low, np.array([-length / 2, -width / 2, 0]) + INSET)
    np.testing.assert_allclose(high, np.array([length / 2, width / 2, height]) - INSET)
    assert np.isfinite(item.mesh.normals()).all()
    assert ((item.mesh.colors >= 0) & (item.mesh.colors <= 1.2)).all()


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind not in ("barrier", "traffic_cone")]
)
def test_front_differs_from_back(kind):
    """The mean colour of the faces that look forwards is not that of those that look backwards."""
    mesh = _object(kind).mesh
    normals = mesh.normals()
    area = np.linalg.norm(
        np.cross(mesh.corners[:, 1] - mesh.corners[:, 0], mesh.corners[:, 3] - mesh.corners[:, 0]),
        axis=1,
    )

    def mean_color(chosen):
        return np.average(mesh.colors[chosen], axis=0, weights=area[chosen] + 1e-9)

    front, back = mean_color(normals[:, 0] > 0.7), mean_color(normals[:, 0] < -0.7)
    assert np.abs(front - back).max() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_follow_the_statistics(kind):
    rng = np.random.default_rng(1)
    sizes = np.array([draw_size(kind, rng) for _ in range(400)])
    mean = np.array(KINDS[kind].size_lwh)
    np.testing.assert_allclose(sizes.mean(axis=0), mean, rtol=0.035)
    assert (sizes.std(axis=0) > 0.02 * mean).all()


def test_appearance_depends_only_on_the_seed():
    first, again, other = _object("car", 3), _object("car", 3), _object("car", 4)
    np.testing.assert_array_equal(first.mesh.colors, again.mesh.colors)
    assert not np.array_equal(first.mesh.colors[0], other.mesh.colors[0])

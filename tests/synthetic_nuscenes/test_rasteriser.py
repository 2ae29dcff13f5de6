"""The z-buffer against exact counts of pixels."""

import numpy as np
import pytest

from projects.synthetic_nuscenes.rasteriser import NO_FACE, rasterise

FOCAL, HEIGHT, WIDTH = 100.0, 60, 80


def _quad(x0, x1, y0, y1, z):
    """A rectangle in the camera frame at depth z whose outside looks at the camera."""
    return [(x0, y0, z), (x0, y1, z), (x1, y1, z), (x1, y0, z)]


def _draw(*quads):
    """Every quad is an object of its own; the camera looks along +z from the origin."""
    corners = np.array(quads, dtype=np.float64)
    count = len(quads)
    inverse_depth = np.zeros((HEIGHT, WIDTH), dtype=np.float32)
    face_at = np.full((HEIGHT, WIDTH), NO_FACE, dtype=np.int32)
    stamp = face_at.copy()
    pixels = np.zeros(count, dtype=np.int64)
    rasterise(
        np.tile(np.eye(4), (count, 1, 1)), np.arange(count + 1), corners, corners.mean(axis=1),
        np.full(count, 1e3), FOCAL, WIDTH / 2, HEIGHT / 2, inverse_depth, face_at, stamp, pixels,
    )  # fmt: skip
    return inverse_depth, face_at, pixels


def test_a_rectangle_covers_the_pixels_whose_centres_it_covers():
    inverse_depth, face_at, pixels = _draw(_quad(-0.5, 1.0, -0.2, 0.4, 5.0))
    rows, columns = np.nonzero(face_at == 0)
    assert (columns.min(), columns.max() + 1) == (40 - 10, 40 + 20)
    assert (rows.min(), rows.max() + 1) == (30 - 4, 30 + 8)
    assert len(rows) == 30 * 12 == pixels[0]
    np.testing.assert_allclose(inverse_depth[face_at == 0], 1 / 5.0, rtol=1e-6)


def test_depth_of_a_slanted_face_is_exact():
    slanted = [(-1.0, -1.0, 4.0), (-1.0, 1.0, 4.0), (1.0, 1.0, 8.0), (1.0, -1.0, 8.0)]
    inverse_depth, face_at, _ = _draw(slanted)
    rows, columns = np.nonzero(face_at == 0)
    slope = (columns + 0.5 - WIDTH / 2) / FOCAL  # x / z of the ray; the plane is z = 6 + 2 x
    np.testing.assert_allclose(1 / inverse_depth[rows, columns], 6 / (1 - 2 * slope), rtol=1e-5)


def test_the_nearer_object_hides_the_farther_one_in_either_order():
    near, far = _quad(-0.5, 0.5, -0.5, 0.5, 5.0), _quad(-2.0, 2.0, -0.5, 0.5, 10.0)
    for quads, near_index in (((near, far), 0), ((far, near), 1)):
        _, face_at, pixels = _draw(*quads)
        assert (face_at == near_index).sum() == 20 * 20 == pixels[near_index]
        assert (face_at == 1 - near_index).sum() == 40 * 10 - 20 * 10
        assert pixels[1 - near_index] == 40 * 10  # what it would cover alone


def test_back_faces_and_faces_behind_the_camera_are_culled():
    back = _quad(-0.5, 0.5, -0.5, 0.5, 5.0)[::-1]
    _, face_at, pixels = _draw(back, _quad(-0.5, 0.5, -0.5, 0.5, -5.0))
    assert (face_at == NO_FACE).all()
    assert pixels.tolist() == [0, 0]


def test_a_face_across_the_near_plane_is_clipped():
    floor = [(-50.0, 1.0, -5.0), (50.0, 1.0, -5.0), (50.0, 1.0, 50.0), (-50.0, 1.0, 50.0)]
    _, face_at, _ = _draw(floor)
    rows = np.flatnonzero((face_at == 0).all(axis=1))
    # The floor is one metre below: its far edge, 50 m away, is two pixels below the horizon.
    assert rows.tolist() == list(range(30 + 2, HEIGHT))


def test_adjacent_faces_neither_overlap_nor_leave_gaps():
    left, right = _quad(-0.7, 0.113, -0.4, 0.4, 5.0), _quad(0.113, 0.9, -0.4, 0.4, 5.0)
    _, face_at, pixels = _draw(left, right)
    assert pixels.sum() == (face_at != NO_FACE).sum()
    inside = face_at[30, 40 - 14 : 40 + 18]
    assert (inside != NO_FACE).all()


@pytest.mark.parametrize("shift", [-300.0, 300.0])
def test_objects_outside_the_image_count_no_pixels(shift):
    _, _, pixels = _draw(_quad(shift, shift + 1.0, -0.5, 0.5, 5.0))
    assert pixels[0] == 0

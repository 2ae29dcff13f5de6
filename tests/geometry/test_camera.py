import numpy as np
import pytest
import torch

from projects.bevformer.geometry.camera import project_to_cameras

HEIGHT, WIDTH, FOCAL = 100, 200, 50.0

# At the lidar, looking along +y: right is +x, down is -z.
FRONT = [
    [FOCAL, WIDTH / 2, 0.0, 0.0],
    [0.0, HEIGHT / 2, -FOCAL, 0.0],
    [0.0, 1.0, 0.0, 0.0],
    [0.0, 0.0, 0.0, 1.0],
]
# The same camera looking along -y.
BACK = [
    [-FOCAL, -WIDTH / 2, 0.0, 0.0],
    [0.0, -HEIGHT / 2, -FOCAL, 0.0],
    [0.0, -1.0, 0.0, 0.0],
    [0.0, 0.0, 0.0, 1.0],
]


def project(points, lidar2img=(FRONT,)):
    """`points` of one query in each camera: (N, D, 2) and (N, D)."""
    points_uv, visible = project_to_cameras(
        torch.tensor([points]), torch.tensor(np.array(lidar2img))[None], (HEIGHT, WIDTH)
    )
    return points_uv[0, :, 0], visible[0, :, 0]


def test_points_in_front_by_hand():
    points_uv, visible = project([[0.0, 10.0, 0.0], [4.0, 10.0, 0.0], [0.0, 10.0, 2.0]])
    # 4 m to the right at 10 m is 20 pixels right of the centre; 2 m up is 10 pixels above it.
    expected = [[0.5, 0.5], [120 / 200, 0.5], [0.5, 40 / 100]]
    torch.testing.assert_close(points_uv[0], torch.tensor(expected))
    assert visible.all()


def test_a_point_is_visible_only_to_the_camera_that_faces_it():
    _, visible = project([[1.0, 10.0, 0.0], [1.0, -10.0, 0.0]], (FRONT, BACK))
    assert visible.tolist() == [[True, False], [False, True]]


def test_the_image_border_is_outside():
    at_left_border, inside = [-20.0, 10.0, 0.0], [-19.99, 10.0, 0.0]
    at_right_border, at_top_border = [20.0, 10.0, 0.0], [0.0, 10.0, 10.0]
    _, visible = project([at_left_border, inside, at_right_border, at_top_border])
    assert visible[0].tolist() == [False, True, False, False]


def test_depth_must_exceed_eps():
    _, visible = project([[0.0, 1e-5, 0.0], [0.0, 2e-5, 0.0], [0.0, 0.0, 0.0]])
    assert visible[0].tolist() == [False, True, False]


def test_equals_a_loop_over_samples_cameras_and_points():
    rng = np.random.RandomState(0)
    points = rng.uniform(-10, 10, (5, 3, 3)).astype(np.float32)
    lidar2img = np.array([[FRONT, BACK], [BACK, FRONT]]) + rng.uniform(-1, 1, (2, 2, 4, 4))
    points_uv, visible = project_to_cameras(
        torch.from_numpy(points), torch.from_numpy(lidar2img), (HEIGHT, WIDTH)
    )
    assert points_uv.shape == (2, 2, 5, 3, 2)
    assert visible.any()
    assert not visible.all()
    for b, n, q, d in np.ndindex(*visible.shape):
        ud, vd, depth, _ = lidar2img[b, n] @ np.append(points[q, d], 1.0)
        u, v = ud / max(depth, 1e-5) / WIDTH, vd / max(depth, 1e-5) / HEIGHT
        np.testing.assert_allclose(points_uv[b, n, q, d], [u, v], rtol=1e-3, atol=1e-4)
        assert bool(visible[b, n, q, d]) == (depth > 1e-5 and 0 < u < 1 and 0 < v < 1)


def test_stays_in_float32_under_autocast_and_leaves_global_flags_alone():
    flags = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    points = torch.rand(7, 2, 3) * 20
    lidar2img = torch.tensor([[FRONT, BACK]])
    expected, _ = project_to_cameras(points, lidar2img, (HEIGHT, WIDTH))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        points_uv, _ = project_to_cameras(points, lidar2img, (HEIGHT, WIDTH))
    assert points_uv.dtype == torch.float32
    assert torch.equal(points_uv, expected)
    assert flags == (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)


@pytest.mark.parametrize(
    ("points_shape", "matrix_shape"),
    [
        ((4, 3), (1, 1, 4, 4)),
        ((4, 2, 2), (1, 1, 4, 4)),
        ((4, 2, 3), (1, 4, 4)),
        ((4, 2, 3), (1, 1, 3, 4)),
    ],
)
def test_wrong_shapes_are_refused(points_shape, matrix_shape):
    with pytest.raises(ValueError, match="must be"):
        project_to_cameras(torch.zeros(points_shape), torch.zeros(matrix_shape), (HEIGHT, WIDTH))

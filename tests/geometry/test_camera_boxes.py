import math

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from projects.bevformer.geometry.camera_boxes import (
    box_corners,
    compose,
    quaternion_to_matrix,
    unproject,
    viewing_rotation,
)

INTRINSICS = torch.tensor([[[100.0, 0.0, 60.0], [0.0, 80.0, 40.0], [0.0, 0.0, 1.0]]])


def test_quaternions_of_any_length_equal_scipy():
    quaternions = np.random.RandomState(0).normal(size=(20, 4)) * 3
    expected = Rotation.from_quat(quaternions[:, [1, 2, 3, 0]]).as_matrix()
    actual = quaternion_to_matrix(torch.from_numpy(quaternions))
    np.testing.assert_allclose(actual.numpy(), expected, atol=1e-12)


def test_unproject_by_hand():
    inverse = torch.inverse(INTRINSICS).expand(2, 3, 3)
    rays = unproject(torch.tensor([[60.0, 40.0], [110.0, 0.0]]), inverse)
    torch.testing.assert_close(rays, torch.tensor([[0.0, 0.0, 1.0], [0.5, -0.5, 1.0]]))


def test_viewing_rotation_along_the_optical_axis_is_the_identity():
    torch.testing.assert_close(
        viewing_rotation(torch.tensor([[0.0, 0.0, 2.0]])), torch.eye(3)[None]
    )


def test_viewing_rotation_looks_along_the_ray_and_is_upright():
    rays = torch.tensor([[1.0, 0.0, 1.0], [0.3, -0.4, 2.0]])
    rotation = viewing_rotation(rays)
    torch.testing.assert_close(rotation[..., 2], rays / rays.norm(dim=1, keepdim=True))
    torch.testing.assert_close(rotation @ rotation.transpose(1, 2), torch.eye(3).expand(2, 3, 3))
    torch.testing.assert_close(torch.det(rotation), torch.ones(2))
    assert (rotation[:, 1, 0].abs() < 1e-6).all()  # its x axis is level


def test_objects_seen_from_the_same_side_have_the_same_allocentric_rotation():
    # Two boxes whose length lies along the viewing ray: same allocentric, different camera rotation.
    along_ray = quaternion_to_matrix(torch.tensor([[math.sqrt(0.5), 0.0, -math.sqrt(0.5), 0.0]]))
    for ray in ([0.0, 0.0, 1.0], [1.0, 0.0, 1.0]):
        ray = torch.tensor([ray])
        rotation = compose(viewing_rotation(ray), along_ray)
        length_axis = rotation[0, :, 0]
        torch.testing.assert_close(length_axis, (ray / ray.norm())[0], atol=1e-6, rtol=0)


def test_corners_by_hand():
    corners = box_corners(
        torch.eye(3)[None], torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[2.0, 4.0, 6.0]])
    )
    assert corners.shape == (1, 8, 3)
    assert corners[0].min(dim=0).values.tolist() == [-1.0, 1.0, 0.0]  # length 4 lies along x
    assert corners[0].max(dim=0).values.tolist() == [3.0, 3.0, 6.0]
    assert len({tuple(corner) for corner in corners[0].tolist()}) == 8


def test_corners_equal_a_loop():
    rng = np.random.RandomState(1)
    rotation = Rotation.random(3, random_state=0).as_matrix()
    center, size = rng.normal(size=(3, 3)), rng.uniform(1, 4, (3, 3))
    actual = box_corners(*(torch.from_numpy(part) for part in (rotation, center, size))).numpy()
    for i in range(3):
        width, length, height = size[i]
        expected = [
            rotation[i] @ [x * length / 2, y * width / 2, z * height / 2] + center[i]
            for x in (1, -1)
            for y in (1, -1)
            for z in (1, -1)
        ]
        np.testing.assert_allclose(actual[i], expected, atol=1e-12)


def test_no_boxes():
    none = torch.zeros(0, 3)
    assert box_corners(torch.zeros(0, 3, 3), none, none).shape == (0, 8, 3)
    assert unproject(torch.zeros(0, 2), torch.zeros(0, 3, 3)).shape == (0, 3)
    assert viewing_rotation(none).shape == (0, 3, 3)

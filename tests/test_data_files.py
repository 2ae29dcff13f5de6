import cv2
import numpy as np
import pytest

from projects.bevformer.files.data_files import join_root, jpeg_damage


@pytest.mark.parametrize(
    ("root", "path", "joined"),
    [
        ("./data/nuscenes", "./data/nuscenes/a.jpg", "./data/nuscenes/a.jpg"),
        ("./data/nuscenes", "data/nuscenes/a.jpg", "data/nuscenes/a.jpg"),
        ("../data", "../data/a.jpg", "../data/a.jpg"),
        ("data/nuscenes", "samples/a.jpg", "data/nuscenes/samples/a.jpg"),
        ("data/nuscenes", "samples/../sweeps/a.jpg", "data/nuscenes/samples/../sweeps/a.jpg"),
        ("data/nuscenes", "/elsewhere/a.jpg", "/elsewhere/a.jpg"),
        (None, "data/nuscenes/a.jpg", "data/nuscenes/a.jpg"),
        (None, "../a.jpg", "../a.jpg"),
    ],
)
def test_paths_of_records(root, path, joined):
    assert join_root(root, path) == joined


@pytest.mark.parametrize("path", ["../secret.jpg", "samples/../../secret.jpg"])
def test_a_path_out_of_the_root_is_refused(path):
    with pytest.raises(ValueError, match="secret.jpg, which is outside of data_root data/nuscenes"):
        join_root("data/nuscenes", path)


def jpeg(image, *options):
    return cv2.imencode(".jpg", image, list(options))[1].tobytes()


@pytest.fixture(scope="module")
def noise():
    return np.random.RandomState(0).randint(0, 255, (120, 160, 3), np.uint8)


def zeroed(content, start=2000, size=512):
    return content[:start] + bytes(size) + content[start + size :]


def test_damage_of_a_jpeg(noise):
    content = jpeg(noise)
    assert jpeg_damage(content) is None
    assert jpeg_damage(content + bytes(300)) is None  # padding after the end
    assert jpeg_damage(b"") == "is empty"
    for share in (0.1, 0.5, 0.99):
        assert "cut off" in jpeg_damage(content[: int(share * len(content))])
    assert "zeros" in jpeg_damage(zeroed(content))
    assert "cut off" in jpeg_damage(content[:5000] + bytes(len(content) - 5000))


def test_plain_sky_is_not_reported_as_damage(noise):
    sky = noise.copy()
    sky[:100] = 255
    for options in ((), (cv2.IMWRITE_JPEG_OPTIMIZE, 1), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)):
        assert jpeg_damage(jpeg(np.kron(sky, np.ones((8, 8, 1), np.uint8)), *options)) is None


def test_other_formats_are_not_judged(noise):
    assert jpeg_damage(cv2.imencode(".png", noise)[1].tobytes()[:-10]) is None

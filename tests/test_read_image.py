"""One reader of images: pixels as stored, and damage by name."""

import cv2
import numpy as np
import pytest

from projects.bevformer.files.data_files import decode_image, read_image


@pytest.fixture
def image():
    return np.random.RandomState(0).randint(0, 255, (60, 80, 3), np.uint8)


def jpeg(image):
    return cv2.imencode(".jpg", image)[1].tobytes()


def test_pixels_are_those_of_opencv(image, tmp_path):
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), image)
    np.testing.assert_array_equal(read_image(str(path)), image)
    grey = cv2.imencode(".png", image[..., 0])[1].tobytes()
    assert decode_image(grey).shape == (60, 80)
    assert decode_image(grey, cv2.IMREAD_COLOR).shape == (60, 80, 3)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda content: b"", "is empty"),
        (lambda content: b"no image", "cannot be decoded"),
        (lambda content: content[: len(content) // 2], "is cut off"),
        (lambda content: content[:1000] + bytes(512) + content[1512:], "has lost a part"),
    ],
)
def test_damage_is_named(image, tmp_path, damage, says):
    path = tmp_path / "a.jpg"
    path.write_bytes(damage(jpeg(image)))
    with pytest.raises(ValueError, match=rf"camera image .*a\.jpg {says}.*download it again"):
        read_image(str(path))
    with pytest.raises(ValueError, match=f"^{says}"):
        decode_image(path.read_bytes())


def test_missing_image(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"camera image .*a\.jpg does not exist: check data_r"
    ):
        read_image(str(tmp_path / "a.jpg"))

"""Colour functions against OpenCV, including values outside of 0 ... 255."""

import cv2
import numpy as np
import pytest
import torch

from projects.bevformer.ops.color import bgr_to_hsv, distort_colors, hsv_to_bgr

NO_CHANGE = {
    "brightness": 0.0,
    "contrast_first": 1.0,
    "saturation": 1.0,
    "hue": 0.0,
    "contrast_last": 1.0,
}


@pytest.fixture
def images():
    """(M, 3, H, W): random pixels from -40 to 300, grey ones, black ones, pure colours."""
    random = np.random.default_rng(0)
    pixels = random.uniform(-40, 300, (2, 12, 16, 3)).astype(np.float32)
    pixels[:, 0] = pixels[:, 0, :, :1]
    pixels[:, 1] = 0
    pixels[:, 2] = 255 * random.integers(0, 2, (2, 16, 3))
    return torch.from_numpy(pixels).movedim(-1, 1)


def as_pixels(images):
    return images.movedim(1, -1).contiguous().numpy()


def distort(images, **changes):
    count = len(images)
    order = changes.pop("channels", (0, 1, 2))
    numbers = {
        name: torch.full((count,), changes.get(name, value)) for name, value in NO_CHANGE.items()
    }
    return distort_colors(images, **numbers, channels=torch.tensor([order] * count))


def test_hsv_equals_opencv(images):
    hue, saturation, value = bgr_to_hsv(images)
    for i, pixels in enumerate(as_pixels(images)):
        expected = cv2.cvtColor(pixels, cv2.COLOR_BGR2HSV)
        np.testing.assert_allclose(hue[i], expected[..., 0], rtol=1e-5, atol=1e-3)
        np.testing.assert_allclose(saturation[i], expected[..., 1], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(value[i], expected[..., 2])


def test_bgr_equals_opencv_for_saturations_above_one(images):
    hue, saturation, value = bgr_to_hsv(images.clamp(min=0))
    result = as_pixels(hsv_to_bgr(hue, saturation * 1.5, value))
    for i in range(len(images)):
        hsv = torch.stack([hue[i], saturation[i] * 1.5, value[i]], dim=-1).numpy()
        np.testing.assert_allclose(
            result[i], cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR), rtol=1e-5, atol=1e-2
        )


def test_neutral_parameters_change_nothing(images):
    torch.testing.assert_close(distort(images), images, rtol=1e-5, atol=1e-3)


def test_each_parameter_by_hand():
    grey = torch.full((1, 3, 1, 1), 100.0)
    assert distort(grey, brightness=7.0).flatten().tolist() == pytest.approx([107] * 3)
    both = distort(grey, brightness=10.0, contrast_first=0.5, contrast_last=3.0)
    assert both.flatten().tolist() == pytest.approx([165] * 3)
    red = torch.tensor([50.0, 50.0, 100.0]).reshape(1, 3, 1, 1)
    assert distort(red, saturation=1.2).flatten().tolist() == pytest.approx([40, 40, 100])
    assert distort(red, hue=120.0).flatten().tolist() == pytest.approx([50, 100, 50])
    assert distort(red, hue=-120.0).flatten().tolist() == pytest.approx([100, 50, 50])
    assert distort(red, channels=(2, 0, 1)).flatten().tolist() == pytest.approx([100, 50, 50])


def test_parameters_are_per_image(images):
    numbers = {name: torch.tensor([value] * 2) for name, value in NO_CHANGE.items()}
    numbers["hue"] = torch.tensor([0.0, 90.0])
    channels = torch.tensor([[0, 1, 2], [2, 1, 0]])
    together = distort_colors(images, **numbers, channels=channels)
    torch.testing.assert_close(together[:1], distort(images[:1]))
    alone = distort(images[1:], hue=90.0, channels=(2, 1, 0))
    torch.testing.assert_close(together[1:], alone)

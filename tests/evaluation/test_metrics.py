"""Expected values: by hand, from scipy, and from the published bicubic scores."""
import numpy as np
import pytest
from scipy.ndimage import correlate1d

from ppsr2q.core.errors import UserError
from ppsr2q.evaluation.metrics import luma, psnr_y, ssim_y, to_uint8


def _pair():
    rng = np.random.default_rng(0)
    first = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
    noise = rng.integers(-20, 21, first.shape)
    return first, np.clip(first + noise, 0, 255).astype(np.uint8)


def test_to_uint8_clamps_and_rounds():
    values = np.array([-0.2, 0.0, 0.1 / 255, 0.6 / 255, 254.4 / 255, 1.0, 3.0])
    np.testing.assert_array_equal(to_uint8(values), [0, 0, 0, 1, 254, 255, 255])


def test_luma_of_the_primaries():
    image = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    np.testing.assert_allclose(luma(image), [[16, 235, 81.481, 144.553, 40.966]])
    with pytest.raises(ValueError, match="uint8"):
        luma(image.astype(np.float32))


def test_psnr_by_hand():
    first = np.full((20, 20, 3), 100, np.uint8)
    second = first.copy()
    second[5, 5] = 110  # luma differs by 10 * 219 / 255 at one pixel of the 16 x 16 that are left
    expected = 20 * np.log10(255 / np.sqrt((2190 / 255) ** 2 / 256))
    assert psnr_y(first, second, 2) == pytest.approx(expected, abs=1e-9)
    second[0, 0] = 0  # inside the cropped border
    assert psnr_y(first, second, 2) == pytest.approx(expected, abs=1e-9)


def test_identical_images():
    first, _ = _pair()
    assert psnr_y(first, first, 2) == float("inf") and ssim_y(first, first, 2) == pytest.approx(1.0)


def test_ssim_equals_its_definition():
    first, second = _pair()
    taps = np.exp(-np.arange(-5, 6) ** 2 / (2 * 1.5**2))
    taps /= taps.sum()

    def mean(values):
        return correlate1d(correlate1d(values, taps, axis=0), taps, axis=1)[5:-5, 5:-5]

    x, y = luma(first)[3:-3, 3:-3], luma(second)[3:-3, 3:-3]
    mx, my = mean(x), mean(y)
    vx, vy, vxy = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = 2.55**2, 7.65**2
    expected = ((2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean()
    assert ssim_y(first, second, 3) == pytest.approx(expected, abs=1e-9)


def test_refusals():
    first, second = _pair()
    with pytest.raises(ValueError, match="different shapes"):
        psnr_y(first, second[:-1], 0)
    with pytest.raises(UserError, match="11x11"):
        ssim_y(first[:14], second[:14], 2)
    with pytest.raises(UserError, match="1x1"):
        psnr_y(first[:4], second[:4], 2)

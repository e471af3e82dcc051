"""MATLAB's own output files, hand-computed weights and the published bicubic scores are the truth here."""
import numpy as np
import pytest
from PIL import Image

from ppsr2q.data.bicubic import crop_to_multiple, cubic_kernel, downsample, upsample
from tests.shared import shared_path


def _read(path):
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("stem", ["baby", "bird", "butterfly", "head", "woman"])
def test_downsample_equals_matlab_files(stem, scale):
    hr = crop_to_multiple(_read(shared_path(f"data/Set5/HR/{stem}.png")), scale)
    lr = _read(shared_path(f"data/Set5/LR_bicubic/X{scale}/{stem}x{scale}.png"))
    np.testing.assert_array_equal(downsample(hr, scale), lr)


def test_kernel_values():
    values = cubic_kernel(np.array([0, 0.5, 1, 1.5, 2, 3.0]))
    np.testing.assert_allclose(values, [1, 0.5625, 0, -0.0625, 0, 0])


def test_downsample_impulse_by_hand():
    # Output pixel 3 of factor 2 has its centre at source position 6.5: the impulse at 6 is 0.5 away, at half
    # width 0.25, and weighs k(0.25) / 2 = (1.5/64 - 2.5/16 + 1) / 2 = 0.43359375 in each direction.
    image = np.zeros((16, 16), np.uint8)
    image[6, :] = 200
    assert downsample(image, 2)[3, 4] == round(200 * 0.43359375)


def test_upsample_phases_by_hand():
    # Factor 2, source values 0 and 100: the first pixel right of the step lies 0.25 left of a source centre.
    row = np.array([0] * 6 + [100] * 6, np.uint8)
    image = np.repeat(row[None], 6, axis=0)
    # It reads source 6 (0.25 away, weight 0.8671875) and source 7 (1.25 away, weight -0.0703125).
    assert upsample(image, 2)[5, 12] == round(100 * (0.8671875 - 0.0703125))


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_constant_images_stay_constant(scale):
    image = np.full((12, 24, 3), 137, np.uint8)
    assert np.all(downsample(image, scale) == 137)
    assert upsample(image, scale).shape == (12 * scale, 24 * scale, 3)
    assert np.all(upsample(image, scale) == 137)


def test_images_smaller_than_the_kernel():
    image = np.arange(16, dtype=np.uint8).reshape(4, 4)
    assert downsample(image, 4).shape == (1, 1)
    assert upsample(image[:1, :1], 4).shape == (4, 4)


def test_refusals():
    with pytest.raises(ValueError, match="multiples of 2"):
        downsample(np.zeros((5, 4, 3), np.uint8), 2)
    with pytest.raises(ValueError, match="uint8"):
        upsample(np.zeros((4, 4, 3), np.float32), 2)
    with pytest.raises(ValueError, match="scale"):
        upsample(np.zeros((4, 4, 3), np.uint8), 0)

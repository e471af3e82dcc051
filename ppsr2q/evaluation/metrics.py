"""PSNR and SSIM of the luma channel, as super-resolution papers report them."""
from __future__ import annotations

from typing import Tuple

import numpy as np
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from ppsr2q.core.errors import UserError

SSIM_WINDOW = 11


def require_finite(output: np.ndarray, label: str) -> np.ndarray:
    """A network's output as it is; UserError naming ``label`` when it holds NaN or infinite values."""
    if not np.isfinite(output).all():
        raise UserError(f"{label}: the output holds NaN or infinite values; check the network's weights")
    return output


def to_uint8(image: np.ndarray) -> np.ndarray:
    """float image in [0, 1] -> uint8: clamped, times 255, rounded half to even."""
    return np.rint(np.clip(image, 0.0, 1.0) * 255.0).astype(np.uint8)


def luma(rgb: np.ndarray) -> np.ndarray:
    """ITU-R BT.601 studio-swing luma, float64 in [16, 235], not rounded, of a uint8 (H, W, 3) RGB image."""
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ValueError(f"expected a uint8 (H, W, 3) image, got {rgb.dtype} {rgb.shape}")
    return 16.0 + rgb.astype(np.float64) @ (np.array([65.481, 128.553, 24.966]) / 255.0)


def psnr_y(first: np.ndarray, second: np.ndarray, crop: int) -> float:
    """PSNR in dB between the lumas of two uint8 (H, W, 3) images without ``crop`` border pixels.

    inf when they are equal.

    Raises:
        ValueError: different shapes.
        UserError: no pixel is left after cropping.
    """
    y_first, y_second = _cropped_lumas(first, second, crop, smallest=1)
    if np.array_equal(y_first, y_second):
        return float("inf")
    return float(peak_signal_noise_ratio(y_first, y_second, data_range=255))


def ssim_y(first: np.ndarray, second: np.ndarray, crop: int) -> float:
    """SSIM (Wang et al. 2004: 11x11 Gaussian, sigma 1.5, valid area) between the lumas of two uint8 RGB
    images.

    Raises:
        ValueError: different shapes.
        UserError: less than one 11x11 window is left after cropping ``crop`` border pixels.
    """
    y_first, y_second = _cropped_lumas(first, second, crop, smallest=SSIM_WINDOW)
    return float(
        structural_similarity(
            y_first, y_second, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
    )


def check_measurable(image: np.ndarray, crop: int, label: str = "image", smallest: int = SSIM_WINDOW) -> None:
    """UserError naming ``label`` unless ``smallest`` pixels a side are left of (H, W, 3) without its border."""
    height, width = image.shape[:2]
    if min(height, width) - 2 * crop < smallest:
        raise UserError(f"{label} of {width}x{height} pixels (WxH) is too small to be measured: without {crop} border "
                        f"pixels at least {smallest}x{smallest} must be left")


def _cropped_lumas(
    first: np.ndarray, second: np.ndarray, crop: int, smallest: int
) -> Tuple[np.ndarray, np.ndarray]:
    if first.shape != second.shape:
        raise ValueError(f"images to compare have different shapes: {first.shape} and {second.shape}")
    check_measurable(first, crop, smallest=smallest)
    height, width = first.shape[0] - 2 * crop, first.shape[1] - 2 * crop
    inside = (slice(crop, crop + height), slice(crop, crop + width))
    return luma(first)[inside], luma(second)[inside]

"""The measuring protocol as one function, for whatever turns a small image into a large one."""
from __future__ import annotations

import math
from typing import Any, Callable, Dict, List, Optional, Sequence

import numpy as np

from ppsr2q.data.bicubic import upsample
from ppsr2q.data.datasets import Pair, TestSet
from ppsr2q.evaluation.metrics import check_measurable, psnr_y, require_finite, ssim_y, to_uint8
from ppsr2q.evaluation.tiling import Upscaler

OnImage = Callable[[str, Pair, np.ndarray, Dict[str, float]], None]

PROTOCOL = {
    "lr": "MATLAB-exact bicubic of the 8-bit HR image",
    "hr": "cropped at the bottom and right to LR size * scale",
    "output": "clamped to [0, 1], * 255, rounded to 8 bits",
    "channel": "Y = 16 + 65.481 R + 128.553 G + 24.966 B (R, G, B in [0, 1]), not rounded",
    "border": "scale pixels cropped on each side",
    "psnr": "20 log10(255 / RMSE) per image, then averaged over the set",
    "ssim": "11x11 Gaussian window, sigma 1.5, valid area, K1 = 0.01, K2 = 0.03, range 255",
    "self_ensemble": False,
}


def evaluate(
    upscale: Upscaler, test_sets: Sequence[TestSet], on_image: Optional[OnImage] = None
) -> Dict[str, Any]:
    """Measure ``upscale`` on test sets of one scale.

    Args:
        upscale: float32 (h, w, 3) RGB in [0, 1] -> float32 (h * scale, w * scale, 3).
        test_sets: at least one; all of the same scale.
        on_image: called after each image with (set name, pair, output uint8 (H, W, 3), its scores), for
            progress and for keeping outputs.

    Returns:
        ``{set: {"psnr_y": dB, "ssim_y": ..., "images": {name: {"psnr_y", "ssim_y"}}}, ...,
        "protocol": {...}}``.

    Raises:
        UserError: an unreadable or too small image, or an output with NaN or infinite values.
        ValueError: test sets of several scales, or an output of a wrong shape.
    """
    scales = {test_set.scale for test_set in test_sets}
    if len(scales) != 1:
        raise ValueError(f"expected test sets of one scale, got scales {sorted(scales)}")
    results: Dict[str, Any] = {}
    for test_set in test_sets:
        images: Dict[str, Dict[str, float]] = {}
        for pair in test_set:
            label = f"{test_set.name}/{pair.name}"
            check_measurable(pair.hr, test_set.scale, label)
            output = _upscaled(upscale, pair, label)
            scores = {
                "psnr_y": psnr_y(output, pair.hr, test_set.scale),
                "ssim_y": ssim_y(output, pair.hr, test_set.scale),
            }
            images[pair.name] = scores
            if on_image is not None:
                on_image(test_set.name, pair, output, scores)
        means = {key: _mean(images, key) for key in ("psnr_y", "ssim_y")}
        results[test_set.name] = {**means, "images": images}
    results["protocol"] = {"scale": scales.pop(), **PROTOCOL}
    given = [test_set.name for test_set in test_sets if test_set.lr_folder is not None]
    if given:
        results["protocol"]["lr"] = f"as found in LR_bicubic of {', '.join(given)}" + (
            f"; else {PROTOCOL['lr']}" if len(given) < len(test_sets) else "")
    return results


def _mean(images: Dict[str, Dict[str, float]], key: str) -> float:
    return math.fsum(scores[key] for scores in images.values()) / len(images)


def _upscaled(upscale: Upscaler, pair: Pair, label: str) -> np.ndarray:
    output = upscale(pair.lr.astype(np.float32) / np.float32(255.0))
    if output.shape != pair.hr.shape:
        raise ValueError(f"{label}: the upscaler returned shape {output.shape}, expected {pair.hr.shape}")
    return to_uint8(require_finite(output, label))


def bicubic_upscaler(scale: int) -> Upscaler:
    """The baseline every paper starts from: MATLAB's bicubic, as a callable for :func:`evaluate`."""

    def upscale(image: np.ndarray) -> np.ndarray:
        return upsample(to_uint8(image), scale).astype(np.float32) / np.float32(255.0)

    return upscale


def format_results(results: Dict[str, Any]) -> str:
    """The means as a text table, followed by the protocol."""
    names = [name for name in results if name != "protocol"]
    width = max([len("set")] + [len(name) for name in names])
    lines: List[str] = [f"{'set':<{width}}  images  PSNR-Y/dB  SSIM-Y"]
    for name in names:
        row = results[name]
        lines.append(f"{name:<{width}}  {len(row['images']):>6}  {row['psnr_y']:>9.2f}  {row['ssim_y']:.4f}")
    lines += ["", "protocol:"] + [f"  {key}: {value}" for key, value in results["protocol"].items()]
    return "\n".join(lines)

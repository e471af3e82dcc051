"""What every engine takes and gives."""
from __future__ import annotations

from typing import Any, Callable

import numpy as np

from ppsr2q.core.errors import UserError


def checked(array: Any, name: str = "image", channels: int = 3) -> np.ndarray:
    """``array``, contiguous, where it is finite float32 (h, w, channels) with h and w from 1.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.ndim != 3 or array.shape[2] != channels:
        given = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"{name} must be float32 of shape (h, w, {channels}), got {given}")
    if not array.size:
        raise ValueError(f"{name} is empty, shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} contains NaN or infinite values")
    return np.ascontiguousarray(array)


def upscale_planar(run: Callable[[np.ndarray], np.ndarray], image: np.ndarray, engine: str) -> np.ndarray:
    """``Upscaler.upscale`` of an engine that takes and gives float32 (1, 3, h, w).

    Raises:
        ValueError: from :func:`checked`.
        UserError: the engine failed, as it does when memory runs out.
    """
    planes = np.ascontiguousarray(checked(image).transpose(2, 0, 1)[None])
    try:
        result = run(planes)
    except Exception as error:  # engines have exceptions of their own, of no common type
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{engine} failed on an image of {image.shape[1]} x {image.shape[0]} pixels ({reason[:200]}); "
                        "tiles (predict --tile) need less memory") from error
    return result[0].transpose(1, 2, 0)

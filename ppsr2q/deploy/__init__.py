"""What ships: the packed file, the integer runtime that executes it, and its forms for other people's engines.

Importing this package needs no Paddle.
"""
from __future__ import annotations

from typing import Optional, Protocol

import numpy as np

from ppsr2q.core.errors import UserError
from ppsr2q.core.files import PathLike

ENGINES = ("runtime", "onnxruntime")


class Upscaler(Protocol):
    """What every engine makes of a packed model. Python threads may share it.

    Attributes:
        scale: of the enlargement.
    """

    scale: int

    def upscale(self, image: np.ndarray) -> np.ndarray:
        """float32 (h, w, 3) RGB in [0, 1] -> float32 (scale h, scale w, 3), not clamped."""


def load(path: PathLike, threads: Optional[int] = None, engine: str = "runtime") -> Upscaler:
    """A packed model (``tools/export.py``), ready to ``upscale`` images on the CPU.

    Args:
        threads: of one call; default: all processors that this process may use.
        engine: ``runtime``, ppsr2q's own on integers, or ``onnxruntime`` (needs the extra ``deploy``).

    Raises:
        UserError: a file that is missing, damaged or of another kind; threads out of range; an unknown engine, or one
            that cannot be had here (no compiler to build the runtime with, a missing package).
    """
    from ppsr2q.deploy.packed import read_packed
    if engine == "runtime":
        from ppsr2q.deploy.runtime import Runtime
        return Runtime(read_packed(path), threads, source=str(path))
    if engine == "onnxruntime":
        from ppsr2q.deploy.onnx_export import load_upscaler
        return load_upscaler(read_packed(path), threads)
    raise UserError(f"engine {engine!r}: expected one of {', '.join(ENGINES)}")

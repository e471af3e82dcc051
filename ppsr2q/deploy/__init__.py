"""What ships: the packed file, its ONNX forms, and how to use it without Paddle."""
from __future__ import annotations

from typing import Optional


def load(path, threads: Optional[int] = None):
    """A packed model (``tools/export.py --format packed``) ready to run in ONNX Runtime.

    Args:
        threads: of the engine; None: all processors.

    Returns:
        :class:`ppsr2q.deploy.onnx_export.OnnxUpscaler`: ``load(path).upscale(image)``, ``.scale``.

    Raises:
        UserError: damaged file, a missing package, or fewer than one thread.
    """
    from ppsr2q.deploy.onnx_export import load_upscaler
    from ppsr2q.deploy.packed import read_packed
    return load_upscaler(read_packed(path), threads)

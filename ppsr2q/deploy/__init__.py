"""What ships: the packed file, exporters for other engines, and the integer runtime.

Importing this package needs no Paddle.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Optional

from ppsr2q.core.files import PathLike

if TYPE_CHECKING:
    from ppsr2q.deploy.runtime import Runtime


def load(path: PathLike, threads: Optional[int] = None) -> "Runtime":
    """A packed model (``tools/export.py --format packed``), ready to ``upscale`` images on the CPU.

    Args:
        threads: of one call, default: all processors that this process may use.

    Raises:
        UserError: a file that is missing, damaged or of another kind; threads out of range; no compiler to build the
            runtime with.
    """
    from ppsr2q.deploy.packed import read_packed
    from ppsr2q.deploy.runtime import Runtime
    return Runtime(read_packed(path), threads)

"""A thin VisualDL writer; ``visualdl --logdir FOLDER`` shows what it wrote."""
from __future__ import annotations

import os
from typing import Any, Mapping, Optional, Sequence, Union

import numpy as np
from visualdl import LogWriter

from ppsr2q.core.config import flatten


class Dashboard:
    """Writes event files into ``logdir`` (made if missing), or nothing at all when it is None.

    Every run adds a file, so a resumed run goes on in the same curves.
    """

    def __init__(self, logdir: Optional[Union[str, "os.PathLike[str]"]] = None) -> None:
        # VisualDL takes the folder as `logdir`; it swallows other spellings and logs elsewhere.
        self._writer = None if logdir is None else LogWriter(logdir=os.fspath(logdir))

    def scalar(self, tag: str, value: float, step: int) -> None:
        """One point of the curve ``tag``."""
        if self._writer is not None:
            self._writer.add_scalar(tag=tag, value=float(value), step=step)

    def histogram(self, tag: str, values: np.ndarray, step: int) -> None:
        """Distribution of an array of any shape; values that are not finite are left out."""
        if self._writer is not None:
            flat = np.asarray(values, np.float64).ravel()
            self._writer.add_histogram(tag=tag, values=flat[np.isfinite(flat)], step=step, buckets=20)

    def image(self, tag: str, picture: np.ndarray, step: int) -> None:
        """A picture, uint8 (H, W, 3) RGB.

        Raises:
            ValueError: another dtype or shape.
        """
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise ValueError(f"expected uint8 (H, W, 3), got {picture.dtype} {picture.shape}")
        if self._writer is not None:
            self._writer.add_image(tag=tag, img=picture, step=step)

    def hyperparameters(self, values: Mapping[str, Any], metrics: Sequence[str]) -> None:
        """Nested options under dotted names, beside the curves (tags of scalars) that judge them."""
        if self._writer is not None:
            numbers = {key: value if type(value) in (int, float) else str(value)  # VisualDL takes numbers and text only
                       for key, value in flatten(values).items()}
            self._writer.add_hparams(hparams_dict=numbers, metrics_list=list(metrics))

    def close(self) -> None:
        """Write out what is buffered."""
        if self._writer is not None:
            self._writer.close()

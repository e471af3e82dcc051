"""Photographs inside scikit-image's package, as a training folder and a test set without a download."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import skimage

from ppsr2q.core.errors import UserError
from ppsr2q.core.files import PathLike
from ppsr2q.data.bicubic import crop_to_multiple
from ppsr2q.data.image_io import read_rgb8, write_rgb8

TEST_SET = "Embedded"
TRAINING_IMAGES = ("astronaut.png", "motorcycle_left.png")
TEST_IMAGES = ("chelsea.png", "coffee.png")
_LARGEST_SCALE = 4


def write_embedded(root: PathLike) -> Path:
    """Write ``<root>/train/*.png`` (2 images) and ``<root>/Embedded/HR/*.png`` (2, sides multiples of 4).

    The files are read from the installed package by path, because ``skimage.data`` downloads what it lacks.
    Files that are already there are kept.

    Returns:
        ``root``.

    Raises:
        UserError: the installed scikit-image lacks an image, or ``root`` cannot be written.
    """
    root = Path(root)
    folder = Path(skimage.__file__).parent / "data"
    for name in TRAINING_IMAGES:
        _copy(folder / name, root / "train" / name, multiple=1)
    for name in TEST_IMAGES:
        _copy(folder / name, root / TEST_SET / "HR" / name, multiple=_LARGEST_SCALE)
    return root


def _copy(source: Path, target: Path, multiple: int) -> None:
    if target.exists():
        return
    if not source.is_file():
        raise UserError(f"{source}: not in this scikit-image {skimage.__version__}, expected PyPI's wheel")
    write_rgb8(target, np.ascontiguousarray(crop_to_multiple(read_rgb8(source), multiple)))

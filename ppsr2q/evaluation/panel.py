"""Crops of one place beside each other, as papers show them."""
from __future__ import annotations

import math
from pathlib import Path
from typing import Sequence, Tuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ppsr2q.core.files import PathLike, atomic_path

_MAX_COLUMNS = 4
_CROP_INCHES = 2.4
_TITLE_INCHES = 0.5


def side_by_side(crops: Sequence[Tuple[str, np.ndarray]], path: PathLike) -> None:
    """Draw crops in a grid, each under its title, and write the picture.

    Args:
        crops: (title, uint8 (h, w, 3)), at least one; a title may hold metrics on a second line. Crops of
            different sizes are shown equally large, by nearest neighbours so that no filter adds to them.
        path: of the picture; the extension names the format (png, pdf, svg, ...).

    Raises:
        ValueError: no crops.
        UserError: the file cannot be written.
    """
    if not crops:
        raise ValueError("no crops to draw")
    rows = math.ceil(len(crops) / _MAX_COLUMNS)
    columns = math.ceil(len(crops) / rows)
    height, width = crops[0][1].shape[:2]
    cell_height = _CROP_INCHES * height / width + _TITLE_INCHES
    # Figure without pyplot: no global state, and no display is looked for.
    figure = Figure(figsize=(columns * _CROP_INCHES, rows * cell_height), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, (title, crop) in zip(grid, crops):
        axes.imshow(crop, interpolation="nearest", aspect="auto")
        axes.set_box_aspect(height / width)
        axes.set_title(title, fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=Path(path).suffix.lstrip(".") or "png")

import numpy as np
import pytest

from ppsr2q.data.image_io import read_rgb8
from ppsr2q.evaluation.panel import side_by_side


def test_crops_are_shown_unfiltered_and_in_order(tmp_path):
    colours = [(200, 30, 40), (20, 180, 60), (10, 40, 220), (250, 240, 10), (120, 10, 130)]
    crops = [(f"crop {index}\n30.00 dB", np.full((4 + index, 4 + index, 3), colour, np.uint8))
             for index, colour in enumerate(colours)]
    side_by_side(crops, tmp_path / "panel.png")
    picture = read_rgb8(tmp_path / "panel.png")
    centres = []
    for colour in colours:
        rows, columns = np.nonzero((picture == colour).all(axis=2))
        # Every crop fills its square with its own colour and nothing in between.
        assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1) > 200 * 200
        centres.append((rows.mean(), columns.mean()))
    heights, positions = [round(row) for row, _ in centres], [column for _, column in centres]
    assert heights[0] == heights[1] == heights[2] < heights[3] == heights[4]
    assert positions[0] < positions[1] < positions[2] and positions[3] < positions[4]
    assert [path.name for path in tmp_path.iterdir()] == ["panel.png"]


def test_no_crops(tmp_path):
    with pytest.raises(ValueError, match="no crops"):
        side_by_side([], tmp_path / "panel.png")

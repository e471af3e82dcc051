import socket

import numpy as np
import skimage.data

from ppsr2q.data.datasets import TestSet, training_split
from ppsr2q.data.embedded import write_embedded
from ppsr2q.data.image_io import read_rgb8


def test_layout_and_pixels_without_network(tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("tried to reach the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    write_embedded(tmp_path)
    train, validation = training_split(tmp_path / "train")
    assert [path.name for path in train + validation] == ["astronaut.png", "motorcycle_left.png"]
    pairs = {pair.name: pair for pair in TestSet(tmp_path, "Embedded", 4)}
    shapes = {name: pair.hr.shape for name, pair in pairs.items()}
    assert shapes == {"chelsea": (300, 448, 3), "coffee": (400, 600, 3)}
    np.testing.assert_array_equal(pairs["chelsea"].hr, skimage.data.chelsea()[:, :448])
    np.testing.assert_array_equal(read_rgb8(train[0]), skimage.data.astronaut())


def test_existing_files_are_kept(tmp_path):
    write_embedded(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    write_embedded(tmp_path)
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}

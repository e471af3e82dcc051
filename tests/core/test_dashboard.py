"""What the dashboard writes, read back with VisualDL's own reader."""
from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from visualdl import LogReader

from ppsr2q.core.dashboard import Dashboard


def test_written_files_can_be_read_back(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    dashboard = Dashboard(tmp_path / "log")
    dashboard.scalar("train/loss", 1.5, 1)
    dashboard.scalar("train/loss", np.float32(0.5), 2)
    dashboard.histogram("bounds/fc1", np.array([[0, 1], [1, np.nan]], np.float32), 2)
    dashboard.image("crop", picture, 2)
    dashboard.hyperparameters({"train": {"lr": 0.1, "clip": None}, "augment": True}, ["train/loss"])
    dashboard.close()
    (file,) = (tmp_path / "log").iterdir()
    reader = LogReader(file_path=str(file))
    points = reader.get_data("scalar", "train/loss")
    assert [(point.id, point.value) for point in points] == [(1, 1.5), (2, 0.5)]
    (histogram,) = reader.get_data("histogram", "bounds/fc1")
    assert list(histogram.histogram.hist) == [1, *[0] * 18, 2]
    (image,) = reader.get_data("image", "crop")
    np.testing.assert_array_equal(Image.open(io.BytesIO(image.image.encoded_image_string)), picture)
    names = {info.name for info in reader.get_data("hyper_parameters", "hparam")[0].hparam.hparamInfos}
    assert names == {"train.lr", "train.clip", "augment"}


def test_none_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dashboard = Dashboard(None)
    dashboard.scalar("a", 1.0, 1)
    dashboard.histogram("b", np.ones(2), 1)
    dashboard.image("c", np.zeros((2, 2, 3), np.uint8), 1)
    dashboard.hyperparameters({"a": 1}, [])
    dashboard.close()
    assert not list(tmp_path.iterdir())


def test_pictures_must_be_uint8_rgb():
    for picture in (np.zeros((2, 2, 3), np.float32), np.zeros((2, 2), np.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            Dashboard(None).image("c", picture, 1)

import os

import numpy as np
import pytest

from ppsr2q.core.errors import UserError
from ppsr2q.data.bicubic import downsample
from ppsr2q.data.image_io import read_rgb8, write_rgb8
from ppsr2q.data.prepare import prepare_data


def _image(seed):
    return np.random.default_rng(seed).integers(0, 256, (21, 26, 3), dtype=np.uint8)


@pytest.fixture
def root(tmp_path):
    for index in range(5):
        write_rgb8(tmp_path / "data" / "Set5" / "HR" / f"{index}.png", _image(index))
    return tmp_path / "data"


def test_a_sound_set_and_absent_ones(root):
    seen = []
    report = prepare_data(root, on_file=seen.append)
    states = {entry.name: entry.state for entry in report.sets}
    assert states["Set5"].startswith("5 of 5 images; LR x2 not there") and states["Urban100"] == "not there"
    assert not report.problems and "no problems" in str(report) and len(seen) == 5
    assert not (root / "Set5" / "LR_bicubic").exists()


def test_a_subset_is_checked_in_the_set_it_is_taken_from(root):
    for index in range(5):
        write_rgb8(root / "B100" / "HR" / f"{index}.png", _image(index))
    report = prepare_data(root, names=["B20"])
    assert report.sets[0].state.startswith("5 of 100 images") and "B100: 5 images, expected 100" in report.problems[0]


def test_a_root_without_any_set_is_a_problem(root):
    report = prepare_data(root / "Set5")
    assert "holds none of the test sets Set5" in report.problems[0] and "Set5/Set5/HR" in report.problems[0]
    assert not prepare_data(root, names=["Set5"]).problems and prepare_data(root, names=["Mine"]).problems


def test_an_image_below_the_scale_is_a_problem(root):
    write_rgb8(root / "Mine" / "HR" / "dot.png", _image(0)[:3, :3])
    report = prepare_data(root, [4], make_lr=True, names=["Mine"])
    assert "dot.png: 3x3 pixels" in report.problems[0] and report.sets[0].lr == {4: "incomplete"}


def test_lr_is_made_and_completed(root):
    assert prepare_data(root, [2], make_lr=True).sets[0].lr == {2: "complete, 5 made now"}
    folder = root / "Set5" / "LR_bicubic" / "X2"
    np.testing.assert_array_equal(read_rgb8(folder / "3x2.png"), downsample(_image(3)[:20], 2))
    (folder / "1x2.png").unlink()
    assert prepare_data(root, [2]).sets[0].lr == {2: "incomplete"}
    assert prepare_data(root, [2], make_lr=True).sets[0].lr == {2: "complete, 1 made now"}
    assert prepare_data(root, [2]).sets[0].lr == {2: "complete"}


def test_every_problem_is_named(root):
    folder = root / "Set5" / "LR_bicubic" / "X4"
    write_rgb8(folder / "0x4.png", _image(0)[:5, :6])
    write_rgb8(folder / "1x4.png", _image(0)[:5, :5])
    write_rgb8(folder / "other.png", _image(0))
    broken = root / "Set5" / "HR" / "2.png"
    broken.write_bytes(broken.read_bytes()[:300])
    (root / "Set5" / "HR" / "4.png").unlink()
    text = str(prepare_data(root, [4]))
    expected = ("4 images, expected 5", "2.png: damaged", "no LR file for 2, 3", "other.png", "1x4.png: 5x5")
    for part in expected:
        assert part in text


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="needs limited rights")
def test_read_only_root(root):
    (root / "Set5").chmod(0o555)
    try:
        report = prepare_data(root, [2], make_lr=True)
    finally:
        (root / "Set5").chmod(0o755)
    assert "cannot be written" in str(report)


def test_unwritable_lr_folder_is_a_problem_not_a_crash(root):
    (root / "Set5" / "LR_bicubic").write_text("a file where the folder should be")
    report = prepare_data(root, [2], make_lr=True)
    assert "LR_bicubic" in report.problems[0] and report.sets[0].lr == {2: "incomplete"}


def test_training_folder(root, tmp_path):
    for index in range(3):
        write_rgb8(tmp_path / "train" / f"{index}.png", _image(index))
    (tmp_path / "train" / "1.png").write_text("no image")
    report = prepare_data(root, training_folder=tmp_path / "train")
    assert (report.training.train, report.training.validation) == (2, 1)
    assert report.training.megapixels == pytest.approx(2 * 21 * 26 / 1e6)
    assert "1.png" in report.problems[0]
    assert "nowhere" in prepare_data(root, training_folder=tmp_path / "nowhere").problems[0]


def test_missing_root(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        prepare_data(tmp_path / "nowhere")

import numpy as np
import pytest

from ppsr2q.core.errors import UserError
from ppsr2q.data import datasets
from ppsr2q.data.bicubic import downsample
from ppsr2q.data.image_io import read_rgb8, write_rgb8
from tests.shared import shared_path


def _image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def root(tmp_path):
    for name, (height, width) in {"a": (13, 18), "bx2": (12, 12)}.items():
        write_rgb8(tmp_path / "Mine" / "HR" / f"{name}.png", _image(height, width))
    return tmp_path


def test_lr_is_made_in_memory(root):
    test_set = datasets.TestSet(root, "Mine", 2)
    pairs = list(test_set)
    assert len(test_set) == 2 and [pair.name for pair in pairs] == ["a", "bx2"]
    assert pairs[0].hr.shape == (12, 18, 3) and pairs[0].lr.shape == (6, 9, 3)
    np.testing.assert_array_equal(pairs[0].lr, downsample(_image(13, 18)[:12], 2))
    assert test_set.lr_folder is None


def test_lr_files_are_read_under_both_names(root):
    folder = root / "Mine" / "LR_bicubic" / "X2"
    write_rgb8(folder / "ax2.png", _image(6, 9, 7))
    write_rgb8(folder / "bx2.png", _image(6, 6, 8))  # its HR image is itself called bx2
    pairs = list(datasets.TestSet(root, "Mine", 2))
    np.testing.assert_array_equal(pairs[0].lr, _image(6, 9, 7))
    np.testing.assert_array_equal(pairs[1].lr, _image(6, 6, 8))


def test_unpaired_files_are_named(root):
    folder = root / "Mine" / "LR_bicubic" / "X2"
    write_rgb8(folder / "ax2.png", _image(6, 9))
    write_rgb8(folder / "stranger.png", _image(6, 9))
    with pytest.raises(UserError, match="no LR file for bx2; no HR image for stranger.png"):
        datasets.TestSet(root, "Mine", 2)


def test_sizes_that_do_not_fit_are_named(root):
    folder = root / "Mine" / "LR_bicubic" / "X2"
    write_rgb8(folder / "ax2.png", _image(7, 9))
    write_rgb8(folder / "bx2x2.png", _image(6, 6))
    with pytest.raises(UserError, match=r"ax2.png: 9x7 pixels \(WxH\); expected 9x6"):
        list(datasets.TestSet(root, "Mine", 2))


def test_other_layouts_and_missing_sets(root):
    write_rgb8(root / "Other" / "GTmod12" / "c.png", _image(12, 12))
    assert len(datasets.TestSet(root, "Other", 4)) == 1
    with pytest.raises(UserError, match="Set5"):
        datasets.TestSet(root, "Set5", 2)
    (root / "Empty" / "HR").mkdir(parents=True)
    with pytest.raises(UserError, match="no images"):
        datasets.TestSet(root, "Empty", 2)


def test_image_smaller_than_the_scale(tmp_path):
    write_rgb8(tmp_path / "Tiny" / "HR" / "dot.png", _image(1, 9))
    with pytest.raises(UserError, match="dot.png"):
        list(datasets.TestSet(tmp_path, "Tiny", 2))


def test_two_files_of_one_name(root):
    write_rgb8(root / "Mine" / "HR" / "a.bmp", _image(12, 12))
    with pytest.raises(UserError, match="two images of one name"):
        datasets.TestSet(root, "Mine", 2)


def test_set5_pairs_with_its_matlab_files():
    root = shared_path("data/Set5/LR_bicubic/X4").parents[2]
    pairs = {pair.name: pair for pair in datasets.TestSet(root, "Set5", 4)}
    assert {name: pair.hr.shape[:2] for name, pair in pairs.items()} == {
        "baby": (512, 512), "bird": (288, 288), "butterfly": (256, 256),
        "head": (280, 280), "woman": (344, 228),
    }
    np.testing.assert_array_equal(pairs["bird"].lr, read_rgb8(root / "Set5/LR_bicubic/X4/birdx4.png"))


def test_training_split(tmp_path):
    names = [f"sub{index % 3}/{index:03}.png" for index in range(41)]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "readme.txt").touch()
    train, validation = datasets.training_split(tmp_path)
    ordered = sorted(names)
    relative = [path.relative_to(tmp_path).as_posix() for path in validation]
    assert relative == [ordered[19], ordered[39]]
    assert len(train) == 39 and not set(train) & set(validation)


def test_linked_folders_are_trained_on_and_hidden_ones_are_not(tmp_path):
    for name in ("real/a.png", "real/b.png", "train/.ipynb_checkpoints/a.png", "train/own/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    (tmp_path / "train" / "DIV2K").symlink_to(tmp_path / "real")
    (tmp_path / "train" / "twice").symlink_to(tmp_path / "real")
    (tmp_path / "train" / "own" / "circle").symlink_to(tmp_path / "train")
    train, validation = datasets.training_split(tmp_path / "train")
    assert [path.relative_to(tmp_path / "train").as_posix() for path in train + validation] == [
        "DIV2K/a.png", "DIV2K/b.png", "own/c.png"]


def test_training_split_of_few_images(tmp_path):
    for index in range(3):
        (tmp_path / f"{index}.png").touch()
    train, validation = datasets.training_split(tmp_path)
    assert [path.name for path in train] == ["0.png", "1.png"]
    assert [path.name for path in validation] == ["2.png"]
    (tmp_path / "0.png").unlink()
    (tmp_path / "1.png").unlink()
    with pytest.raises(UserError, match="at least 2"):
        datasets.training_split(tmp_path)
    with pytest.raises(UserError, match="nowhere"):
        datasets.training_split(tmp_path / "nowhere")


def test_b20_is_every_fifth_of_b100_unless_there_is_such_a_folder(tmp_path):
    for i in range(11):
        write_rgb8(tmp_path / "B100" / "HR" / f"{i:02d}.png", _image(4, 4, i))
    assert [pair.name for pair in datasets.TestSet(tmp_path, "B20", 2)] == ["04", "09"]
    assert len(datasets.TestSet(tmp_path, "B100", 2)) == 11
    write_rgb8(tmp_path / "B20" / "HR" / "own.png", _image(4, 4))
    assert [pair.name for pair in datasets.TestSet(tmp_path, "B20", 2)] == ["own"]
    with pytest.raises(UserError, match="'Urban100' not found"):
        datasets.TestSet(tmp_path, "Urban20", 2)
    write_rgb8(tmp_path / "Urban100" / "HR" / "only.png", _image(4, 4))
    with pytest.raises(UserError, match="1 images; Urban20 is every fifth of at least five"):
        datasets.TestSet(tmp_path, "Urban20", 2)

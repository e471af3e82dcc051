"""Training images of a config: which are used, and what a run remembers of them."""
import numpy as np
import pytest

from ppsr2q.core.config import load_config
from ppsr2q.core.errors import UserError
from ppsr2q.data.image_io import write_rgb8
from ppsr2q.workflow.batches import images_sha256, training_batches


def write(folder, name, side):
    rng = np.random.default_rng(side)
    write_rgb8(folder / name, rng.integers(0, 256, (side, side, 3), dtype=np.uint8))


def config(folder):
    return load_config(None, [f"data.train={folder}"])


def test_a_run_knows_its_images_wherever_they_lie(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        write(tmp_path / "here", name, 40)
    before = images_sha256(config(tmp_path / "here"))
    (tmp_path / "here").rename(tmp_path / "there")
    assert images_sha256(config(tmp_path / "there")) == before
    (tmp_path / "there" / "b.png").unlink()
    assert images_sha256(config(tmp_path / "there")) != before


def test_small_images_are_left_out_and_counted_once(tmp_path, capsys):
    for name, side in (("a.png", 40), ("b.png", 20), ("c.png", 40)):
        write(tmp_path, name, side)
    for _ in range(2):
        batch = training_batches(config(tmp_path), batch=2, lr_patch=16, augment=False)(0, 0, 1)
    assert batch["lr"].shape == (2, 3, 16, 16)
    assert capsys.readouterr().err.count("1 of 3 images are smaller than 32 x 32 pixels") == 1


def test_routing_noise_is_drawn_anew_for_every_slice_and_seed(tmp_path):
    for name in ("a.png", "b.png"):
        write(tmp_path, name, 40)
    given = [load_config(None, [f"data.train={tmp_path}", f"model.routing_seed={seed}"]) for seed in (0, 1)]
    seeds = [training_batches(options, 1, 16, False)(iteration, index, 2)["routing_seed"]
             for options in given for iteration in (0, 1) for index in (0, 1)]
    assert len(set(seeds)) == 8
    assert training_batches(given[1], 1, 16, False)(1, 1, 2)["routing_seed"] == seeds[-1]


def test_no_image_of_a_purpose_is_large_enough(tmp_path):
    for name, side in (("a.png", 40), ("z.png", 20)):
        write(tmp_path, name, side)
    with pytest.raises(UserError, match=r"none of the 1 images for validation in .* \(first z.png\) is at least 32 x 32"):
        training_batches(config(tmp_path), batch=1, lr_patch=16, augment=False)
    with pytest.raises(UserError, match="data.train is not set"):
        images_sha256(load_config())

import numpy as np
import pytest

from ppsr2q.core.errors import UserError
from ppsr2q.data.bicubic import downsample
from ppsr2q.data.image_io import write_rgb8
from ppsr2q.data.patches import PatchSampler, dihedral, validation_crops


@pytest.fixture
def paths(tmp_path):
    result = []
    for index in range(4):
        image = np.random.default_rng(index).integers(0, 256, (40 + index, 33, 3), dtype=np.uint8)
        result.append(tmp_path / f"{index}.png")
        write_rgb8(result[-1], image)
    return result


def _lows(paths, scale):
    for index in range(len(paths)):
        image = np.random.default_rng(index).integers(0, 256, (40 + index, 33, 3), dtype=np.uint8)
        yield downsample(image[: (40 + index) // scale * scale, : 33 // scale * scale], scale)


def test_samples_do_not_depend_on_how_they_are_asked_for(paths):
    whole = PatchSampler(paths, 2, 8, seed=5, with_hr=True).batch(3, 0, 6)
    other = PatchSampler(paths, 2, 8, seed=5, with_hr=True, cache_bytes=0)
    other.batch(0, 0, 3)
    second_half = other.batch(3, 4, 2)
    for key in ("lr", "hr"):
        np.testing.assert_array_equal(whole[key][4:], second_half[key])
    assert whole["lr"].shape == (6, 3, 8, 8) and whole["hr"].shape == (6, 3, 16, 16)
    assert whole["lr"].dtype == np.float32 and whole["lr"].max() <= 1.0


def test_seed_iteration_and_sample_all_count(paths):
    sampler = PatchSampler(paths, 2, 8, seed=5)
    reference = sampler.batch(0, 0, 1)["lr"]
    assert not np.array_equal(reference, sampler.batch(1, 0, 1)["lr"])
    assert not np.array_equal(reference, sampler.batch(0, 1, 1)["lr"])
    assert not np.array_equal(reference, PatchSampler(paths, 2, 8, seed=6).batch(0, 0, 1)["lr"])


def test_patches_come_from_the_bicubic_of_the_whole_image(paths):
    lows = list(_lows(paths, 2))
    for patch in PatchSampler(paths, 2, 8, seed=0, augment=False).batch(0, 0, 10)["lr"]:
        patch = np.rint(patch.transpose(1, 2, 0) * 255).astype(np.uint8)
        windows = (np.lib.stride_tricks.sliding_window_view(low, (8, 8), (0, 1)).transpose(0, 1, 3, 4, 2)
                   for low in lows)
        assert any((window == patch).all((2, 3, 4)).any() for window in windows)


def test_hr_belongs_to_lr(paths):
    # Away from the border the bicubic of the HR patch equals the LR patch, whatever the symmetry.
    batch = PatchSampler(paths, 2, 12, seed=1, with_hr=True).batch(0, 0, 16)
    for lr, hr in zip(batch["lr"], batch["hr"]):
        made = downsample(np.rint(hr.transpose(1, 2, 0) * 255).astype(np.uint8), 2)
        given = np.rint(lr.transpose(1, 2, 0) * 255)
        # Transposing swaps the two rounding passes: one grey level.
        assert np.abs(made[3:-3, 3:-3].astype(int) - given[3:-3, 3:-3]).max() <= 1


def test_dihedral_gives_the_eight_symmetries():
    image = np.arange(4).reshape(2, 2, 1)
    views = {tuple(dihedral(image, symmetry).ravel()) for symmetry in range(8)}
    assert views == {(0, 1, 2, 3), (1, 0, 3, 2), (2, 3, 0, 1), (3, 2, 1, 0), (0, 2, 1, 3), (1, 3, 0, 2),
                     (2, 0, 3, 1), (3, 1, 2, 0)}


def test_cache_is_bounded(paths):
    one_lr = 21 * 16 * 3
    sampler = PatchSampler(paths, 2, 8, seed=0, cache_bytes=2 * one_lr)
    sampler.batch(0, 0, 20)
    assert len(sampler._cache) == 2 and sampler._cached_bytes <= 2 * one_lr


def test_small_images_are_named(paths):
    with pytest.raises(UserError, match=r"0.png: 32 x 40 pixels, smaller than a patch of 34 x 34"):
        PatchSampler(paths[:1], 2, 17, seed=0).batch(0, 0, 1)
    with pytest.raises(UserError, match="at least one"):
        PatchSampler([], 2, 8, seed=0)


def test_validation_crops(paths):
    lr, hr = validation_crops(paths, 2, 8, 2)
    assert lr.shape == (2, 3, 8, 8) and hr.shape == (2, 3, 16, 16)
    lows = list(_lows(paths, 2))
    for crop, low in zip(lr, (lows[0], lows[2])):
        top, left = (low.shape[0] - 8) // 2, (low.shape[1] - 8) // 2
        expected = low[top : top + 8, left : left + 8].transpose(2, 0, 1)
        np.testing.assert_array_equal(np.rint(crop * 255), expected)
    assert len(validation_crops(paths, 2, 8, 9)[0]) == 4
    with pytest.raises(UserError, match="at least one"):
        validation_crops([], 2, 8, 2)

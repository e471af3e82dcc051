import numpy as np
import pytest
from scipy.ndimage import uniform_filter

from ppsr2q.core.errors import UserError
from ppsr2q.evaluation.tiling import run_official_tiles, run_tiled


def _nearest(scale):
    return lambda image: image.repeat(scale, 0).repeat(scale, 1)


def _image(height, width, seed=0):
    return np.random.default_rng(seed).random((height, width, 3), np.float32)


@pytest.mark.parametrize("shape", [(1, 1), (16, 16), (17, 40), (50, 33), (3, 61)])
@pytest.mark.parametrize("overlap", [0, 1, 5, 8])
def test_pointwise_upscaler_is_reproduced_exactly(shape, overlap):
    image = _image(*shape)
    for scale in (1, 2):
        tiled = run_tiled(_nearest(scale), image, 16, overlap, scale)
        np.testing.assert_array_equal(tiled, _nearest(scale)(image))


def test_all_tiles_have_one_size_and_cover_no_more_than_needed():
    sizes = []

    def spy(image):
        sizes.append(image.shape[:2])
        return image

    run_tiled(spy, _image(40, 30), 16, 4, 1)
    assert sizes == [(16, 16)] * 9  # (40 - 16) / 12 = 2 and (30 - 16) / 12 < 2 more tiles than one


def test_filter_within_the_margin_is_seamless():
    image = _image(64, 80)

    def smooth(piece):  # reaches 2 pixels and invents what lies beyond the piece
        return uniform_filter(piece, (5, 5, 1), mode="constant")

    whole = smooth(image)
    assert np.abs(run_tiled(smooth, image, 24, 0, 1) - whole).max() > 0.1
    np.testing.assert_allclose(run_tiled(smooth, image, 24, 8, 1), whole, atol=1e-5)


def test_blend_is_a_linear_ramp():
    values = iter([0.0, 1.0])
    result = run_tiled(lambda piece: np.full_like(piece, next(values)), _image(4, 12), 8, 4, 1)
    np.testing.assert_allclose(result[0, :, 0], [0, 0, 0, 0, 0, 0.25, 0.75, 1, 1, 1, 1, 1])


def test_tiles_that_differ_by_a_constant_join_without_a_step():
    offsets = iter(np.linspace(0, 1, 3))
    result = run_tiled(lambda piece: np.full_like(piece, next(offsets)), _image(8, 40), 16, 4, 1)
    assert np.abs(np.diff(result[0, :, 0])).max() <= 0.5 / 2 + 1e-6


def test_refusals():
    with pytest.raises(UserError, match="overlap 9"):
        run_tiled(_nearest(2), _image(20, 20), 16, 9, 2)
    with pytest.raises(UserError, match="tile 0"):
        run_tiled(_nearest(2), _image(20, 20), 0, 0, 2)
    with pytest.raises(ValueError, match="shape"):
        run_tiled(_nearest(2), _image(20, 20), 16, 4, 4)


@pytest.mark.parametrize("shape", [(30, 199), (200, 201), (401, 90)])
def test_official_tiles_reproduce_pointwise_upscalers(shape):
    image = _image(*shape)
    np.testing.assert_array_equal(run_official_tiles(_nearest(2), image, 2), _nearest(2)(image))


def test_official_tile_borders_by_hand():
    # 401 x 300: 3 x 2 tiles; 401 is mirrored to 402 = 3 * 134, margins of 13; 300 = 2 * 150, margins of 15.
    reads = []

    def spy(piece):
        reads.append((float(piece[0, 0, 0]), float(piece[0, 0, 1])) + piece.shape[:2])
        return piece

    rows, columns = np.meshgrid(np.arange(401), np.arange(300), indexing="ij")
    image = np.stack([rows, columns, rows], 2).astype(np.float32)
    np.testing.assert_array_equal(run_official_tiles(spy, image, 1), image)
    assert reads == [(0, 0, 147, 165), (0, 135, 147, 165), (121, 0, 160, 165), (121, 135, 160, 165),
                     (255, 0, 147, 165), (255, 135, 147, 165)]


def test_official_tiles_are_exact_for_filters_smaller_than_the_margin():
    image = _image(210, 100)

    def smooth(piece):
        return uniform_filter(piece, (9, 9, 1), mode="reflect")

    np.testing.assert_allclose(run_official_tiles(smooth, image, 1), smooth(image), atol=1e-5)

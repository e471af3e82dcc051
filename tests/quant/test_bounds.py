import numpy as np
import pytest
from scipy import stats

from ppsr2q.quant.bounds import candidate_bounds, search_bounds, squared_errors, subsample

QUANTILES = np.linspace(0.0005, 0.9995, 2001)


def quantize(v, a, b, bits):
    step = (b - a) / (2**bits - 1)
    return np.round((np.clip(v, a, b) - a) / step) * step + a


@pytest.mark.parametrize("bits, bound", [(1, 0.790), (2, 1.481), (3, 2.040), (4, 2.468)])
def test_two_sided_bounds_of_a_normal_distribution(bits, bound):
    a, b = search_bounds(stats.norm.ppf(QUANTILES), bits)
    assert (round(a, 3), round(b, 3)) == (-bound, bound)


@pytest.mark.parametrize("bits, upper", [(2, 3.421), (4, 5.777)])
def test_one_sided_bounds_of_an_exponential_distribution(bits, upper):
    a, b = search_bounds(stats.expon.ppf(QUANTILES), bits, one_sided=True)
    assert a == pytest.approx(0.0005, abs=1e-6) and b == pytest.approx(upper, abs=5e-4)


def test_uniform_values_give_candidate_24():
    a, b = search_bounds(np.linspace(-1, 1, 201), 2)
    assert (a, b) == pytest.approx((-0.76, 0.76))
    np.testing.assert_allclose(candidate_bounds(-1, 1, 100, False)[24], [a, b])


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_errors_equal_quantizing_every_value(bits):
    v = np.random.default_rng(bits).normal(3, 1, 999)
    bounds = candidate_bounds(v.min(), v.max(), 7, False)
    expected = [((v - quantize(v, a, b, bits))**2).sum() for a, b in bounds]
    np.testing.assert_allclose(squared_errors(v, bounds, bits), expected, rtol=1e-9)


def test_the_widest_of_equals_wins():
    # two values are exact at the first candidate; a narrower one is never better
    assert search_bounds(np.array([0.0, 1.0]), 1) == (0.0, 1.0)


def test_a_constant_tensor_gets_a_width():
    a, b = search_bounds(np.full(5, -2.0), 4)
    assert a <= -2.0 < b


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="finite"):
        search_bounds(np.array([0.0, np.nan]), 4)


def test_a_subsample_holds_the_extremes_and_repeats():
    v = np.random.default_rng(0).normal(size=(100, 100)).astype(np.float32)
    sample = subsample(v, 50, seed=3)
    assert sample.shape == (50,) and sample.dtype == np.float32
    assert sample.min() == v.min() and sample.max() == v.max()
    np.testing.assert_array_equal(sample, subsample(v, 50, seed=3))
    assert subsample(v, 10_000, seed=3).size == 10_000

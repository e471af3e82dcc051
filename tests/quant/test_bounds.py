import numpy as np
import pytest
from scipy import stats

from ppsr2q.quant.bounds import (SortedValues, candidate_bounds, fit_bounds, search_bounds, squared_errors, subsample,
                                 winsorize)

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
    np.testing.assert_allclose(squared_errors(SortedValues(v), bounds, bits), expected, rtol=1e-9)


def test_the_widest_of_equals_wins():
    # two values are exact at the first candidate; a narrower one is never better
    assert search_bounds(np.array([0.0, 1.0]), 1) == (0.0, 1.0)


@pytest.mark.parametrize("bits, bound", [(1, 0.7979), (2, 0.9957 * 3 / 2), (3, 0.5860 * 7 / 2), (4, 0.3352 * 15 / 2)])
def test_a_fit_finds_the_best_uniform_quantizer_of_a_normal_distribution(bits, bound):
    # step sizes of Max, "Quantizing for minimum distortion" (1960), table II; at one bit it is the mean of |x|
    quantiles = stats.norm.ppf((np.arange(200_000) + 0.5) / 200_000)
    assert search_bounds(quantiles, bits, fit=True) == pytest.approx((-bound, bound), abs=2e-3)


def test_a_fit_of_one_bit_finds_the_means_of_two_clusters():
    values = np.array([0.0, 1.0, 2.0, 9.0, 11.0])
    assert search_bounds(values, 1, fit=True) == pytest.approx((1.0, 10.0))
    assert search_bounds(values, 1)[0] == pytest.approx(11 - search_bounds(values, 1)[1])  # DOBI's are symmetric


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_fit_is_where_the_error_has_no_slope(bits):
    ordered = SortedValues(np.random.default_rng(bits).exponential(size=5000))
    [(a, b)] = fit_bounds(ordered, np.array([[0.1, 3.0]]), bits)
    h = 1e-4
    error, *moved = squared_errors(ordered, np.array([(a, b), (a - h, b), (a + h, b), (a, b - h), (a, b + h)]), bits)
    assert (np.array(moved) >= error).all()
    assert abs(moved[1] - moved[0]) / (2 * h) < 1 and abs(moved[3] - moved[2]) / (2 * h) < 1  # of a sum of 5000


def test_no_fit_is_worse_than_where_it_began():
    random = np.random.default_rng(0)
    ordered = SortedValues(np.concatenate([random.normal(size=1000), [-30.0]]))
    starts = np.sort(random.uniform(-30, 4, (50, 2)))
    for bits in (1, 3):
        fitted = fit_bounds(ordered, starts, bits)
        assert (squared_errors(ordered, fitted, bits) <= squared_errors(ordered, starts, bits) * (1 + 1e-12)).all()
        assert (fitted[:, 0] < fitted[:, 1]).all()


def test_one_outlier_moves_a_fit_less_than_dobi():
    values = np.concatenate([np.random.default_rng(0).normal(size=5000), [-8.0]])
    found = np.array([search_bounds(values, 2), search_bounds(values, 2, fit=True)])
    errors = squared_errors(SortedValues(values), found, 2)
    assert errors[1] < errors[0] / 2


def test_a_heavy_tail_does_not_get_a_level_for_itself_when_it_is_moved_inwards():
    values = np.concatenate([np.linspace(0, 1, 96), [100.0] * 4])
    a, b = search_bounds(values, 1, fit=True)
    assert (a, b) == pytest.approx((0.5, 100.0))  # the means of the two clusters: all but four values get code 0
    moved = winsorize(values, 0.05)
    assert (moved.min(), moved.max()) == (np.quantile(values, 0.05), np.quantile(values, 0.95))
    np.testing.assert_array_equal(moved[5:-5], values[5:-5])
    a, b = search_bounds(values, 1, fit=True, outliers=0.05)
    assert (a, b) == search_bounds(moved, 1, fit=True)
    assert 0.4 < (values > (a + b) / 2).mean() < 0.6


def test_nothing_is_moved_where_only_a_constant_would_be_left():
    values = np.array([0.0] * 98 + [-1.0, 2.0])
    assert search_bounds(values, 1, fit=True, outliers=0.05) == search_bounds(values, 1, fit=True)


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

"""The vector header, compiled for this machine, AVX2 and baseline x86, against NumPy in float64."""
import ctypes
import math
import platform
import subprocess
from pathlib import Path

import numpy as np
import pytest

from ppsr2q.core import native_build
from ppsr2q.ops import native

DRIVER = Path(__file__).with_name("simd_driver.cpp")
TARGETS = {"native": None, "AVX2": "x86-64-v3", "baseline": "x86-64"}


def _runs_here(instructions):
    """Whether this processor can execute a target's instructions."""
    if instructions != "AVX2":
        return True
    with open("/proc/cpuinfo") as file:
        return " avx2 " in file.read()


class Driver:
    """Calls the functions of simd_driver.cpp on NumPy arrays."""

    def __init__(self, path):
        self.library = ctypes.CDLL(str(path))
        self.lanes = self.library.lanes()

    def call(self, name, *arguments):
        converted = [a.ctypes.data_as(ctypes.c_void_p) if isinstance(a, np.ndarray) else a for a in arguments]
        return getattr(self.library, name)(*converted)

    def apply(self, name, x):
        x = np.ascontiguousarray(x, "float32")
        y = np.empty_like(x)
        self.call(f"apply_{name}", x, y, ctypes.c_long(x.size))
        return y


@pytest.fixture(scope="module", params=list(TARGETS))
def driver(request, tmp_path_factory):
    march = TARGETS[request.param]
    if march is not None and platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip("an x86 target on another processor")
    if not _runs_here(request.param):
        pytest.skip(f"this processor has no {request.param}")
    try:
        compiler = native_build.find_compiler()
    except native_build.KernelsUnavailable as error:
        pytest.skip(str(error))
    output = tmp_path_factory.mktemp("simd") / "driver.so"
    target = native.native_target() if march is None else [f"-march={march}"]
    subprocess.run([compiler, *native_build.OPTIMIZATION, "-fvisibility=default", "-Wall", "-Wextra", "-Werror",
                    *target, f"-I{native.SOURCES}", "-shared", str(DRIVER), "-o", str(output)], check=True)
    return Driver(output)


def normal_cdf(x):
    return 0.5 * np.vectorize(math.erfc)(-x / math.sqrt(2))


GRID = np.linspace(-30, 30, 1 << 14).astype("float32").astype("float64")


def test_exp(driver):
    x = np.linspace(-87, 88, 1 << 16).astype("float32")
    expected = np.exp(x.astype("float64"))
    assert np.max(np.abs(driver.apply("exp", x) - expected) / np.spacing(expected.astype("float32"))) < 2
    np.testing.assert_array_equal(driver.apply("exp", [0, -0.0, -1e4, -np.inf, np.inf, 1e4, 200, 90] * 2),
                                  [1, 1, 0, 0, np.inf, np.inf, np.inf, np.inf] * 2)


@pytest.mark.parametrize("name, expected", [
    ("sigmoid", 1 / (1 + np.exp(-GRID))), ("softplus", np.logaddexp(0, GRID)),
    ("softplus_derivative", 1 / (1 + np.exp(-GRID)))])
def test_relative_error(driver, name, expected):
    np.testing.assert_allclose(driver.apply(name, GRID), expected, rtol=5e-7)


@pytest.mark.parametrize("name, expected", [
    ("gelu", GRID * normal_cdf(GRID)),
    ("gelu_derivative", normal_cdf(GRID) + GRID * np.exp(-GRID**2 / 2) / math.sqrt(2 * math.pi))])
def test_gelu(driver, name, expected):
    error = np.abs(driver.apply(name, GRID) - expected)
    assert error[np.abs(GRID) < 4].max() < 5e-7 and np.max(error / np.maximum(np.abs(expected), 1)) < 5e-7


@pytest.mark.parametrize("name", ["exp", "sigmoid", "softplus", "softplus_derivative", "gelu",
                                  "gelu_derivative"])
def test_nan_survives(driver, name):
    x = np.zeros(16, "float32")
    x[3] = np.nan
    np.testing.assert_array_equal(np.isnan(driver.apply(name, x)), np.isnan(x))


def test_rounding_is_half_to_even(driver):
    x = np.arange(-1000, 1000, 0.25)
    np.testing.assert_array_equal(driver.apply("round", x), np.round(x))


def test_reductions(driver):
    x = np.random.default_rng(0).standard_normal((driver.lanes, driver.lanes)).astype("float32")
    totals, maxima, each = (np.empty(driver.lanes, "float32") for _ in range(3))
    assert driver.call("reduce", x, totals, maxima, ctypes.c_long(x.size)) == 1
    np.testing.assert_allclose(totals, x.sum(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(maxima, x.max(1))
    driver.call("sum_each", x, each)
    np.testing.assert_allclose(each, x.sum(1), rtol=1e-5, atol=1e-6)
    for value in (np.nan, np.inf, -np.inf):
        x[-1, 1] = value
        assert driver.call("reduce", x, totals, maxima, ctypes.c_long(x.size)) == 0


def test_partial_vectors_touch_nothing_else(driver):
    x = np.arange(1, driver.lanes + 1, dtype="float32")
    for count in range(driver.lanes + 1):
        y = np.zeros_like(x)
        driver.call("copy_partial", x, y, count)
        np.testing.assert_array_equal(y, np.where(np.arange(driver.lanes) < count, x, 0))


@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_equal_those_of_a_true_division(driver, bits):
    """The kernels multiply by 1/s and correct; not one code may differ, exact ties included."""
    for bounds in ((-0.731, 1.317), (-1.0, 1.0), (0.0, 0.1), (1e-4, 37.0)):
        bounds = np.array(bounds, "float32")
        step = (bounds[1] - bounds[0]) / np.float32(2**bits - 1)
        x = np.random.default_rng(bits).uniform(bounds[0] - 0.1, bounds[1] + 0.1, 1 << 16).astype("float32")
        x[:1024] = bounds[0] + (np.arange(1024) % 2**bits + np.float32(0.5)) * step
        y = np.empty_like(x)
        driver.call("apply_quantizer", x, y, ctypes.c_long(x.size), bounds, bits)
        codes = np.round((np.clip(x, *bounds) - bounds[0]) / step)
        np.testing.assert_array_equal(np.round((y - bounds[0]) / step), codes)
        np.testing.assert_allclose(y, codes * step + bounds[0], atol=2e-7 * np.abs(bounds).max())


def test_gradients_of_the_hand_case(driver):
    """Eq. 8 by hand: two bits, bounds (-1, 1), upstream gradient 1."""
    x, grad, grad_x = (np.zeros(16, "float32") for _ in range(3))
    x[:5], grad[:5], bounds = [-2, -0.9, -0.2, 0.3, 1.7], 1, np.array([-1, 1], "float32")
    grad_bounds = np.empty(2, "float32")
    driver.call("apply_quantizer_backward", x, grad, grad_x, ctypes.c_long(16), bounds, 2, grad_bounds)
    np.testing.assert_array_equal(grad_x[:5], [0, 1, 1, 1, 0])
    np.testing.assert_allclose(grad_bounds, [1.1, 0.9], rtol=1e-6)


def test_bounds_themselves_count_as_inside_and_as_clipped(driver):
    x, grad, grad_x = (np.zeros(16, "float32") for _ in range(3))
    x[:2], grad[:2], bounds = [-1, 1], [2, 3], np.array([-1, 1], "float32")
    grad_bounds = np.empty(2, "float32")
    driver.call("apply_quantizer_backward", x, grad, grad_x, ctypes.c_long(16), bounds, 4, grad_bounds)
    np.testing.assert_array_equal(grad_x[:2], [2, 3])
    np.testing.assert_allclose(grad_bounds, [2, 3], rtol=1e-6)

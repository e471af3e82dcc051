"""Eq. 1 and Eq. 8: the hand case of the specification, finite differences, kernel against reference."""
import importlib

import numpy as np
import paddle
import pytest

from ppsr2q.ops import dispatch, fake_quantize
from tests.ops import comparison
from tests.ops.comparison import trainable

POLICIES = ["reference", {"fake_quantize"}]


def bounds(lower, upper):
    return paddle.to_tensor([lower, upper], dtype="float32", stop_gradient=False)


@pytest.mark.parametrize("policy", POLICIES)
def test_hand_case(policy):
    comparison.require_kernels()
    x = paddle.to_tensor([-2, -0.9, -0.2, 0.3, 1.7], dtype="float32", stop_gradient=False)
    limits = bounds(-1.0, 1.0)
    with dispatch.use(policy):
        y = fake_quantize(x, limits, 2)
        y.sum().backward()
    np.testing.assert_allclose(y.numpy(), [-1, -1, -1 / 3, 1 / 3, 1], atol=1e-6)
    np.testing.assert_array_equal(x.grad.numpy(), [0, 1, 1, 1, 0])
    np.testing.assert_allclose(limits.grad.numpy(), [1.10, 0.90], atol=1e-6)


@pytest.mark.parametrize("policy", POLICIES)
def test_gradients_at_the_bounds_and_at_ties(policy):
    comparison.require_kernels()
    x = paddle.to_tensor([-1.0, 1.0, -0.5, 0.5], dtype="float32", stop_gradient=False)
    limits = bounds(-1.0, 2.0)  # s = 1: codes 0, 2, 0.5, 1.5
    with dispatch.use(policy):
        y = fake_quantize(x, limits, 2)
        y.sum().backward()
    np.testing.assert_array_equal(y.numpy(), [-1, 1, -1, 1])  # halves go to the even code
    np.testing.assert_array_equal(x.grad.numpy(), [1, 1, 1, 1])
    np.testing.assert_allclose(limits.grad.numpy(), [1.0, 0.0], atol=1e-6)  # 1 + 1/6 - 1/6, 1/6 - 1/6


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5, 7), (2, 70, 48), (100_003,)])
def test_kernel_equals_reference(bits, shape):
    x, limits = trainable(*shape), bounds(-0.9, 1.7)
    comparison.assert_kernel_equals_reference("fake_quantize", lambda: fake_quantize(x, limits, bits),
                                              {"x": x, "bounds": limits}, flips=True)


def test_kernel_takes_strided_input_and_skips_unwanted_gradients():
    wide, limits = trainable(20, 30), bounds(-0.9, 1.7)
    comparison.assert_kernel_equals_reference(
        "fake_quantize", lambda: fake_quantize(wide.t()[3:17], limits, 4), {"wide": wide, "bounds": limits})
    wide.stop_gradient = True
    comparison.assert_kernel_equals_reference("fake_quantize", lambda: fake_quantize(wide, limits, 4),
                                              {"wide": wide, "bounds": limits})


def test_threads_do_not_change_a_bit():
    x, limits = trainable(8, 1024, 48), bounds(-0.9, 1.7)
    comparison.assert_same_bits_with_any_threads("fake_quantize", lambda: fake_quantize(x, limits, 4),
                                                 {"x": x, "bounds": limits})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_named(value):
    comparison.require_kernels()
    values = np.zeros((3, 11), "float32")
    values[2, 10] = value
    with dispatch.use({"fake_quantize"}):
        with pytest.raises(ValueError, match=r"fake_quantize: x of shape \[3, 11\] contains NaN or infinite"):
            fake_quantize(paddle.to_tensor(values), bounds(-1.0, 1.0), 4)


@pytest.mark.parametrize("lower, upper", [(1.0, -1.0), (1.0, 1.0), (np.nan, 1.0), (-np.inf, 1.0)])
def test_bad_bounds_are_named(lower, upper):
    comparison.require_kernels()
    with dispatch.use({"fake_quantize"}):
        with pytest.raises(ValueError, match="fake_quantize: quantizer 'bounds' needs finite bounds"):
            fake_quantize(trainable(3), bounds(lower, upper), 4)


@pytest.mark.parametrize("policy", ["auto", "reference"])
def test_what_is_no_quantizer_is_named(policy):
    with dispatch.use(policy):
        for bits in (0, 9, 33):
            with pytest.raises(ValueError, match=f"expected 1 to 8 bits and bounds of shape .2., got {bits}"):
                fake_quantize(trainable(3), bounds(-1.0, 1.0), bits)
        with pytest.raises(ValueError, match=r"got 4 and \[1\]"):
            fake_quantize(trainable(3), trainable(1), 4)


def test_empty_and_integer_tensors_are_named():
    comparison.require_kernels()
    with dispatch.use({"fake_quantize"}):
        with pytest.raises(ValueError, match=r"fake_quantize: x is empty, shape \[0, 3\]"):
            fake_quantize(paddle.zeros([0, 3]), bounds(-1.0, 1.0), 4)
        with pytest.raises(ValueError, match=r"fake_quantize: x of shape \[3\] must be floating point"):
            fake_quantize(paddle.zeros([3], "int32"), bounds(-1.0, 1.0), 4)


def test_halves_round_to_even_on_every_version_of_paddle(monkeypatch):
    module = importlib.import_module("ppsr2q.ops.fake_quantize")  # the package exports the function of that name
    x = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5, 2.4999, 2.6, 254.5], np.float32)
    for native in (module._ROUNDS_HALF_TO_EVEN, False):
        monkeypatch.setattr(module, "_ROUNDS_HALF_TO_EVEN", native)
        np.testing.assert_array_equal(module.round_half_even(paddle.to_tensor(x)).numpy(), np.round(x))

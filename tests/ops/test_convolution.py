"""Convolution of tokens: by hand, kernel against the reference (Paddle's own convolution)."""
import numpy as np
import paddle
import pytest
from paddle import nn

from ppsr2q.ops import convolution, dispatch
from tests.ops import comparison
from tests.ops.comparison import point, trainable

POLICIES = ["reference", {"convolution"}]


def layer(inputs, outputs, kernel=3, bits=None, bias=True):
    conv = nn.Conv2D(inputs, outputs, kernel, padding=kernel // 2, bias_attr=None if bias else False)
    conv.weight.set_value(trainable(*conv.weight.shape, seed=5, scale=0.3))
    conv.input_quantizer = point(bits, -1.1, 1.3)
    return conv


@pytest.mark.parametrize("policy", POLICIES)
def test_by_hand(policy):
    comparison.require_kernels()
    conv = layer(1, 2)
    taps = np.zeros((2, 1, 3, 3), "float32")
    taps[0, 0, 1, 0] = 1  # the left neighbour
    taps[1, 0, 2, 1] = 2  # twice the one below
    conv.weight.set_value(taps)
    conv.bias.set_value(np.array([0.5, 0.0], "float32"))
    x = paddle.to_tensor(np.arange(1, 7, dtype="float32").reshape(1, 6, 1))  # 1 2 3 / 4 5 6
    residual = paddle.full([1, 6, 2], 10.0)
    with dispatch.use(policy), paddle.no_grad():
        y = convolution(x, conv, (2, 3), residual).numpy()
    np.testing.assert_allclose(y[0, :, 0], [10.5, 11.5, 12.5, 10.5, 14.5, 15.5])
    np.testing.assert_allclose(y[0, :, 1], [18, 20, 22, 10, 10, 10])


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("batch, size, inputs, outputs, kernel", [
    (2, (16, 32), 48, 48, 3), (1, (17, 35), 48, 12, 3), (3, (5, 40), 7, 19, 3), (1, (1, 1), 3, 4, 3), (2, (33, 6), 3, 8, 5),
    (1, (9, 9), 60, 60, 1)])
def test_kernel_equals_reference(batch, size, inputs, outputs, kernel, bits):
    conv = layer(inputs, outputs, kernel, bits)
    x, residual = trainable(batch, size[0] * size[1], inputs), trainable(batch, size[0] * size[1], outputs, seed=1)
    watched = {"x": x, "residual": residual, "weight": conv.weight, "bias": conv.bias}
    if bits:
        watched["bounds"] = conv.input_quantizer.bounds
    comparison.assert_kernel_equals_reference("convolution", lambda: convolution(x, conv, size, residual), watched,
                                              flips=bool(bits))


def test_strided_input_frozen_weight_and_no_bias():
    conv, image = layer(6, 6, bias=False), trainable(2, 6, 8, 9)
    conv.weight.stop_gradient = True
    comparison.assert_kernel_equals_reference(
        "convolution", lambda: convolution(image.flatten(2).transpose([0, 2, 1]), conv, (8, 9)), {"image": image})


def test_threads_do_not_change_a_bit():
    conv, x = layer(48, 48, bits=4), trainable(4, 40 * 40, 48)
    comparison.assert_same_bits_with_any_threads(
        "convolution", lambda: convolution(x, conv, (40, 40)),
        {"x": x, "weight": conv.weight, "bias": conv.bias, "bounds": conv.input_quantizer.bounds})


def test_bad_input_is_named():
    comparison.require_kernels()
    conv, x = layer(4, 4), trainable(1, 6, 4)
    with dispatch.use({"convolution"}), paddle.no_grad():
        with pytest.raises(ValueError, match=r"convolution: x must have shape \[B, 9, 4\], got \[1, 6, 4\]"):
            convolution(x, conv, (3, 3))
        with pytest.raises(ValueError, match=r"residual must have shape \[1, 6, 4\]"):
            convolution(x, conv, (2, 3), trainable(1, 6, 5))
        x[0, 5, 3] = float("inf")
        with pytest.raises(ValueError, match=r"convolution: x of shape \[1, 6, 4\] contains NaN or infinite"):
            convolution(x, conv, (2, 3))

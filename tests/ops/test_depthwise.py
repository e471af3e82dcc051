"""Gated mixing and positional gate: references against loops in float64, kernels against the references."""
import math

import numpy as np
import paddle
import pytest
from paddle import nn

from ppsr2q.ops import dispatch, gated_mixing, positional_gate
from tests.ops import comparison
from tests.ops.comparison import point, trainable

OPERATORS = ["gated_mixing", "positional_gate"]

# batch, (H, W), channels, kernel: the networks' own, images below and above a tile, odd channel counts
CASES = [(2, (16, 16), 24, 5), (1, (18, 34), 24, 5), (2, (17, 9), 48, 3), (1, (5, 3), 60, 5),
         (1, (1, 1), 7, 3), (1, (20, 40), 10, 7), (2, (4, 33), 3, 1)]


def arguments(operator, batch, size, channels, kernel, bits=None, bias=True):
    """Inputs (name -> tensor, with parameters and bounds) and a function that calls the operator on them."""
    gated = operator == "gated_mixing"
    x = trainable(batch, size[0] * size[1], channels * (2 if gated else 1), seed=1)
    conv = nn.Conv2D(channels, channels, kernel, padding=kernel // 2, groups=channels,
                     bias_attr=None if bias else False)
    conv.weight.set_value(trainable(*conv.weight.shape, seed=2, scale=1 / kernel))
    inputs = {"x": x, "weight": conv.weight}
    if bias:
        conv.bias.set_value(trainable(channels, seed=3))
        inputs["bias"] = conv.bias
    if bits is not None:
        conv.input_quantizer = point(bits, -1.1, 1.7)
        inputs["bounds"] = conv.input_quantizer.bounds
    if not gated:
        return inputs, lambda: positional_gate(x, conv, size)
    norm = nn.LayerNorm(channels)
    norm.weight.set_value(trainable(channels, seed=4) * 0.3 + 1)
    norm.bias.set_value(trainable(channels, seed=5) * 0.3)
    inputs.update({"norm weight": norm.weight, "norm bias": norm.bias})
    return inputs, lambda: gated_mixing(x, norm, conv, size)


def convolve(image, weight, bias):
    """Depth-wise convolution (B, H, W, C) with zeros around it, tap by tap."""
    kernel = weight.shape[-1]
    half = kernel // 2
    _, height, width, _ = image.shape
    image = np.pad(image, ((0, 0), (half, half), (half, half), (0, 0)))
    taps = ((y, x) for y in range(kernel) for x in range(kernel))
    return bias + sum(image[:, y:y + height, x:x + width] * weight[:, 0, y, x] for y, x in taps)


def definition(operator, inputs, size, quantize=lambda x: x):
    """Both operators in float64."""
    values = {name: x.numpy().astype("float64") for name, x in inputs.items()}
    x = values["x"].reshape(-1, *size, values["x"].shape[-1])
    if operator == "positional_gate":
        y = x / (1 + np.exp(-convolve(quantize(x), values["weight"], values["bias"])))
    else:
        x = x * np.vectorize(lambda z: 0.5 * math.erfc(-z / math.sqrt(2)))(x)
        value, gate = np.split(x, 2, axis=-1)
        gate = (gate - gate.mean(-1, keepdims=True)) / np.sqrt(gate.var(-1, keepdims=True) + 1e-5)
        gate = gate * values["norm weight"] + values["norm bias"]
        y = value * convolve(quantize(gate), values["weight"], values["bias"])
    return y.reshape(len(y), size[0] * size[1], -1)


@pytest.mark.parametrize("policy", ["reference", "kernel"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_equals_the_definition(operator, policy):
    comparison.require_kernels()
    inputs, function = arguments(operator, 2, (7, 9), 5, 3)
    with dispatch.use({operator} if policy == "kernel" else policy), paddle.no_grad():
        y = function()
    assert comparison.relative_error(y.numpy(), definition(operator, inputs, (7, 9))) < 1e-5


@pytest.mark.parametrize("operator", OPERATORS)
def test_padding_is_zero_after_the_quantizer(operator):
    comparison.require_kernels()
    inputs, function = arguments(operator, 1, (4, 4), 3, 3, bits=2)
    step = np.float32(2.8) / 3

    def quantize(x):
        return np.round((np.clip(x, -1.1, 1.7) + 1.1) / step) * step - 1.1

    assert np.abs(quantize(np.zeros(1))).min() > 0.1  # zero is no level, so the order would show
    with dispatch.use({operator}), paddle.no_grad():
        y = function()
    assert comparison.relative_error(y.numpy(), definition(operator, inputs, (4, 4), quantize)) < 1e-5


@pytest.mark.parametrize("bits", [None, 1, 2, 4, 8])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("operator", OPERATORS)
def test_kernel_equals_reference(operator, case, bits):
    inputs, function = arguments(operator, *case, bits=bits, bias=bits != 2)
    comparison.assert_kernel_equals_reference(operator, function, inputs, flips=bits is not None)


@pytest.mark.parametrize("operator", OPERATORS)
def test_gradients_equal_finite_differences(operator):
    comparison.require_kernels()
    inputs, function = arguments(operator, 1, (5, 4), 3, 3)
    weight = np.random.default_rng(0).standard_normal((1, 20, 3))
    with dispatch.use({operator}):
        (function() * paddle.to_tensor(weight.astype("float32"))).sum().backward()
    rng = np.random.default_rng(1)
    for name, tensor in inputs.items():
        gradient = tensor.grad.numpy()
        for _ in range(3):
            index = tuple(rng.integers(0, n) for n in tensor.shape)
            losses = []
            for change in (1e-5, -1e-5):
                moved = tensor.numpy().astype("float64")
                moved[index] += change
                values = {**inputs, name: paddle.to_tensor(moved)}
                losses.append((definition(operator, values, (5, 4)) * weight).sum())
            expected = (losses[0] - losses[1]) / 2e-5
            assert abs(gradient[index] - expected) <= 1e-4 * np.abs(gradient).max(), name


@pytest.mark.parametrize("operator", OPERATORS)
def test_same_bits_with_any_threads(operator):
    inputs, function = arguments(operator, 1, (40, 70), 24, 5, bits=4)
    comparison.assert_same_bits_with_any_threads(operator, function, inputs)


@pytest.mark.parametrize("operator", OPERATORS)
def test_only_what_is_wanted_gets_a_gradient(operator):
    inputs, function = arguments(operator, 1, (8, 8), 12, 3, bits=4)
    for name in ("weight", "bias", "norm bias"):
        if name in inputs:
            inputs[name].stop_gradient = True
    comparison.assert_kernel_equals_reference(operator, function, inputs, flips=True)
    assert inputs["weight"].grad is None and inputs["x"].grad is not None


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("name", ["x", "weight", "bias"])
def test_what_is_not_finite_is_named(operator, name):
    comparison.require_kernels()
    inputs, function = arguments(operator, 1, (8, 8), 12, 3, bits=4)
    broken = inputs[name].numpy()
    broken.reshape(-1)[5] = np.nan
    inputs[name].set_value(broken)
    with dispatch.use({operator}), pytest.raises(ValueError, match=f"{operator}: {name} of shape"):
        function()


@pytest.mark.parametrize("operator", OPERATORS)
def test_bad_bounds_are_named(operator):
    comparison.require_kernels()
    inputs, function = arguments(operator, 1, (8, 8), 12, 3, bits=4)
    inputs["bounds"].set_value(np.array([1.0, -1.0], "float32"))
    with dispatch.use({operator}), pytest.raises(ValueError, match="needs finite bounds"):
        function()


def test_shapes_that_do_not_fit_are_named():
    comparison.require_kernels()
    x = trainable(1, 64, 12)
    expected = r"x must have shape \[B, 63, 12\]"
    with dispatch.use({"positional_gate"}), pytest.raises(ValueError, match=expected):
        positional_gate(x, nn.Conv2D(12, 12, 3, padding=1, groups=12), (7, 9))
    with dispatch.use({"positional_gate"}), pytest.raises(ValueError, match="depth-wise"):
        positional_gate(x, nn.Conv2D(12, 12, 3, padding=1), (8, 8))

"""Linear layers alone and behind a LayerNorm: reference against numpy, kernel against the reference."""
import platform

import numpy as np
import paddle
import pytest
from paddle import nn

from ppsr2q.ops import dispatch, linear, norm_linear
from tests.ops import comparison
from tests.ops.comparison import point, trainable


class QuantizedLinear(nn.Layer):
    """What ``quant.QuantLinear`` looks like to an operator, with a gate that reads the token mean."""

    def __init__(self, inputs, outputs, bits=None, gated=False, per_sample=False, bias=True):
        super().__init__()
        self.weight = trainable(inputs, outputs, seed=outputs, scale=inputs**-0.5)
        self.bias = trainable(outputs, seed=7) if bias else None
        self.input_quantizer = point(bits, -1.1, 1.3)
        self.needs_token_mean = gated
        self.per_sample = self.has_weight_per_sample = per_sample

    def quantized_weight(self, token_mean):
        if not self.needs_token_mean:
            return self.weight
        gate = token_mean if self.per_sample else token_mean.mean(0, keepdim=True)
        weight = self.weight * (1.0 + gate.unsqueeze(-1))
        return weight if self.per_sample else weight[0]

    def tensors(self, name):
        found = {f"{name}.weight": self.weight}
        if self.bias is not None:
            found[f"{name}.bias"] = self.bias
        if self.input_quantizer.bits:
            found[f"{name}.bounds"] = self.input_quantizer.bounds
        return found


def layer_norm(channels):
    norm = nn.LayerNorm(channels)
    norm.weight.set_value(1 + 0.1 * np.random.default_rng(3).standard_normal(channels).astype("float32"))
    norm.bias.set_value(0.1 * np.random.default_rng(4).standard_normal(channels).astype("float32"))
    return norm


@pytest.mark.parametrize("policy", ["reference", {"linear", "norm_linear"}])
def test_linear_equals_numpy(policy):
    comparison.require_kernels()
    x, residual = trainable(2, 5, 6), trainable(2, 5, 7, seed=1)
    layer, norm, scale = QuantizedLinear(6, 7), layer_norm(6), trainable(7, seed=9)
    values = x.numpy().astype("float64")
    centred = values - values.mean(-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    normed = normed * norm.weight.numpy() + norm.bias.numpy()
    with dispatch.use(policy), paddle.no_grad():
        plain, (behind_norm,) = linear(x, layer, residual, (residual, scale)), norm_linear(x, norm, [layer])
    weight, bias = layer.weight.numpy(), layer.bias.numpy()
    np.testing.assert_allclose(plain.numpy(), values @ weight + bias + residual.numpy() * (1 + scale.numpy()), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(behind_norm.numpy(), normed @ weight + bias, rtol=1e-5, atol=1e-5)


SHAPES = [((8, 70, 48), 48), ((1, 33, 24), 48), ((2, 300, 48), 16), ((1, 1, 16), 64), ((3, 50, 60), 120),
          ((2, 17, 7), 19), ((40, 5), 3)]


@pytest.mark.parametrize("bits", [None, 1, 4, 8])
@pytest.mark.parametrize("shape, outputs", SHAPES)
def test_linear_kernel_equals_reference(shape, outputs, bits):
    layer = QuantizedLinear(shape[-1], outputs, bits)
    inputs = {"x": trainable(*shape), "residual": trainable(*shape[:-1], outputs, seed=1),
              "skip": trainable(*shape[:-1], outputs, seed=2), "skip_scale": trainable(outputs, seed=3)}
    comparison.assert_kernel_equals_reference(
        "linear", lambda: linear(inputs["x"], layer, inputs["residual"], (inputs["skip"], inputs["skip_scale"])),
        dict(inputs, **layer.tensors("layer")), flips=bool(bits))


@pytest.mark.parametrize("wanted", [(), ("x",), ("scale",)])
def test_norm_linear_kernel_skips_unwanted_gradients(wanted):
    layer, norm = QuantizedLinear(12, 9, 4), layer_norm(12)
    inputs = {"x": trainable(2, 40, 12), "scale": norm.weight, "shift": norm.bias}
    for name, tensor in inputs.items():
        tensor.stop_gradient = name not in wanted
    comparison.assert_kernel_equals_reference(
        "norm_linear", lambda: norm_linear(inputs["x"], norm, [layer]), {**inputs, **layer.tensors("layer")}, flips=True)


@pytest.mark.parametrize("frozen", ["skip", "skip_scale"])
def test_linear_kernel_skips_unwanted_gradients_of_addends(frozen):
    layer, inputs = QuantizedLinear(12, 9), {"skip": trainable(2, 5, 9), "skip_scale": trainable(9)}
    inputs[frozen].stop_gradient = True
    x = trainable(2, 5, 12)
    comparison.assert_kernel_equals_reference(
        "linear", lambda: linear(x, layer, skip=(inputs["skip"], inputs["skip_scale"])), {"x": x, **inputs})


@pytest.mark.parametrize("bits", [(None,), (4,), (4, 3, 2), (None, 8)])
@pytest.mark.parametrize("shape", [(2, 300, 48), (1, 33, 60), (3, 20, 7)])
def test_norm_linear_kernel_equals_reference(shape, bits):
    layers = [QuantizedLinear(shape[-1], 16 + 11 * i, n, bias=i != 1) for i, n in enumerate(bits)]
    x, norm = trainable(*shape, scale=3.0), layer_norm(shape[-1])
    watched = {"x": x, "scale": norm.weight, "shift": norm.bias}
    for i, layer in enumerate(layers):
        watched.update(layer.tensors(f"layer {i}"))
    comparison.assert_kernel_equals_reference("norm_linear", lambda: norm_linear(x, norm, layers), watched,
                                              flips=any(bits))


def test_gates_read_the_mean_over_tokens():
    layers = [QuantizedLinear(20, 9, gated=True), QuantizedLinear(20, 20)]
    x, norm = trainable(3, 600, 20), layer_norm(20)
    watched = dict({"x": x}, **layers[0].tensors("gated"), **layers[1].tensors("plain"))
    comparison.assert_kernel_equals_reference("norm_linear", lambda: norm_linear(x, norm, layers), watched)
    comparison.assert_kernel_equals_reference("linear", lambda: linear(x, layers[0]),
                                              dict({"x": x}, **layers[0].tensors("gated")))


@pytest.mark.parametrize("bias", [True, False])
def test_one_weight_a_sample_equals_numpy_and_has_no_kernel(bias):
    layer = QuantizedLinear(20, 9, gated=True, per_sample=True, bias=bias)
    x = trainable(3, 7, 20)
    values = x.numpy().astype("float64")
    weights = layer.weight.numpy() * (1 + values.mean(axis=1))[:, :, None]
    expected = np.einsum("bti,bio->bto", values, weights) + (layer.bias.numpy() if bias else 0)
    np.testing.assert_allclose(linear(x, layer).numpy(), expected, rtol=1e-5, atol=1e-5)
    found, = norm_linear(x, layer_norm(20), [layer])
    assert found.shape == [3, 7, 9]
    with dispatch.use({"linear"}), pytest.raises(ValueError, match="asks for the kernel, but there is one weight a sample"):
        linear(x, layer)


def test_a_norm_without_parameters_has_no_kernel():
    x = trainable(2, 5, 6)
    values = x.numpy().astype("float64")
    centred = values - values.mean(-1, keepdims=True)
    layer = QuantizedLinear(6, 7)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) @ layer.weight.numpy() + layer.bias.numpy()
    norm = nn.LayerNorm(6, weight_attr=False, bias_attr=False)
    np.testing.assert_allclose(norm_linear(x, norm, [layer])[0].numpy(), expected, rtol=1e-5, atol=1e-5)
    with dispatch.use({"norm_linear"}), pytest.raises(ValueError, match="the norm has no scale or no shift"):
        norm_linear(x, norm, [layer])


def test_parameters_of_another_type_are_refused():
    layer = nn.Linear(4, 3)
    layer.to(dtype="float16")
    comparison.require_kernels()
    with pytest.raises(ValueError, match=r"float32, got .*float16 of shape \[4, 3\]"):
        linear(paddle.ones([1, 4]), layer)


def test_the_gradient_of_a_result_is_not_that_of_its_residual():
    """Paddle adds gradients in place: the residual's further uses must not change what a result's gradient is."""
    start, layer = trainable(2, 5, 6), QuantizedLinear(6, 6)

    def gradients():
        residual = start * 1.0
        y = linear(trainable(2, 5, 6, seed=1), layer, residual)
        y.retain_grads(), residual.retain_grads()
        (y.sum() + (residual * 3.0).sum()).backward()
        return y.grad.numpy(), residual.grad.numpy()
    for found, expected in zip(gradients(), (1.0, 4.0)):
        np.testing.assert_array_equal(found, np.full([2, 5, 6], expected, "float32"))


def test_1x1_convolutions_are_linear_layers():
    conv = nn.Conv2D(12, 20, 1)
    x = trainable(2, 9, 12)
    comparison.assert_kernel_equals_reference("linear", lambda: linear(x, conv),
                                              {"x": x, "weight": conv.weight, "bias": conv.bias})


def test_kernel_takes_strided_input_and_skips_unwanted_gradients():
    layer = QuantizedLinear(48, 48, 4)
    layer.weight.stop_gradient = True
    wide = trainable(2, 30, 60)
    comparison.assert_kernel_equals_reference(
        "linear", lambda: linear(wide[:, :, 5:53], layer), {"wide": wide, "bias": layer.bias}, flips=True)


def test_threads_do_not_change_a_bit():
    layers = [QuantizedLinear(48, 48, 4), QuantizedLinear(48, 24, 4)]
    x, norm = trainable(1, 2000, 48), layer_norm(48)
    watched = dict({"x": x, "scale": norm.weight}, **layers[0].tensors("a"), **layers[1].tensors("b"))
    comparison.assert_same_bits_with_any_threads("norm_linear", lambda: norm_linear(x, norm, layers), watched)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("bits", [None, 4])
def test_bad_input_is_named(bits, value):
    comparison.require_kernels()
    layer, norm = QuantizedLinear(48, 24, bits), layer_norm(48)
    x, residual = trainable(2, 40, 48), trainable(2, 40, 24)
    damaged = x.numpy()
    damaged[1, 39, 47] = value
    with dispatch.use({"linear", "norm_linear"}):
        with pytest.raises(ValueError, match=r"^linear: x of shape \[2, 40, 48\] contains NaN or inf"):
            linear(paddle.to_tensor(damaged), layer)
        with pytest.raises(ValueError, match=r"^norm_linear: x of shape \[2, 40, 48\] contains NaN or inf"):
            norm_linear(paddle.to_tensor(damaged), norm, [layer])
        with pytest.raises(ValueError, match=r"^linear: residual must have shape \[2, 40, 24\], got"):
            linear(x, layer, residual[:, :, 1:])
        with pytest.raises(ValueError, match=r"^linear: scale of skip must have shape \[24\], got \[23\]"):
            linear(x, layer, skip=(residual, trainable(23)))
        with pytest.raises(ValueError, match=r"^linear: x of shape \[2, 40, 47\] does not fit"):
            linear(x[:, :, 1:], layer)
        with pytest.raises(ValueError, match=r"^norm_linear: the norm is over \[24\], x has 48 channels"):
            norm_linear(x, layer_norm(24), [layer])
        with pytest.raises(ValueError, match="^linear: x is empty"):
            linear(paddle.zeros([0, 40, 48]), layer)
        with pytest.raises(ValueError, match="^linear: x .* must be floating point"):
            linear(x.astype("int32"), layer)


def test_reversed_bounds_are_named():
    comparison.require_kernels()
    layer = QuantizedLinear(48, 24)
    layer.input_quantizer = point(4, 1.0, 1.0)
    with dispatch.use({"norm_linear"}):
        with pytest.raises(ValueError, match=r"norm_linear: quantizer 'input of layer 1' .*\[1.0, 1.0\]"):
            norm_linear(trainable(2, 40, 48), layer_norm(48), [QuantizedLinear(48, 24, 4), layer])


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64", "aarch64", "arm64"), reason="flushes nothing here")
def test_denormals_are_zeros_inside_kernels_only():
    comparison.require_kernels()
    layer = QuantizedLinear(4, 4, bias=False)
    layer.weight.set_value(np.eye(4, dtype="float32") * np.float32(1e-10))
    x = np.array([1e-27, 1e-29, 1e-31, -1e-30], "float32")  # times 1e-10: normal, then three denormals
    with dispatch.use({"linear"}), paddle.no_grad():
        y = linear(paddle.to_tensor(x).reshape([1, 1, 4]), layer).numpy().ravel()
    np.testing.assert_allclose(y, [1e-37, 0, 0, 0], rtol=1e-6, atol=0)
    assert (x * np.float32(1e-10) != 0).all()

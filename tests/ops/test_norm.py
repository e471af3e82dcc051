"""LayerNorm's gradient of x against numpy, frozen scale and all."""
import numpy as np
import paddle
import pytest
from paddle import nn

from ppsr2q.ops import gated_mixing, layer_norm, norm_linear
from tests.ops import comparison
from tests.ops.comparison import trainable


@pytest.mark.parametrize("shift_frozen", [False, True])
@pytest.mark.parametrize("scale_frozen", [False, True])
def test_gradients_equal_numpy(scale_frozen, shift_frozen):
    x, norm = trainable(2, 9, 12), nn.LayerNorm(12)
    scale, weights = np.arange(12.0), np.random.default_rng(1).standard_normal((2, 9, 12))
    norm.weight.set_value(scale.astype("float32"))
    norm.weight.stop_gradient, norm.bias.stop_gradient = scale_frozen, shift_frozen
    y = layer_norm(x, norm)
    (y * paddle.to_tensor(weights.astype("float32"))).sum().backward()

    centred = x.numpy().astype("float64") - x.numpy().mean(-1, keepdims=True, dtype="float64")
    inverse = 1 / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    unit, grad = centred * inverse, weights * scale
    expected = inverse * (grad - grad.mean(-1, keepdims=True) - unit * (grad * unit).mean(-1, keepdims=True))
    np.testing.assert_allclose(y.numpy(), unit * scale, atol=1e-5)
    np.testing.assert_allclose(x.grad.numpy(), expected, atol=1e-4)
    for parameter, frozen, own in ((norm.weight, scale_frozen, weights * unit), (norm.bias, shift_frozen, weights)):
        assert (parameter.grad is None) == frozen
        if not frozen:
            np.testing.assert_allclose(parameter.grad.numpy(), own.sum((0, 1)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("operator", ["norm_linear", "gated_mixing"])
def test_references_of_frozen_networks_have_the_kernels_gradients(operator):
    norm, layer, conv = nn.LayerNorm(12), nn.Linear(12, 5), nn.Conv2D(12, 12, 5, padding=2, groups=12)
    norm.weight.set_value(np.arange(12, dtype="float32"))
    for parameter in (*norm.parameters(), *layer.parameters(), *conv.parameters()):
        parameter.stop_gradient = True
    x = trainable(2, 9, 12 if operator == "norm_linear" else 24)
    comparison.assert_kernel_equals_reference(
        operator, lambda: norm_linear(x, norm, [layer]) if operator == "norm_linear"
        else gated_mixing(x, norm, conv, (3, 3)), {"x": x})


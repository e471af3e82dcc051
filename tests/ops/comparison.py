"""Runs one operator by its kernel and by its reference and compares outputs and gradients."""
from __future__ import annotations

import numpy as np
import paddle
import pytest

from ppsr2q.ops import QuantPoint, dispatch, native

OUTPUT_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4


class FixedPoint(QuantPoint):
    """A quantizer with given bounds, as ``quant.FakeQuantizer`` looks to an operator."""

    def __init__(self, bits, lower, upper):
        super().__init__()
        self.bits = bits
        self.bounds = self.create_parameter([2])
        self.bounds.set_value(np.array([lower, upper], "float32"))

    def effective_bounds(self):
        return self.bounds

    def forward(self, x):
        from ppsr2q.ops import fake_quantize
        return fake_quantize(x, self.bounds, self.bits)


def point(bits, lower, upper):
    """A quantizer, or a plain point for bits = None."""
    return QuantPoint() if bits is None else FixedPoint(bits, lower, upper)


def trainable(*shape, seed=0, scale=1.0):
    """Normal float32 tensor that wants a gradient."""
    values = np.random.default_rng(seed).standard_normal(shape).astype("float32") * scale
    return paddle.to_tensor(values, stop_gradient=False)


def require_kernels():
    reason = native.why_unavailable()
    if reason is not None:
        pytest.skip(f"kernels are not available: {reason}")


def relative_error(found, expected):
    """Largest difference over the largest magnitude."""
    found, expected = np.asarray(found, "float64"), np.asarray(expected, "float64")
    assert found.shape == expected.shape
    return np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-12)


def run(function, inputs, policy):
    """Outputs of ``function()`` under a policy, and the gradients of the inputs for fixed random weights."""
    for tensor in inputs.values():
        tensor.clear_gradient()
    with dispatch.use(policy):
        outputs = function()
        outputs = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
        rng = np.random.default_rng(1)
        weights = [paddle.to_tensor(rng.standard_normal(y.shape).astype("float32")) for y in outputs]
        paddle.add_n([(y * w).sum() for y, w in zip(outputs, weights)]).backward()
    gradients = {name: None if t.grad is None else t.grad.numpy() for name, t in inputs.items()}
    return [y.numpy() for y in outputs], gradients


def assert_close(found, expected, tolerance, flips, name):
    """All elements within tolerance of the largest magnitude. With ``flips``, up to 1 in 1000 (at least one) may be a
    hundredth off: an activation so close to a rounding threshold that the order of a sum decides its code."""
    error = np.abs(found - expected) / max(np.abs(expected).max(), 1e-12)
    allowed = max(1, error.size // 1000) if flips else 0
    beyond = int((error > tolerance).sum())
    assert beyond <= allowed and error.max() <= max(tolerance, 1e-2), \
        f"{name}: {beyond} of {error.size} differ, at most by {error.max():.1e}"


def assert_kernel_equals_reference(operator, function, inputs, flips=False):
    """``function`` calls ``operator`` on ``inputs`` (name -> tensor): outputs to 1e-5, gradients to 1e-4."""
    require_kernels()
    outputs, gradients = run(function, inputs, {operator})
    expected_outputs, expected_gradients = run(function, inputs, "reference")
    for i, (found, expected) in enumerate(zip(outputs, expected_outputs)):
        assert_close(found, expected, OUTPUT_TOLERANCE, flips, f"output {i}")
    for name, expected in expected_gradients.items():
        found = gradients[name]
        assert (found is None) == (expected is None), name
        if expected is not None:
            assert_close(found, expected, GRADIENT_TOLERANCE, flips, f"gradient of {name}")


def assert_same_bits_with_any_threads(operator, function, inputs):
    """1 and 2 threads give identical outputs and gradients."""
    require_kernels()
    before = native.get_threads()
    results = []
    try:
        for threads in (1, 2):
            native.set_threads(threads)
            results.append(run(function, inputs, {operator}))
    finally:
        native.set_threads(before)
    (outputs, gradients), (other_outputs, other_gradients) = results
    for found, expected in zip(outputs, other_outputs):
        np.testing.assert_array_equal(found, expected)
    for name, expected in other_gradients.items():
        np.testing.assert_array_equal(gradients[name], expected, err_msg=name)

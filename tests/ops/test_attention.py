"""Window attention: reference against the definition in float64, kernel against the reference."""
import numpy as np
import paddle
import pytest

from ppsr2q.ops import QuantPoints, dispatch, window_attention
from tests.ops import comparison
from tests.ops.comparison import point, trainable

BOUNDS = {"q": (-0.5, 0.6), "k": (-2.0, 2.1), "v": (-1.5, 1.4), "map": (0.001, 0.1)}

# batch, (H, W), channels, heads, window, shift
CASES = [(2, (32, 48), 48, 4, 16, 8), (1, (16, 16), 48, 4, 16, 0), (2, (16, 8), 60, 6, 8, 4),
         (1, (8, 8), 60, 6, 8, 0), (1, (21, 14), 15, 3, 7, 3), (2, (8, 4), 6, 2, 4, 1),
         (1, (3, 6), 5, 1, 3, 2), (1, (4, 4), 6, 2, 2, 1)]


def arguments(batch, size, channels, heads, window, shift, bits=(None,) * 4):
    """Inputs (name -> tensor, the bounds among them) and a function that calls the operator on them."""
    tokens = size[0] * size[1]
    inputs = {name: trainable(batch, tokens, channels, seed=i, scale=1.5) for i, name in enumerate("qkv")}
    inputs["table"] = trainable((2 * window - 1)**2, heads, seed=3)
    points = QuantPoints(*BOUNDS)
    for name, n in zip(BOUNDS, bits):
        setattr(points, name, point(n, *BOUNDS[name]))
    tensors = list(inputs.values())
    inputs.update({f"bounds of {name}": getattr(points, name).bounds for name, n in zip(BOUNDS, bits) if n})
    return inputs, lambda: window_attention(*tensors, size, heads, window, shift, points)


def definition(q, k, v, table, size, heads, window, shift):
    """Attention pixel by pixel, in float64: which pixels share a window, and which of them a region."""
    height, width = size
    depth = q.shape[-1] // heads
    q, k, v = (x.reshape(-1, height, width, heads, depth).astype("float64") for x in (q, k, v))
    out = np.zeros_like(q)

    def rolled(position, extent):
        """Place in the rolled image, and the part of it that came over the border."""
        place = (position - shift) % extent
        return place, shift > 0 and place >= extent - shift

    def same_window(y, x):
        row, column = rolled(y, height), rolled(x, width)
        return row[0] // window, column[0] // window

    pixels = [(y, x) for y in range(height) for x in range(width)]
    for y, x in pixels:
        keys = [p for p in pixels if same_window(*p) == same_window(y, x)]
        row, wrapped_row = rolled(y, height)
        column, wrapped_column = rolled(x, width)
        bias = []
        for key_y, key_x in keys:
            key_row, key_wrapped_row = rolled(key_y, height)
            key_column, key_wrapped_column = rolled(key_x, width)
            offset = (row - key_row + window - 1) * (2 * window - 1) + column - key_column + window - 1
            masked = wrapped_row != key_wrapped_row or wrapped_column != key_wrapped_column
            bias.append(table[offset] - 100.0 * masked)
        ys, xs = np.array(keys).T
        scores = np.einsum("bhd,bnhd->bnh", q[:, y, x] * depth**-0.5, k[:, ys, xs]) + np.array(bias)
        weights = np.exp(scores - scores.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        out[:, y, x] = np.einsum("bnh,bnhd->bhd", weights, v[:, ys, xs])
    return out.reshape(len(out), height * width, -1)


@pytest.mark.parametrize("policy", ["reference", {"window_attention"}])
@pytest.mark.parametrize("case", [(1, (12, 8), 12, 2, 4, 2), (2, (8, 8), 6, 3, 4, 0),
                                  (1, (9, 6), 4, 1, 3, 1)])
def test_equals_the_definition(policy, case):
    comparison.require_kernels()
    inputs, function = arguments(*case)
    with dispatch.use(policy), paddle.no_grad():
        y = function()
    expected = definition(*(x.numpy() for x in inputs.values()), case[1], *case[3:])
    assert comparison.relative_error(y.numpy(), expected) < 1e-5


@pytest.mark.parametrize("bits", [(None,) * 4, (4,) * 4, (8, 2, None, 1), (None, None, None, 4),
                                  (1, 3, 5, None)])
@pytest.mark.parametrize("case", CASES)
def test_kernel_equals_reference(case, bits):
    inputs, function = arguments(*case, bits)
    comparison.assert_kernel_equals_reference("window_attention", function, inputs, flips=any(bits))


def test_gradients_equal_finite_differences():
    comparison.require_kernels()
    case = (1, (6, 6), 4, 2, 3, 1)
    inputs, function = arguments(*case)
    weight = np.random.default_rng(0).standard_normal((1, 36, 4))
    with dispatch.use({"window_attention"}):
        (function() * paddle.to_tensor(weight.astype("float32"))).sum().backward()
    values = {name: x.numpy().astype("float64") for name, x in inputs.items()}
    rng = np.random.default_rng(1)
    for name, tensor in inputs.items():
        for _ in range(3):
            index = tuple(rng.integers(0, n) for n in tensor.shape)
            losses = []
            for change in (1e-5, -1e-5):
                moved = {**values, name: values[name].copy()}
                moved[name][index] += change
                losses.append((definition(*moved.values(), case[1], *case[3:]) * weight).sum())
            expected = (losses[0] - losses[1]) / 2e-5
            gradient = tensor.grad.numpy()
            assert abs(gradient[index] - expected) <= 1e-4 * np.abs(gradient).max(), name


def test_masked_tokens_do_not_mix():
    comparison.require_kernels()
    inputs, function = arguments(1, (8, 8), 4, 1, 4, 2)
    with dispatch.use({"window_attention"}), paddle.no_grad():
        before = function().numpy()
        changed = inputs["v"].numpy()
        changed[0, 0] += 1000.0  # the top left pixel shares a rolled window with the other three corners
        inputs["v"].set_value(changed)
        moved = np.abs(function().numpy() - before).max(-1).reshape(8, 8) > 1e-3
    assert moved[:2, :2].all() and moved.sum() == 4


def test_same_bits_with_any_threads():
    inputs, function = arguments(2, (32, 32), 24, 2, 8, 4, (4, 4, 4, 4))
    comparison.assert_same_bits_with_any_threads("window_attention", function, inputs)


def test_inputs_need_not_be_contiguous():
    comparison.require_kernels()
    inputs, _ = arguments(1, (8, 8), 12, 2, 4, 2)
    packed = paddle.concat([inputs[name] for name in "qkv"], axis=-1)
    strided = paddle.split(packed, 3, axis=-1)
    results = []
    channels_first = [x.transpose([0, 2, 1]).contiguous().transpose([0, 2, 1]) for x in strided]
    for q, k, v in ([inputs[name] for name in "qkv"], strided, channels_first):
        with dispatch.use({"window_attention"}), paddle.no_grad():
            results.append(window_attention(q, k, v, inputs["table"], (8, 8), 2, 4, 2).numpy())
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_only_what_is_wanted_gets_a_gradient():
    inputs, function = arguments(1, (8, 8), 12, 2, 4, 2, (4, 4, 4, 4))
    for name in ("table", "k", "bounds of v"):
        inputs[name].stop_gradient = True
    comparison.assert_kernel_equals_reference("window_attention", function, inputs, flips=True)
    assert inputs["table"].grad is None and inputs["q"].grad is not None


@pytest.mark.parametrize("name", ["q", "k", "v", "table"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_named(name, value):
    comparison.require_kernels()
    inputs, function = arguments(1, (8, 8), 12, 2, 4, 2, (4, 4, 4, 4))
    broken = inputs[name].numpy()
    broken.reshape(-1)[7] = value
    inputs[name].set_value(broken)
    message = f"window_attention: {name} of shape"
    with dispatch.use({"window_attention"}), pytest.raises(ValueError, match=message):
        function()


@pytest.mark.parametrize("bounds", [(0.5, 0.5), (1.0, -1.0), (float("nan"), 1.0)])
def test_bad_bounds_are_named(bounds):
    comparison.require_kernels()
    inputs, function = arguments(1, (8, 8), 12, 2, 4, 0, (4, 4, 4, 4))
    inputs["bounds of map"].set_value(np.array(bounds, "float32"))
    with dispatch.use({"window_attention"}), pytest.raises(ValueError, match="quantizer 'map'"):
        function()


@pytest.mark.parametrize("change, message", [
    (dict(size=(8, 9)), "multiples of the window"), (dict(size=(8, 12)), "q must have shape"),
    (dict(heads=5), "5 heads"), (dict(shift=4), "shift"), (dict(window=2), "table must have shape")])
def test_shapes_that_do_not_fit_are_named(change, message):
    comparison.require_kernels()
    inputs, _ = arguments(1, (8, 8), 12, 2, 4, 0)
    given = {**dict(size=(8, 8), heads=2, window=4, shift=0), **change}
    with dispatch.use({"window_attention"}), pytest.raises(ValueError, match=message):
        window_attention(*inputs.values(), **given)

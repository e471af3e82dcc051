"""Selective scan against a loop in float64 and finite differences, kernel against the reference."""
import numpy as np
import paddle
import pytest

from ppsr2q.ops import QuantPoint, dispatch, selective_scan
from tests.ops import comparison
from tests.ops.comparison import point, trainable

NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias")


def arguments(batch, length, channels, states):
    inputs = {
        "u": trainable(batch, length, channels, seed=1),
        "delta": trainable(batch, length, channels, seed=2),
        "A": trainable(channels, states, seed=3),
        "B": trainable(batch, length, states, seed=4),
        "C": trainable(batch, length, states, seed=5),
        "D": trainable(channels, seed=6),
        "delta_bias": trainable(channels, seed=7),
    }
    inputs["A"].set_value(-paddle.exp(inputs["A"]))
    return inputs


def loop(u, delta, A, B, C, D, delta_bias):
    """The definition, token by token, in float64."""
    u, delta, A, B, C, D, delta_bias = (x.numpy().astype("float64")
                                        for x in (u, delta, A, B, C, D, delta_bias))
    step = np.logaddexp(0, delta + delta_bias)
    h = np.zeros((u.shape[0], *A.shape))
    y, states = np.empty_like(u), []
    for t in range(u.shape[1]):
        h = np.exp(step[:, t, :, None] * A) * h + (step[:, t] * u[:, t])[..., None] * B[:, t, None]
        y[:, t] = (h * C[:, t, None]).sum(-1) + D * u[:, t]
        states.append(h)
    return y, np.stack(states, 1)


@pytest.mark.parametrize("policy", ["reference", {"selective_scan"}])
@pytest.mark.parametrize("shape", [(2, 1, 3, 4), (1, 200, 5, 8), (2, 65, 48, 8), (1, 33, 20, 16)])
def test_scan_equals_the_definition(policy, shape):
    comparison.require_kernels()
    inputs = arguments(*shape)
    with dispatch.use(policy), paddle.no_grad():
        y, states = selective_scan(**inputs, return_states=True)
    expected_y, expected_states = loop(**inputs)
    assert comparison.relative_error(y.numpy(), expected_y) < 1e-5
    assert comparison.relative_error(states.numpy(), expected_states) < 1e-5


@pytest.mark.parametrize("policy", ["reference", {"selective_scan"}])
def test_gradients_equal_finite_differences(policy):
    comparison.require_kernels()
    inputs = arguments(1, 40, 3, 4)
    weight = np.random.default_rng(0).standard_normal((1, 40, 3))
    with dispatch.use(policy):
        (selective_scan(**inputs) * paddle.to_tensor(weight.astype("float32"))).sum().backward()

    def loss(name, index, change):
        values = dict(inputs)
        changed = inputs[name].numpy().astype("float64")
        changed[index] += change
        values[name] = paddle.to_tensor(changed)
        return (loop(**values)[0] * weight).sum()

    rng = np.random.default_rng(1)
    for name in NAMES:
        gradient = inputs[name].grad.numpy()
        for _ in range(4):
            index = tuple(rng.integers(0, n) for n in gradient.shape)
            expected = (loss(name, index, 1e-5) - loss(name, index, -1e-5)) / 2e-5
            assert abs(gradient[index] - expected) <= 2e-4 * np.abs(gradient).max(), name


@pytest.mark.parametrize("bits", [None, 1, 2, 4, 8])
@pytest.mark.parametrize("shape", [(2, 100, 48, 8), (1, 31, 60, 16), (3, 64, 7, 4)])
def test_kernel_equals_reference(bits, shape):
    inputs = arguments(*shape)
    states = point(bits, -0.31, 0.47)
    watched = dict(inputs, **({"bounds": states.bounds} if bits else {}))
    comparison.assert_kernel_equals_reference(
        "selective_scan", lambda: selective_scan(**inputs, state_point=states), watched, flips=bool(bits))


def test_kernel_takes_strided_input_and_skips_unwanted_gradients():
    inputs = arguments(2, 30, 48, 8)
    wide = trainable(2, 30, 60, seed=8)
    inputs["D"].stop_gradient = True
    del inputs["u"]
    comparison.assert_kernel_equals_reference(
        "selective_scan", lambda: selective_scan(u=wide[:, :, 5:53], **inputs), dict(inputs, wide=wide))


def test_threads_do_not_change_a_bit():
    inputs = arguments(1, 300, 48, 8)
    states = point(4, -0.5, 0.5)
    comparison.assert_same_bits_with_any_threads(
        "selective_scan", lambda: selective_scan(**inputs, state_point=states),
        dict(inputs, bounds=states.bounds))


def test_other_numbers_of_states_go_to_the_reference():
    inputs = tuple(arguments(1, 4, 3, 5).values())
    assert "5 states" in dispatch.why_reference("selective_scan", inputs)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_input_is_named(bad):
    comparison.require_kernels()
    inputs = arguments(1, 40, 48, 8)
    with dispatch.use({"selective_scan"}):
        for name in NAMES:
            damaged = dict(inputs)
            values = inputs[name].numpy()
            values.flat[-1] = bad
            damaged[name] = paddle.to_tensor(values)
            with pytest.raises(ValueError, match=rf"selective_scan: {name} of shape .* NaN"):
                selective_scan(**damaged, state_point=point(4, -1.0, 1.0))
        with pytest.raises(ValueError, match=r"selective_scan: quantizer 'states' .* a < b"):
            selective_scan(**inputs, state_point=point(4, 1.0, -1.0))
        with pytest.raises(ValueError, match=r"selective_scan: B must have shape \[1, 40, 8\]"):
            selective_scan(**dict(inputs, B=trainable(1, 39, 8)))
        with pytest.raises(ValueError, match="selective_scan: u is empty"):
            selective_scan(**dict(inputs, u=paddle.zeros([0, 40, 48])))


@pytest.mark.parametrize("change", [False, True])
def test_an_observer_sees_the_states_and_may_change_them(change):
    comparison.require_kernels()
    inputs = arguments(2, 65, 8, 8)
    expected_y, expected_states = loop(**inputs)

    class Observer(QuantPoint):
        observing = True

        def forward(self, x):
            self.seen = x
            return paddle.round(x) if change else x
    observer = Observer()
    with paddle.no_grad():
        y = selective_scan(**inputs, state_point=observer)
    assert comparison.relative_error(observer.seen.numpy(), expected_states) < 1e-5
    if change:
        expected_y += ((np.round(observer.seen.numpy()) - expected_states) * inputs["C"].numpy()[:, :, None]).sum(-1)
    assert comparison.relative_error(y.numpy(), expected_y) < 1e-5

"""The state space model in one operator against the same model made of single operators."""
import numpy as np
import paddle
import pytest

from ppsr2q.ops import dispatch, state_space
from tests.ops import comparison
from tests.ops.comparison import point, trainable

POINTS = ("u", "dt", "delta", "B", "C", "states")


class Points(paddle.nn.Layer):
    def __init__(self, bits):
        super().__init__()
        for name, own in zip(POINTS, bits):
            self.add_sublayer(name, point(own, -0.83, 0.91))


def arguments(batch, length, channels, states, rank):
    shapes = {"u": (batch, length, channels), "prompt": (batch, length, states),
              "x_proj_weight": (rank + 2 * states, channels), "dt_proj_weight": (channels, rank),
              "A": (channels, states), "D": (channels,), "dt_bias": (channels,)}
    inputs = {name: trainable(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    inputs["x_proj_weight"].set_value(inputs["x_proj_weight"] * channels**-0.5)
    inputs["A"].set_value(-paddle.exp(inputs["A"]))
    return inputs


def test_reference_equals_the_definition():
    inputs = arguments(1, 40, 6, 4, 3)
    u, prompt, x_proj, dt_proj, A, D, bias = (x.numpy().astype("float64") for x in inputs.values())
    projected = u @ x_proj.T
    dt, B, C = projected[..., :3], projected[..., 3:7], projected[..., 7:] + prompt
    step = np.logaddexp(0, dt @ dt_proj.T + bias)
    h, expected = np.zeros((1, 6, 4)), np.empty_like(u)
    for t in range(40):
        h = np.exp(step[:, t, :, None] * A) * h + (step[:, t] * u[:, t])[..., None] * B[:, t, None]
        expected[:, t] = (h * C[:, t, None]).sum(-1) + D * u[:, t]
    with dispatch.use("reference"), paddle.no_grad():
        assert comparison.relative_error(state_space(**inputs).numpy(), expected) < 1e-5


@pytest.mark.parametrize("bits", [(None,) * 6, (4,) * 6, (8, 2, None, 4, None, 3)])
@pytest.mark.parametrize("shape", [(2, 100, 48, 8, 3), (1, 290, 60, 16, 4), (3, 33, 7, 4, 1)])
def test_kernel_equals_reference(bits, shape):
    inputs, points = arguments(*shape), Points(bits)
    watched = dict(inputs, **{f"bounds of {name}": getattr(points, name).bounds
                              for name, own in zip(POINTS, bits) if own})
    comparison.assert_kernel_equals_reference(
        "state_space", lambda: state_space(**inputs, points=points), watched, flips=any(bits))


def test_kernel_skips_unwanted_gradients():
    inputs = arguments(1, 50, 48, 8, 3)
    inputs["x_proj_weight"].stop_gradient = inputs["prompt"].stop_gradient = True
    comparison.assert_kernel_equals_reference("state_space", lambda: state_space(**inputs), inputs)


def test_threads_do_not_change_a_bit():
    inputs, points = arguments(1, 1000, 48, 8, 3), Points((4,) * 6)
    comparison.assert_same_bits_with_any_threads(
        "state_space", lambda: state_space(**inputs, points=points), inputs)


def test_bad_input_is_named():
    comparison.require_kernels()
    inputs = arguments(1, 40, 48, 8, 3)
    with dispatch.use({"state_space"}):
        for name in inputs:
            values = inputs[name].numpy()
            values.flat[-1] = np.inf
            with pytest.raises(ValueError, match=rf"state_space: {name} of shape .* NaN or infinite"):
                state_space(**dict(inputs, **{name: paddle.to_tensor(values)}), points=Points((4,) * 6))
        points = Points((4,) * 6)
        points.B.bounds.set_value(np.array([1.0, 1.0], "float32"))
        with pytest.raises(ValueError, match="state_space: quantizer 'B' needs finite bounds"):
            state_space(**inputs, points=points)
        with pytest.raises(ValueError, match=r"state_space: prompt must have shape \[1, 40, 8\]"):
            state_space(**dict(inputs, prompt=trainable(1, 39, 8)))

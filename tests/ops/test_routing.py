"""Routing: order and prompt against numpy, kernels against the references."""
import numpy as np
import paddle
import pytest

from ppsr2q.ops import dispatch, gather_rows, route, routed_prompt
from tests.ops import comparison
from tests.ops.comparison import point, trainable

OPERATORS = {"route", "gather_rows", "routed_prompt"}


@pytest.mark.parametrize("policy", ["reference", OPERATORS])
@pytest.mark.parametrize("shape", [(2, 1000, 64), (1, 1, 64), (3, 77, 5), (1, 700, 19)])
def test_tokens_are_sorted_by_class_and_ties_keep_their_order(policy, shape):
    comparison.require_kernels()
    logits = np.random.default_rng(0).integers(0, 9, shape).astype("float32")  # many equal maxima
    with dispatch.use(policy):
        index, order, inverse = (x.numpy() for x in route(paddle.to_tensor(logits)))
    expected_index = logits.argmax(-1)
    expected_order = np.argsort(expected_index, axis=-1, kind="stable")
    np.testing.assert_array_equal(index, expected_index)
    np.testing.assert_array_equal(order, expected_order)
    np.testing.assert_array_equal(np.take_along_axis(inverse, order, -1),
                                  np.broadcast_to(np.arange(shape[1]), shape[:2]))


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_rows_are_gathered_and_gradients_return(dtype):
    x = trainable(2, 300, 48)
    order = np.stack([np.random.default_rng(i).permutation(300) for i in range(2)])
    inverse = np.argsort(order, axis=-1)
    order, inverse = paddle.to_tensor(order.astype(dtype)), paddle.to_tensor(inverse.astype(dtype))
    comparison.assert_kernel_equals_reference("gather_rows", lambda: gather_rows(x, order, inverse), {"x": x})
    residual = trainable(2, 300, 48, seed=1)
    comparison.assert_kernel_equals_reference(
        "gather_rows", lambda: gather_rows(x, order, inverse, residual), {"x": x, "residual": residual})
    x.stop_gradient = True
    comparison.assert_kernel_equals_reference(
        "gather_rows", lambda: gather_rows(x, order, inverse, residual), {"x": x, "residual": residual})


@pytest.mark.parametrize("bits", [None, 1, 4])
@pytest.mark.parametrize("shape, width", [((2, 700, 64), 8), ((1, 33, 19), 5)])
def test_prompt_kernel_equals_reference(shape, width, bits):
    logits, table = trainable(*shape, scale=3.0), trainable(shape[-1], width, seed=1)
    index = paddle.argmax(logits.detach(), axis=-1)
    comparison.assert_kernel_equals_reference(
        "routed_prompt", lambda: routed_prompt(logits, index, table, point(bits, 0.0, 1.0)),
        {"logits": logits, "table": table})


@pytest.mark.parametrize("frozen", ["logits", "table"])
def test_prompt_kernel_skips_unwanted_gradients(frozen):
    inputs = {"logits": trainable(1, 40, 64), "table": trainable(64, 8, seed=1)}
    inputs[frozen].stop_gradient = True
    index = paddle.argmax(inputs["logits"].detach(), axis=-1)
    comparison.assert_kernel_equals_reference(
        "routed_prompt", lambda: routed_prompt(inputs["logits"], index, inputs["table"]), inputs)


def test_threads_do_not_change_a_bit():
    logits, table = trainable(1, 5000, 64), trainable(64, 8, seed=1)
    index = paddle.argmax(logits.detach(), axis=-1)
    comparison.assert_same_bits_with_any_threads("routed_prompt", lambda: routed_prompt(logits, index, table),
                                                 {"logits": logits, "table": table})


def test_bad_input_is_named():
    comparison.require_kernels()
    logits, table, x = trainable(1, 40, 64), trainable(64, 8), trainable(1, 40, 48)
    damaged = logits.numpy()
    damaged[0, 3, 60] = np.nan
    order = paddle.arange(40).unsqueeze(0)
    with dispatch.use(OPERATORS):
        with pytest.raises(ValueError, match=r"route: logits of shape \[1, 40, 64\] contains NaN"):
            route(paddle.to_tensor(damaged))
        with pytest.raises(ValueError, match="gather_rows: an index is out of range"):
            gather_rows(x, order + 1, order)
        with pytest.raises(ValueError, match=r"gather_rows: inverse must have shape \[1, 40\]"):
            gather_rows(x, order, order[:, 1:])
        with pytest.raises(ValueError, match=r"gather_rows: residual must have shape \[1, 40, 48\]"):
            gather_rows(x, order, order, x[:, :, 1:])
        with pytest.raises(ValueError, match="routed_prompt: an index is out of range"):
            routed_prompt(logits, order + 30, table)
        with pytest.raises(ValueError, match="routed_prompt: logits .* do not fit"):
            routed_prompt(logits, order, table[1:])

import numpy as np
import paddle
import pytest

from ppsr2q.spr2q.gating import DynamicGate, StaticGate
from ppsr2q.spr2q.rectifier import RectifierGroup, freeze_gates, rectifier_groups
from tests.spr2q.networks import make

RNG = np.random.default_rng(0)


def images(count=4):
    return paddle.to_tensor(np.random.default_rng(1).random((count, 3, 4, 5), dtype=np.float32))


def filled(gate, number=3, rank=2, d_in=5, d_out=4):
    group = RectifierGroup(d_in, d_out, number, rank, gate, np.random.default_rng(0))
    group.B.set_value(RNG.normal(size=group.B.shape).astype(np.float32))
    return group


def by_hand(group, weights):
    """Σ g_i B_i A_i with B_i (d_out, r) and A_i (r, d_in), transposed to Paddle's layout."""
    return sum(g * (B.T @ A).T for g, A, B in zip(weights, group.A.numpy(), group.B.numpy()))


def test_increment_is_the_weighted_sum_of_products():
    weights = np.array([0.2, 0.5, 0.3], np.float32)
    group = filled(StaticGate(weights))
    np.testing.assert_allclose(group(None).numpy(), by_hand(group, weights), rtol=1e-5, atol=1e-6)


def test_per_sample_weights_give_one_increment_a_sample():
    gate = DynamicGate(5, 3, per_sample=True)
    gate.linear.weight.set_value(RNG.normal(size=[5, 3]).astype(np.float32))
    group, mean = filled(gate), RNG.normal(size=(2, 5)).astype(np.float32)
    logits = mean @ gate.linear.weight.numpy()
    weights = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    increments = group(paddle.to_tensor(mean)).numpy()
    for i in range(2):
        np.testing.assert_allclose(increments[i], by_hand(group, weights[i]), rtol=1e-4, atol=1e-5)


def test_a_group_starts_at_zero_with_different_draws():
    group = RectifierGroup(48, 16, 4, 8, StaticGate(np.full(4, 0.25)), np.random.default_rng(0))
    A = group.A.numpy()
    assert not group(None).numpy().any()
    assert np.abs(A).max() <= 48**-0.5 and A.std() == pytest.approx(48**-0.5 / 3**0.5, rel=0.05)
    assert np.abs(A[0] - A[1]).max() > 0.01


def test_dynamic_gate_starts_uniform_and_averages_over_the_batch():
    gate = DynamicGate(3, 4)
    mean = paddle.to_tensor(RNG.normal(size=(5, 3)).astype(np.float32))
    np.testing.assert_allclose(gate(mean).numpy(), 0.25)
    gate.linear.weight.set_value(RNG.normal(size=[3, 4]).astype(np.float32))
    each = paddle.nn.functional.softmax(gate.linear(mean), -1).numpy()
    np.testing.assert_allclose(gate(mean).numpy(), each.mean(0), rtol=1e-6)


def test_free_weights_are_taken_as_they_are():
    np.testing.assert_array_equal(StaticGate(np.array([-1.0, 2.0]), "free")(None).numpy(), [-1, 2])
    with pytest.raises(ValueError, match="space"):
        StaticGate(np.ones(2), "simplex")


def test_the_gate_reads_the_unquantized_normalized_input():
    _, student, _ = make(images(), bits=1)
    block, seen = student.blocks[0], []
    block.fc.weight_delta.gate.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    x = paddle.to_tensor(RNG.normal(size=(2, 20, 6)).astype(np.float32), stop_gradient=False)
    block(x)
    np.testing.assert_allclose(seen[0].numpy(), block.norm(x).mean(1).numpy(), atol=1e-6)
    assert seen[0].stop_gradient


def test_freezing_keeps_the_mean_weights_of_the_calibration_set():
    _, student, _ = make(images())
    for group in rectifier_groups(student).values():
        group.gate.linear.weight.set_value(RNG.normal(size=[6, 4]).astype(np.float32) * 3)
    expected = {}
    for name, group in rectifier_groups(student).items():
        def record(layer, inputs, output, name=name):
            expected[name] = output.numpy()
        group.gate.register_forward_post_hook(record)
    with paddle.no_grad():
        before = student(images()).numpy()
    mean = freeze_gates(student, images())
    for name, group in rectifier_groups(student).items():
        np.testing.assert_allclose(mean[name], expected[name], rtol=1e-6)
        np.testing.assert_allclose(group.gate().numpy(), expected[name], rtol=1e-5)
        assert not group.needs_token_mean
    with paddle.no_grad():
        np.testing.assert_allclose(student(images()).numpy(), before, atol=1e-5)


def test_one_rectifier_needs_no_gate():
    _, student, _ = make(images(), number=1)
    group = rectifier_groups(student)["blocks.0.fc"]
    assert not group.needs_token_mean and group.gate().numpy() == [1.0]

"""The start in closed form: the regression by hand, its factors, and that every layer's output gets better."""
import numpy as np
import paddle
import pytest

from ppsr2q import ops
from ppsr2q.spr2q.closed_form import closed_form_start, ridge
from ppsr2q.spr2q.gating import uniform_gate
from ppsr2q.spr2q.rectifier import FullRankIncrement, RectifierGroup, rectifier_groups
from tests.spr2q.networks import make

RNG = np.random.default_rng(0)


def test_ridge_by_hand():
    """x = ±1 about a mean of 5, y = 2 x + 3, W = 1: variance 1, so that ΔW = 1 / (1 + λ)."""
    x, y = np.array([[4.0], [6.0]]), np.array([[11.0], [15.0]])
    np.testing.assert_allclose(ridge(x, y, np.ones((1, 1)), 0.0), [[1.0]])
    np.testing.assert_allclose(ridge(x, y, np.ones((1, 1)), 1.0), [[0.5]])
    np.testing.assert_allclose(ridge(x, y, np.ones((1, 1)), 3.0), [[0.25]])


def test_ridge_finds_the_linear_map():
    x, W, b = RNG.normal(size=(50, 4)), RNG.normal(size=(4, 3)), RNG.normal(size=3)
    found = ridge(x, x @ (W + 0.1) + b, W, 1e-12)
    np.testing.assert_allclose(found, np.full((4, 3), 0.1), atol=1e-9)


@pytest.mark.parametrize("number, rank, exact", [(2, 2, True), (4, 1, True), (3, 2, True), (1, 2, False)])
def test_factors_mix_to_the_increment(number, rank, exact):
    group = RectifierGroup(5, 4, number, rank, uniform_gate(number), np.random.default_rng(0))
    draws, increment = group.A.numpy().copy(), RNG.normal(size=(5, 4))
    group.start_at(increment)
    left, values, right = np.linalg.svd(increment)
    expected = sum(values[i] * np.outer(left[:, i], right[i]) for i in range(min(4, number * rank)))
    np.testing.assert_allclose(group(None).numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(group.nearest(increment), expected, atol=1e-12)
    assert np.allclose(expected, increment) == exact
    norms = np.linalg.norm(group.A.numpy(), axis=2)
    np.testing.assert_allclose(norms.T.reshape(-1)[:min(4, number * rank)], 3**-0.5, rtol=1e-5)
    if number * rank > 4:  # what is left over keeps its draw, and a zero
        np.testing.assert_array_equal(group.A.numpy()[1, 1], draws[1, 1])
        assert not group.B.numpy()[1:, 1].any()


def test_a_full_rank_increment_starts_at_the_increment():
    group, increment = FullRankIncrement(5, 4), RNG.normal(size=(5, 4))
    group.start_at(increment)
    np.testing.assert_array_equal(group().numpy(), increment.astype(np.float32))


def layer_errors(teacher, student, x):
    """Mean squared error of every rectified layer's output, the student's inputs being its own."""
    def outputs(network):
        seen, tokens = [], network.first(x).flatten(2).transpose([0, 2, 1])
        for block in network.blocks:
            seen.append(ops.norm_linear(tokens, block.norm, [block.fc])[0].numpy())
            tokens = block(tokens)
        return seen
    with paddle.no_grad():
        return [float(((a - b)**2).mean()) for a, b in zip(outputs(teacher), outputs(student))]


@pytest.mark.parametrize("settings", [{}, {"gate": "static"}, {"number": 1, "form": "full_rank"}])
def test_every_layer_is_closer_to_full_precision_than_from_zero(settings):
    images = paddle.to_tensor(np.random.default_rng(1).random((16, 3, 8, 8), dtype=np.float32))
    teacher, student, _ = make(images, bits=2, **settings)
    before = layer_errors(teacher, student, images)
    weight = student.blocks[0].fc.weight.numpy().copy()
    closed_form_start(student, images)
    after = layer_errors(teacher, student, images)
    assert all(a < 0.9 * b for a, b in zip(after, before)), (before, after)
    assert any(group(paddle.zeros([1, 6])).numpy().any() for group in rectifier_groups(student).values())
    np.testing.assert_array_equal(student.blocks[0].fc.weight.numpy(), weight)  # ΔW learns, W stays
    assert all(layer.observer is None for layer in student.sublayers() if hasattr(layer, "observer"))


def test_layers_without_bias_are_corrected_too():
    images = paddle.to_tensor(np.random.default_rng(1).random((16, 3, 8, 8), dtype=np.float32))
    teacher, student, _ = make(images, bits=2)
    for network in (teacher, student):
        for block in network.blocks:
            block.fc.bias = None
    before = layer_errors(teacher, student, images)
    closed_form_start(student, images)
    after = layer_errors(teacher, student, images)
    assert after != before and all(a <= 1.05 * b for a, b in zip(after, before))


def test_a_fine_quantizer_is_not_made_worse():
    images = paddle.to_tensor(np.random.default_rng(1).random((16, 3, 8, 8), dtype=np.float32))
    teacher, student, _ = make(images, bits=8)
    before = layer_errors(teacher, student, images)
    closed_form_start(student, images)
    assert all(a < 1.05 * b for a, b in zip(layer_errors(teacher, student, images), before))

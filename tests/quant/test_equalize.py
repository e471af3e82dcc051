"""Which folds are chosen, on cases whose answer is known, and that they help."""
import numpy as np
import paddle
import pytest

from ppsr2q.quant import PLAN_ENTRIES, Plan, quantize
from ppsr2q.quant.bounds import round_to_levels, search_bounds, subsample
from ppsr2q.quant.equalize import _linear_error, balancing_scales, choose_folds, head_matrices, matrix_power
from ppsr2q.quant.folds import apply_folds, blocks_of
from tests.quant.test_folds import NAME, network

RNG = np.random.default_rng(0)


def test_balancing_scales_by_hand():
    left, right = np.array([[-4.0, 1.0], [2.0, -1.0]]), np.array([[1.0, -1.0], [0.5, 4.0]])
    scales = list(balancing_scales(left, right))
    np.testing.assert_array_equal(scales[0], [1, 1])
    # by the largest values, (4, 1) against (1, 4): half-way sqrt(4/1) to sqrt(1/4), geometric mean 1
    np.testing.assert_allclose(scales[2], [2, 0.5])
    np.testing.assert_allclose(scales[4], [2, 0.5])  # full strength: 4 to 1
    # by the root mean square, (sqrt 10, 1) against (1, sqrt 8.125)
    np.testing.assert_allclose(scales[6][0] / scales[6][1], (10**0.5 * 8.125**0.5)**0.5)


def test_the_error_of_a_shift_is_that_of_the_output():
    # channels of different middles and little spread: moving all to 0 leaves two levels a hundred times closer
    matrix = RNG.normal(size=(16, 8))
    inputs = RNG.choice([-5.0, 5.0], 16) + 0.1 * RNG.normal(size=(500, 16))
    middle = (inputs.max(axis=0) + inputs.min(axis=0)) / 2
    errors = [_linear_error(inputs, matrix, (None, 4), np.ones(16), part * middle) for part in (0, 0.5, 1)]
    assert errors[2] < errors[0] / 10 and errors[2] < errors[1] / 10
    quantized = round_to_levels(inputs - middle, search_bounds(subsample(inputs - middle, 2**12, 0), 4), 4)
    output, exact = quantized @ matrix + middle @ matrix, inputs @ matrix  # the bias takes up the shift
    assert errors[2] == pytest.approx(((output - exact)**2).mean() / (exact**2).mean())


def test_matrix_power():
    A = RNG.normal(size=(2, 3, 3))
    A = A @ A.swapaxes(1, 2)
    root = matrix_power(A, 0.5)
    np.testing.assert_allclose(root @ root, A, atol=1e-10)
    np.testing.assert_allclose(matrix_power(A, -0.5), np.linalg.inv(root), rtol=1e-6)


def test_head_matrices_are_invertible_and_equalize_both_sides():
    left = RNG.normal(size=(3, 2, 50, 4)) * [10, 1, 1, 1]
    right = RNG.normal(size=(3, 2, 50, 4)) @ RNG.normal(size=(4, 4))
    matrices = head_matrices(left, right, np.random.default_rng(0))
    assert all(np.linalg.cond(m).max() < 1e4 for m in matrices)
    scores = left @ right.swapaxes(2, 3)
    for m in matrices:
        x, y = left @ m, right @ np.linalg.inv(m).transpose(0, 2, 1)
        np.testing.assert_allclose(x @ y.swapaxes(2, 3), scores, atol=1e-9 * np.abs(scores).max())
    moments = [np.einsum("nhti,nhtj->hij", s @ m, s @ m) for s, m in (
        (left, matrices[2]), (right, np.linalg.inv(matrices[2]).transpose(0, 2, 1)))]
    np.testing.assert_allclose(moments[0], moments[1], rtol=0.01, atol=0.01 * moments[0].max())


@pytest.fixture(scope="module")
def disturbed():
    """A network whose channels were made unequal by folds, its batch, and its student's folds: they must find back."""
    model = network()
    worse = {}
    for name, block in blocks_of(model, NAME):
        spread = np.exp(RNG.normal(size=48) * 1.5).astype(np.float32)
        worse[f"{name}.attention_input.scale"] = spread
        worse[f"{name}.attention_input.shift"] = np.zeros(48, np.float32)
    apply_folds(model, NAME, worse)
    batch = paddle.to_tensor(np.random.default_rng(1).random((1, 3, 16, 32), dtype=np.float32))
    student = quantize(model, Plan(PLAN_ENTRIES[NAME], 4, {
        "layers.0.residual_group.layers.0.q.input": None,
        **{f"layers.1.residual_group.layers.0.{layer}.weight": None
           for layer in ("v", "win_mhsa.proj", "assm.out_proj", "convffn1.sg.conv", "convffn2.fc2")}}))
    return model, batch, student, choose_folds(student, NAME, batch, seed=0)


def test_channels_that_were_made_unequal_are_made_equal_again(disturbed):
    model, batch, student, folds = disturbed
    name = "layers.2.residual_group.layers.1"
    norms = [dict(blocks_of(network(), NAME))[name].norm1, dict(blocks_of(model, NAME))[name].norm1]
    spreads = [np.log(np.abs(norm.weight.numpy())).std() for norm in norms]
    scale = folds[f"{name}.attention_input.scale"]
    after = np.log(np.abs(norms[1].weight.numpy() / scale)).std()
    assert spreads[1] > 1 and after < 0.5 * spreads[1]


def test_the_student_is_not_touched_and_floating_point_edges_are_left_alone(disturbed):
    model, _, student, folds = disturbed
    original = dict(model.named_parameters())
    for name, parameter in student.named_parameters():
        if name in original:
            np.testing.assert_array_equal(parameter.numpy(), original[name].numpy(), name)
    assert "layers.0.residual_group.layers.0.attention_input.scale" not in folds
    assert "layers.0.residual_group.layers.1.attention_input.scale" in folds
    assert all(quantizer.observer is None for quantizer in student.sublayers() if hasattr(quantizer, "observer"))


def test_the_choice_repeats(disturbed):
    _, batch, student, folds = disturbed
    again = choose_folds(student, NAME, batch, seed=0)
    assert set(again) == set(folds) and all((again[name] == folds[name]).all() for name in folds)

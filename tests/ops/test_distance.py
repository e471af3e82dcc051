"""Distance of features: by hand, finite differences of a constant norm, kernel against reference."""
import numpy as np
import paddle
import pytest

from ppsr2q.ops import dispatch, feature_distance
from tests.ops import comparison
from tests.ops.comparison import trainable

POLICIES = ["reference", {"feature_distance"}]
S = np.array([[[3.0, 0.0], [0.0, 4.0]], [[1.0, 1.0], [1.0, 1.0]]], np.float32)  # norms 5 and 2
T = np.array([[[0.0, 3.0], [4.0, 0.0]], [[2.0, 2.0], [2.0, 2.0]]], np.float32)  # norms 5 and 4


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("unit, expected", [(True, [2.0, 0.0]), (False, [50.0, 4.0])])
def test_by_hand(policy, unit, expected):
    comparison.require_kernels()
    student, teacher = paddle.to_tensor(S, stop_gradient=False), paddle.to_tensor(T, stop_gradient=False)
    with dispatch.use(policy):
        distance = feature_distance(student, teacher, unit)
        distance.sum().backward()
    own, other = (np.array([5, 2])[:, None, None], np.array([5, 4])[:, None, None]) if unit else (1, 1)
    np.testing.assert_allclose(distance.numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(student.grad.numpy(), 2 * (S / own - T / other) / own, atol=1e-6)
    assert teacher.grad is None


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("shape", [(1, 2), (3, 7), (2, 5, 3), (3, 700, 48), (1, 16384)])
def test_kernel_equals_reference(shape, unit):
    student, teacher = trainable(*shape), trainable(*shape, seed=1)
    comparison.assert_kernel_equals_reference(
        "feature_distance", lambda: feature_distance(student, teacher, unit), {"student": student})


def test_strided_features():
    wide = trainable(48, 300, 2)
    near = paddle.to_tensor(wide.numpy() * 1.5 + 0.1)
    comparison.assert_kernel_equals_reference(
        "feature_distance", lambda: feature_distance(wide.transpose([2, 1, 0]), near.transpose([2, 1, 0])),
        {"wide": wide})


def test_features_of_zeros():
    comparison.require_kernels()
    zeros = paddle.zeros([2, 9])
    with dispatch.use({"feature_distance"}):
        assert feature_distance(zeros, zeros).tolist() == [0.0, 0.0]


def test_threads_do_not_change_a_bit():
    student, teacher = trainable(2, 1024, 48), trainable(2, 1024, 48, seed=1)
    comparison.assert_same_bits_with_any_threads(
        "feature_distance", lambda: feature_distance(student, teacher), {"student": student})


def test_bad_input_is_named():
    comparison.require_kernels()
    broken = S.copy()
    broken[1, 1, 1] = np.nan
    with dispatch.use({"feature_distance"}):
        with pytest.raises(ValueError, match=r"feature_distance: teacher of shape \[2, 2, 2\] contains NaN"):
            feature_distance(paddle.to_tensor(S), paddle.to_tensor(broken))
        with pytest.raises(ValueError, match="must have one shape"):
            feature_distance(paddle.to_tensor(S), paddle.to_tensor(T[:1]))

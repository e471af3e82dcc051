import numpy as np
import paddle
import pytest

from ppsr2q.core.config import LossConfig
from ppsr2q.spr2q.losses import feature_loss, hybrid_loss, pixel_loss

S = np.array([[[3.0, 0.0], [0.0, 4.0]], [[1.0, 1.0], [1.0, 1.0]]], np.float32)  # norms 5 and 2
T = np.array([[[0.0, 3.0], [4.0, 0.0]], [[2.0, 2.0], [2.0, 2.0]]], np.float32)  # norms 5 and 4


def test_pixel_loss_by_hand():
    assert float(pixel_loss(paddle.to_tensor([1.0, -2.0]), paddle.to_tensor([0.0, 0.0]))) == 1.5


@pytest.mark.parametrize("norm, reduction, expected", [
    # sample 0: (3,0,0,4) against (0,3,4,0): squares 9+9+16+16 = 50, over 25 = 2; sample 1: equal directions
    ("l2", "sum", 1.0), ("l2", "mean", 0.25), ("none", "sum", (50 + 4) / 2), ("none", "mean", 54 / 8),
    ("teacher", "sum", (50 / 25 + 4 / 16) / 2)])
def test_feature_loss_by_hand(norm, reduction, expected):
    settings = LossConfig(feature_norm=norm, feature_reduction=reduction)
    assert float(feature_loss(paddle.to_tensor(S), paddle.to_tensor(T), settings)) == pytest.approx(expected)


def test_the_norm_of_the_student_is_detached():
    x = paddle.to_tensor(S, stop_gradient=False)
    feature_loss(x, paddle.to_tensor(T), LossConfig()).backward()
    unit = S / np.array([5, 2])[:, None, None] - T / np.array([5, 4])[:, None, None]
    np.testing.assert_allclose(x.grad.numpy(), 2 * unit / np.array([5, 2])[:, None, None] / 2, atol=1e-6)


def test_its_own_norm_always_shortens_the_student_and_the_teachers_does_not():
    """The part of the gradient along the student's features; s is T turned by 0.1 and 20% shorter."""
    t = np.array([[[1.0, 0.0], [0.0, 1.0]]], np.float32)
    s = 0.8 * (np.cos(0.1) * t + np.sin(0.1) * t[:, ::-1]).astype(np.float32)

    def slope(norm):
        x = paddle.to_tensor(s, stop_gradient=False)
        feature_loss(x, paddle.to_tensor(t), LossConfig(feature_norm=norm)).backward()
        return float((x.grad.numpy() * s).sum())
    assert slope("l2") > 0 > slope("teacher")  # a step against the gradient: shorter still, and longer


def test_hybrid_loss_weighs_its_terms_and_names_its_blocks():
    a, b = paddle.to_tensor([2.0]), paddle.to_tensor([1.0])
    terms = hybrid_loss(a, b, [paddle.to_tensor(S)] * 2, [paddle.to_tensor(T), paddle.to_tensor(S)],
                        LossConfig(feature_weight=3.0))
    assert float(terms["loss"]) == pytest.approx(1 + 3 * 0.5)
    assert [float(terms[key]) for key in ("pixel", "feature", "feature/00", "feature/01")] == pytest.approx([1, 0.5, 1, 0])

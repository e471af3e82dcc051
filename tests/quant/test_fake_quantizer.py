import numpy as np
import paddle
import pytest

from ppsr2q.quant import FakeQuantizer, QuantizerOptions, keep_open

X = np.array([-2, -0.9, -0.2, 0.3, 1.7], np.float32)


def quantizer(bits, lower, upper, **options):
    made = FakeQuantizer(bits, QuantizerOptions(**options))
    made.set_bounds(lower, upper)
    return made


def test_hand_case_of_equation_8():
    q = quantizer(2, -1, 1)
    x = paddle.to_tensor(X, stop_gradient=False)
    y = q(x)
    y.sum().backward()
    np.testing.assert_allclose(y.numpy(), [-1, -1, -1 / 3, 1 / 3, 1], atol=1e-6)
    np.testing.assert_array_equal(x.grad.numpy(), [0, 1, 1, 1, 0])
    np.testing.assert_allclose(q.bounds.grad.numpy(), [1.10, 0.90], atol=1e-5)


def test_relative_bounds_act_alike_and_scale_their_gradient():
    absolute, relative = quantizer(2, -1, 1), quantizer(2, -1, 1, parametrization="relative")
    x = paddle.to_tensor(X)
    for q in (absolute, relative):
        q(x).sum().backward()
    np.testing.assert_allclose(relative(x).numpy(), absolute(x).numpy(), atol=1e-6)
    np.testing.assert_allclose(relative.bounds.numpy(), [-0.5, 0.5])
    np.testing.assert_allclose(relative.bounds.grad.numpy(), 2 * absolute.bounds.grad.numpy(), rtol=1e-6)


@pytest.mark.parametrize("bounds, snapped", [((-1.1, 1.9), (-1.0, 2.0)), ((0.5, 3.5), (0.0, 3.5)),
                                             ((-3.4, -0.4), (-3.4, 0.0))])
def test_integer_zero_point_makes_zero_a_level(bounds, snapped):
    q = quantizer(2, *bounds, zero_point="integer")
    np.testing.assert_allclose(q.effective_bounds().numpy(), snapped, atol=1e-6)
    assert 0.0 in np.round(q(paddle.linspace(-5, 5, 101)).numpy(), 6)
    q(paddle.to_tensor(X)).sum().backward()
    assert np.isfinite(q.bounds.grad.numpy()).all()


def test_fixed_bounds_are_not_trained():
    q = FakeQuantizer(1, fixed=(0.0, 1.0))
    one_hot = paddle.to_tensor([0.0, 1.0, 0.0])
    np.testing.assert_array_equal(q(one_hot).numpy(), one_hot.numpy())
    assert q.bounds.stop_gradient


@pytest.mark.parametrize("lower, upper", [(1, 1), (2, 1), (0, np.inf), (np.nan, 1)])
def test_bounds_must_be_finite_and_ordered(lower, upper):
    with pytest.raises(ValueError, match="finite and ordered"):
        FakeQuantizer(4).set_bounds(lower, upper)


@pytest.mark.parametrize("parametrization", ["absolute", "relative"])
@pytest.mark.parametrize("centre", [0.0, 1.0, -3e4])
def test_bounds_that_float32_cannot_tell_apart_are_widened(parametrization, centre):
    q = FakeQuantizer(1, QuantizerOptions(parametrization=parametrization))
    q.set_bounds(centre, np.nextafter(centre, np.inf))
    lower, upper = q.effective_bounds().numpy()
    assert lower < upper and abs(lower - centre) <= max(1e-6 * abs(centre), 1e-29)
    assert np.isfinite(q(paddle.full([3], centre)).numpy()).all()


def test_bounds_in_effect_are_known_beforehand():
    q = FakeQuantizer(2, QuantizerOptions(zero_point="integer"))
    found = q.bounds_after(0.2, 0.8)
    q.set_bounds(0.2, 0.8)
    np.testing.assert_array_equal(found, q.effective_bounds().numpy())
    assert found[0] == 0 and FakeQuantizer(2).bounds_after(0.25, 0.75) == (0.25, 0.75)


@pytest.mark.parametrize("bits", [0, 9, None, 2.0])
def test_bits_outside_1_to_8_are_refused(bits):
    with pytest.raises(ValueError, match="1 to 8"):
        FakeQuantizer(bits)


def test_closed_bounds_are_widened_around_their_centre():
    narrow, crossed, open_ = quantizer(4, 0, 1), quantizer(4, 0, 1), quantizer(4, 0, 1)
    narrow.bounds.set_value(np.array([2, 2], np.float32))
    crossed.bounds.set_value(np.array([0.6, 0.4], np.float32))
    assert keep_open([narrow, crossed, open_]) == 2
    for q, centre in ((narrow, 2), (crossed, 0.5), (open_, 0.5)):
        lower, upper = q.bounds.numpy()
        assert lower < upper and (lower + upper) / 2 == pytest.approx(centre, abs=1e-6)
    assert keep_open([narrow, crossed, open_]) == 0

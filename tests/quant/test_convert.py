import numpy as np
import paddle
import pytest

from ppsr2q.core.errors import UserError
from ppsr2q.quant import CalibrationSettings, Plan, PlanEntry, calibrate, get_bounds, named_quantizers, quantize, set_bounds
from ppsr2q.quant.convert import get_sublayer
from tests.quant.networks import Small

ENTRIES = [PlanEntry("conv"), PlanEntry("head.0", rectifier=True), PlanEntry("head.2")]


def images(seed=0):
    return paddle.to_tensor(np.random.default_rng(seed).random((2, 3, 6, 5), dtype=np.float32))


@pytest.fixture
def model():
    paddle.seed(0)
    return Small()


def eq1(x, bounds, bits):
    (a, b), step = bounds, (bounds[1] - bounds[0]) / (2**bits - 1)
    return np.round((np.clip(x, a, b) - a) / step) * step + a


def test_the_model_is_left_alone_and_the_copy_quantizes(model):
    before = {name: p.numpy().copy() for name, p in model.named_parameters()}
    student = quantize(model, Plan(ENTRIES, 4))
    calibrate(student, images())
    x = images(1)
    conv_bounds = get_bounds(student)
    xq = eq1(x.numpy(), conv_bounds["conv.input"], 4)
    wq = eq1(model.conv.weight.numpy(), conv_bounds["conv.weight"], 4)
    expected = paddle.nn.functional.conv2d(paddle.to_tensor(xq), paddle.to_tensor(wq), model.conv.bias, padding=1)
    np.testing.assert_allclose(student.conv(x).numpy(), expected.numpy(), atol=1e-5)
    tokens = paddle.rand([7, 8])
    wq = eq1(model.head[0].weight.numpy(), conv_bounds["head.0.weight"], 4)
    expected = eq1(tokens.numpy(), conv_bounds["head.0.input"], 4) @ wq + model.head[0].bias.numpy()
    np.testing.assert_allclose(student.head[0](tokens).numpy(), expected, atol=1e-5)
    for name, p in model.named_parameters():
        np.testing.assert_array_equal(p.numpy(), before[name])
        assert not p.stop_gradient
    trainable = [name for name, p in student.named_parameters() if not p.stop_gradient]
    assert len(trainable) == 6 and all(name.endswith("bounds") for name in trainable)


def test_256_levels_come_close_to_full_precision(model):
    student = quantize(model, Plan(ENTRIES, 8))
    calibrate(student, images())
    with paddle.no_grad():
        assert float((student(images()) - model(images())).abs().max()) < 0.05


def test_calibration_sees_full_precision_unless_progressive(model):
    def conv_outputs(progressive):
        student = quantize(model, Plan(ENTRIES, 1))
        seen = []
        student.head[0].register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0].numpy()))
        calibrate(student, images(), CalibrationSettings(progressive=progressive))
        return seen[0]
    full = model.conv(images()).transpose([0, 2, 3, 1]).numpy()
    np.testing.assert_allclose(conv_outputs(False), full, atol=1e-6)
    assert np.abs(conv_outputs(True) - full).max() > 1e-3


def test_bounds_can_be_carried_over_by_name(model):
    first, second = (quantize(model, Plan(ENTRIES, 2)) for _ in range(2))
    calibrate(first, images())
    set_bounds(second, get_bounds(first))
    np.testing.assert_array_equal(first(images()).numpy(), second(images()).numpy())
    with pytest.raises(ValueError, match="first is conv.input"):
        set_bounds(second, {name: b for name, b in get_bounds(first).items() if name != "conv.input"})


def test_an_overridden_tensor_stays_in_floating_point(model):
    student = quantize(model, Plan(ENTRIES, 4, {"head.2.*": None}))
    calibrate(student, images())
    x = paddle.rand([4, 6])
    np.testing.assert_allclose(student.head[2](x).numpy(), model.head[2](x).numpy(), atol=1e-6)
    assert "head.2.weight" not in named_quantizers(student)


def test_what_calibration_cannot_use_is_named(model):
    student = quantize(model, Plan(ENTRIES, 4))
    with pytest.raises(UserError, match="conv.input: holds NaN or infinite values"):
        calibrate(student, images() * float("nan"))
    student.head.forward = lambda x: x
    with pytest.raises(ValueError, match="did not reach 4 quantizers, the first is head.0.input"):
        calibrate(student, images())


def test_sublayers_by_name(model):
    assert get_sublayer(model, "head.2") is model.head[2]


def test_unsupported_convolutions_are_refused():
    layer = paddle.nn.Sequential(paddle.nn.Conv2D(3, 3, 3, padding=1, padding_mode="reflect"))
    with pytest.raises(ValueError, match="reflect"):
        quantize(layer, Plan([PlanEntry("0")], 4))

import copy

import numpy as np
import paddle
import pytest

from ppsr2q.core.errors import UserError
from ppsr2q.quant import (CalibrationSettings, Plan, PlanEntry, QuantLinear, calibrate, fix_bounds, get_bounds,
                          named_quantizers, quantize, set_bounds)
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


def test_a_layer_norm_hands_on_the_right_gradient():
    """Paddle leaves the scale of a frozen LayerNorm out of it, and all bounds before it would learn by that."""
    paddle.seed(0)
    norm = paddle.nn.LayerNorm(6)
    norm.weight.set_value(np.linspace(0.1, 8, 6, dtype=np.float32))
    student = quantize(paddle.nn.Sequential(paddle.nn.Linear(4, 6), norm, paddle.nn.Linear(6, 3)),
                       Plan([PlanEntry("0"), PlanEntry("2")], 3))
    x = paddle.rand([16, 4])
    calibrate(student, x)

    def gradient(trainable):
        student[1].weight.stop_gradient = not trainable
        student.clear_gradients()
        (student(x) * paddle.arange(3, dtype="float32")).sum().backward()
        return student[0].weight_quantizer.bounds.grad.numpy()
    np.testing.assert_allclose(gradient(False), gradient(True), rtol=1e-4)


def test_a_shared_layer_is_quantized_in_all_its_places():
    layer = paddle.nn.Linear(4, 4)
    student = quantize(paddle.nn.Sequential(paddle.nn.Sequential(layer), paddle.nn.Sequential(layer)),
                       Plan([PlanEntry("*.0")], 4))
    assert isinstance(student[0][0], QuantLinear) and student[1][0] is student[0][0]


@pytest.mark.parametrize("progressive", [False, True])
def test_an_activation_that_is_quantized_twice_is_named(progressive):
    class Recursive(paddle.nn.Layer):
        def __init__(self):
            super().__init__()
            self.step = paddle.nn.Linear(4, 4)

        def forward(self, x):
            return self.step(x) + self.step(10 * x)
    with pytest.raises(UserError, match="step.input: reached more than once in a forward pass"):
        calibrate(quantize(Recursive(), Plan([PlanEntry("step")], 4)), paddle.rand([3, 4]),
                  CalibrationSettings(progressive=progressive))


def test_fixed_bounds_act_while_later_ones_are_searched_progressively():
    linear = paddle.nn.Linear(4, 4)
    linear.weight.set_value(paddle.eye(4))
    linear.bias.set_value(paddle.zeros([4]))
    plan = Plan([PlanEntry("0", fixed=(-0.1, 0.1)), PlanEntry("1")], 8, {"*.weight": None})
    student = quantize(paddle.nn.Sequential(linear, paddle.nn.Linear(4, 4)), plan)
    x = paddle.linspace(-1, 1, 64).reshape([16, 4])
    assert calibrate(student, x, CalibrationSettings(progressive=True))["1.input"][1] <= 0.1
    student = quantize(paddle.nn.Sequential(linear, paddle.nn.Linear(4, 4)), plan)
    assert calibrate(student, x)["1.input"][1] > 0.5


def test_a_graph_needs_bounds_that_are_numbers(model, tmp_path):
    def save(student):
        spec = [paddle.static.InputSpec([2, 3, 6, 5], "float32")]
        paddle.jit.save(paddle.jit.to_static(student, input_spec=spec, full_graph=True), str(tmp_path / "m"))
    student = quantize(model, Plan(ENTRIES, 4))
    calibrate(student, images())
    expected = student(images()).numpy()
    with pytest.raises(RuntimeError, match="call ppsr2q.quant.fix_bounds"):
        save(copy.deepcopy(student))
    fix_bounds(named_quantizers(student).values())
    save(student)
    np.testing.assert_allclose(paddle.jit.load(str(tmp_path / "m"))(images()).numpy(), expected, atol=1e-5)


def test_sublayers_by_name(model):
    assert get_sublayer(model, "head.2") is model.head[2]


def test_unsupported_convolutions_are_refused():
    layer = paddle.nn.Sequential(paddle.nn.Conv2D(3, 3, 3, padding=1, padding_mode="reflect"))
    with pytest.raises(ValueError, match="reflect"):
        quantize(layer, Plan([PlanEntry("0")], 4))

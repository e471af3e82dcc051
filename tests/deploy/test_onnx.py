"""The ONNX form of packed models, run by ONNX Runtime: operators against numpy, the network against Paddle's."""
import numpy as np
import pytest

from ppsr2q.core.errors import UserError
from ppsr2q.core.plan import PlanRules
from ppsr2q.deploy.packed import PackedModel, TensorQuantizer, write_packed
from tests.deploy.models import random_model

onnx = pytest.importorskip("onnx", reason="needs the extra deploy")
runtime = pytest.importorskip("onnxruntime", reason="needs the extra deploy")

from ppsr2q.deploy import load, onnx_operators as operators  # noqa: E402
from ppsr2q.deploy.onnx_export import load_upscaler, to_onnx  # noqa: E402
from ppsr2q.deploy.onnx_graph import GraphBuilder, model  # noqa: E402


def run(build, shapes, dtype=np.float32, **arrays):
    """Outputs, of the given shapes, of a graph: ``build(builder, names of inputs) -> names of outputs``."""
    def info(name, kind, shape):
        return onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind)), shape)

    g = GraphBuilder()
    outputs = [info(name, dtype, shape) for name, shape in zip(build(g, *arrays), shapes)]
    made = model(g, [info(name, array.dtype, array.shape) for name, array in arrays.items()], outputs, {})
    session = runtime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, arrays)


def quantized(x, quantizer):
    """Eq. 1 in float64."""
    step = (quantizer.upper - quantizer.lower) / (2**quantizer.bits - 1)
    return np.rint((np.clip(x, quantizer.lower, quantizer.upper) - quantizer.lower) / step) * step + quantizer.lower


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("form", [(True, np.uint8), (True, np.int8), (False, np.uint8)])
@pytest.mark.parametrize("lower", [-0.731, 0.217])
def test_a_quantized_linear_layer_is_exact_for_any_lower_bound(bits, form, lower):
    rng = np.random.default_rng(bits)
    of_input, of_weight = TensorQuantizer(bits, lower, 1.9), TensorQuantizer(bits, -0.313, 0.477)
    x = rng.normal(0.5, 1, (40, 48)).astype(np.float32)
    weight = quantized(rng.normal(0, 0.3, (48, 16)), of_weight).astype(np.float32)
    bias = rng.normal(size=16).astype(np.float32)
    y, = run(lambda g, name: [operators.linear(g, name, weight, bias, of_input, of_weight, operators.Form(*form))],
             [(40, 16)], x=x)
    assert np.abs(y - (quantized(x.astype(np.float64), of_input) @ weight + bias)).max() < 2e-5


def test_counting_sort_is_the_stable_sort():
    index = np.random.default_rng(0).integers(0, 5, 300)
    order, position = run(lambda g, name: operators.counting_sort(g, name, 7, 300), [(300,), (300,)], np.int64,
                          index=index)
    assert (order == np.argsort(index, kind="stable")).all()
    assert (position == np.argsort(order)).all()


@pytest.mark.parametrize("quantizer", [None, TensorQuantizer(4, -0.4, 0.9)])
def test_scan_in_chunks_is_the_recurrence(quantizer):
    rng = np.random.default_rng(1)
    length, channels, states = 96, 5, 3
    delta, u = rng.uniform(0.01, 1, (length, channels)), rng.normal(size=(length, channels))
    B, C = rng.normal(size=(2, length, states))
    A, D = -rng.uniform(0.1, 2, (channels, states)), rng.normal(size=channels)
    h, expected = np.zeros((channels, states)), []
    for t in range(length):
        h = np.exp(delta[t, :, None] * A) * h + (delta[t] * u[t])[:, None] * B[t]
        expected.append((h if quantizer is None else quantized(h, quantizer)) @ C[t] + D * u[t])
    arrays = {name: x.astype(np.float32) for name, x in zip(("delta", "u", "B", "C"), (delta, u, B, C))}
    y, = run(lambda g, *names: [operators.selective_scan(g, *names, A.astype(np.float32), D.astype(np.float32),
                                                         quantizer, chunk=16)],
             [(length, channels)], **arrays)
    wrong = np.abs(y - expected) > 1e-4
    assert wrong.mean() <= (0 if quantizer is None else 0.02)  # a state within rounding of a threshold


@pytest.mark.parametrize("scale, size", [(2, (33, 17)), (4, (16, 48)), (2, (1, 1))])
def test_the_full_precision_graph_is_the_paddle_network(scale, size):
    paddle = pytest.importorskip("paddle")
    from ppsr2q.models import ARCHITECTURES
    from ppsr2q.models.initialization import official_initialization
    network = ARCHITECTURES["mambairv2_light"](scale)
    official_initialization(network, 3)
    network.eval()
    floats = {name: parameter.numpy() for name, parameter in network.named_parameters()}
    packed = PackedModel({"name": "mambairv2_light", "scale": scale}, {}, {}, floats,
                         {"plan": PlanRules([], 4, {}).describe()})
    image = np.random.default_rng(0).random((*size, 3), dtype=np.float32)
    with paddle.no_grad():
        expected = network(paddle.to_tensor(image.transpose(2, 0, 1)[None]))[0].numpy().transpose(1, 2, 0)
    assert np.abs(load_upscaler(packed, threads=1).upscale(image) - expected).max() < 1e-5


def test_a_quantized_convolution_of_the_frame_is_the_paddle_network():
    """Not in the default plan, but a plan of one's own may name it."""
    paddle = pytest.importorskip("paddle")
    from ppsr2q.deploy.packing import pack
    from ppsr2q.quant import Plan, PlanEntry, calibrate, get_bounds, quantize
    from ppsr2q.spr2q.fuse import fuse
    from ppsr2q.workflow.networks import upscaler
    from tests.deploy.networks import random_network
    network, plan = random_network(), Plan([PlanEntry("conv_after_body")], 4)
    student, image = quantize(network, plan), np.random.default_rng(0).random((24, 20, 3), dtype=np.float32)
    calibrate(student, paddle.to_tensor(image.transpose(2, 0, 1)[None]))
    bounds = get_bounds(student)
    fuse(student, plan.resolve(network))
    packed = pack(student, {"name": "mambairv2_light", "scale": 2}, plan, bounds, {})
    found = load_upscaler(packed, 1, "float").upscale(image)
    assert np.abs(found - upscaler(student)(image)).max() < 1e-4 < np.abs(found - upscaler(network)(image)).max()


def test_a_failing_engine_and_wrong_images_are_named(monkeypatch):
    loaded, image = load_upscaler(random_model(), threads=1), np.zeros((5, 7, 3), np.float32)

    def fails(images):
        raise Exception("bad allocation\nat line 7")
    monkeypatch.setattr(loaded, "run", fails)
    with pytest.raises(UserError, match=r"ONNX Runtime failed on an image of 7 x 5 pixels \(bad allocation\); tiles"):
        loaded.upscale(image)
    with pytest.raises(ValueError, match="float32 of shape"):
        loaded.upscale(image.astype(np.float64))


def test_a_packed_file_runs_and_bad_arguments_are_named(tmp_path):
    write_packed(tmp_path / "m.safetensors", random_model())
    loaded = load(tmp_path / "m.safetensors", threads=1, engine="onnxruntime")
    assert loaded.upscale(np.full((5, 7, 3), 0.5, np.float32)).shape == (10, 14, 3) and loaded.scale == 2
    with pytest.raises(UserError, match="threads must be a whole number from 1 to 1024, got 0"):
        load(tmp_path / "m.safetensors", threads=0, engine="onnxruntime")
    with pytest.raises(UserError, match="--target jpeg: expected one of ort"):
        to_onnx(random_model(), "jpeg")

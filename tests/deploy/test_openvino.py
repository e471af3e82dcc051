"""Packed models in OpenVINO: operators against numpy, the network against ONNX Runtime's."""
import numpy as np
import pytest

from ppsr2q.core.errors import UserError
from ppsr2q.core.plan import PlanRules
from ppsr2q.deploy.architectures import ARCHITECTURES
from ppsr2q.deploy.packed import PackedModel, TensorQuantizer

onnx = pytest.importorskip("onnx", reason="needs the extra deploy")
pytest.importorskip("onnxruntime", reason="needs the extra deploy")
openvino = pytest.importorskip("openvino", reason="needs the extra deploy")

from ppsr2q.deploy import onnx_export, onnx_operators as operators  # noqa: E402
from ppsr2q.deploy.onnx_graph import GraphBuilder, model  # noqa: E402
from ppsr2q.deploy.openvino import OpenvinoUpscaler, write_openvino  # noqa: E402
from ppsr2q.deploy.openvino.extension import scan_library  # noqa: E402
from tests.deploy.test_onnx import quantized  # noqa: E402

LENGTH, CHANNELS, STATES = 96, 20, 8  # channels: two vectors of 8 lanes and a part of one


@pytest.fixture(scope="module")
def library():
    try:
        return scan_library()
    except UserError as error:
        pytest.skip(str(error))


def compiled(build, output_shape, extension=None, **shapes):
    """OpenVINO's network of a graph: ``build(builder, names of inputs) -> name of the output``."""
    def info(name, shape):
        return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

    g = GraphBuilder()
    made = model(g, [info(name, shape) for name, shape in shapes.items()], [info(build(g, *shapes), output_shape)], {})
    core = openvino.Core()
    if extension is not None:
        core.add_extension(str(extension))
    return core.compile_model(core.read_model(made.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


@pytest.mark.parametrize("bits, weight_bits", [(8, 7), (7, 8), (4, 4)])
def test_a_quantized_linear_layer_is_exact_and_runs_on_integers(bits, weight_bits):
    """Not (8, 8): without VNNI instructions OpenVINO adds two products in 16 bits, where they saturate."""
    rng = np.random.default_rng(bits)
    of_input, of_weight = TensorQuantizer(bits, -0.731, 1.9), TensorQuantizer(weight_bits, -0.313, 0.477)
    x = rng.normal(0.5, 1, (64, 48)).astype(np.float32)
    weight = quantized(rng.normal(0, 0.1, (48, 16)), of_weight).astype(np.float32)
    bias = rng.normal(size=16).astype(np.float32)
    form = operators.Form(*onnx_export.TARGETS["openvino"])
    network = compiled(lambda g, name: operators.linear(g, name, weight, bias, of_input, of_weight, form), (64, 16),
                       x=("length", 48))
    y, = network({"x": x}).values()
    assert np.abs(y - (quantized(x.astype(np.float64), of_input) @ weight + bias)).max() < 2e-5
    if "INT8" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        kinds = [node.get_rt_info() for node in network.get_runtime_model().get_ops()]
        products = [kind["runtimePrecision"].value for kind in kinds if kind["layerType"].value == "FullyConnected"]
        assert products == ["u8"]


@pytest.mark.parametrize("quantizer", [None, TensorQuantizer(4, -0.4, 0.9)])
def test_the_scan_operator_is_the_recurrence(library, quantizer):
    rng = np.random.default_rng(1)
    delta, u = rng.normal(-1, 1, (LENGTH, CHANNELS)), rng.normal(size=(LENGTH, CHANNELS))
    B, C = rng.normal(size=(2, LENGTH, STATES))
    A, D, bias = -rng.uniform(0.1, 2, (CHANNELS, STATES)), *rng.normal(size=(2, CHANNELS))
    h, expected = np.zeros((CHANNELS, STATES)), []
    for t in range(LENGTH):
        step = np.log1p(np.exp(delta[t] + bias))
        h = np.exp(step[:, None] * A) * h + (step * u[t])[:, None] * B[t]
        expected.append((h if quantizer is None else quantized(h, quantizer)) @ C[t] + D * u[t])
    constants = [x.astype(np.float32) for x in (A, D, bias)]
    network = compiled(lambda g, *names: operators.scan_operator(g, *names, *constants, quantizer), ("length", CHANNELS),
                       library, delta=("length", CHANNELS), u=("length", CHANNELS), B=("length", STATES),
                       C=("length", STATES))
    y, = network({"delta": delta.astype(np.float32), "u": u.astype(np.float32), "B": B.astype(np.float32),
                  "C": C.astype(np.float32)}).values()
    wrong = np.abs(y - expected) > 1e-4
    assert wrong.mean() <= (0 if quantizer is None else 0.02)  # a state within rounding of a threshold


@pytest.mark.parametrize("optimize", [False, True])
def test_the_written_network_answers_as_in_onnx_runtime(optimize, tmp_path, request):
    if optimize:
        request.getfixturevalue("library")
    rng = np.random.default_rng(3)
    description = ARCHITECTURES["mambairv2_light"][1](2)
    floats = {name: (0.1 * rng.standard_normal(shape)).astype(np.float32)
              for name, shape in description.parameters.items()}
    for name in floats:  # one class for all pixels: rounding moves none of them in the scan
        if name.endswith("assm.route.0.weight"):
            floats[name][:] = 0
    packed = PackedModel({"name": "mambairv2_light", "scale": 2}, {}, {}, floats,
                         {"plan": PlanRules([], 4, {}).describe()})
    write_openvino(tmp_path / "ir", packed, optimize)
    assert (tmp_path / "ir" / "ppsr2q_scan.so").exists() == optimize
    network = OpenvinoUpscaler(tmp_path / "ir", 2, threads=1)
    expected = onnx_export.load_upscaler(packed, 1, "float")
    for size in ((5, 7), (20, 33)):
        image = rng.random((*size, 3), dtype=np.float32)
        assert np.abs(network.upscale(image) - expected.upscale(image)).max() < 1e-4


def test_bad_arguments_are_named(tmp_path):
    with pytest.raises(UserError, match="threads must be"):
        OpenvinoUpscaler(openvino.Model([], [], "empty"), 2, threads=0)
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(UserError, match="no bfloat16"):
            OpenvinoUpscaler(openvino.Model([], [], "empty"), 2, precision="bf16")

"""The integer runtime against the same network in Paddle."""
import dataclasses
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import paddle
import pytest

from ppsr2q.core import native_build
from ppsr2q.core.errors import UserError
from ppsr2q.deploy import load
from ppsr2q.deploy.packed import PackedModel, TensorQuantizer, write_packed
from ppsr2q.deploy.runtime import Runtime, library
from ppsr2q.workflow.networks import upscaler
from tests.deploy.fuzz_runtime import fuzz
from tests.deploy.networks import only, quantized, random_image, random_network, steady_network

ROOT = Path(__file__).resolve().parents[2]
SCAN = "assm.selectiveScan.points"
PARTS = {
    "q, k, v layers": ["q.*", "k.*", "v.*"],
    "one factor of a layer": ["q.weight", "k.input"],
    "attention layer's output": ["win_mhsa.proj.*"],
    "scores": ["win_mhsa.points.q", "win_mhsa.points.k"],
    "one factor of the scores": ["win_mhsa.points.k"],
    "mixed values": ["win_mhsa.points.map", "win_mhsa.points.v"],
    "map alone": ["win_mhsa.points.map"],
    "values alone": ["win_mhsa.points.v"],
    "feed-forward layers": ["convffn*.fc1.*", "convffn*.fc2.*"],
    "5x5 convolutions": ["convffn*.sg.conv.*"],
    "weights of the 5x5 convolutions": ["convffn*.sg.conv.weight"],
    "inputs of a 5x5 convolution": ["convffn1.sg.conv.input"],
    "3x3 convolution": ["assm.CPE.0.*"],
    "state space layers": ["assm.in_proj.0.*", "assm.out_proj.*"],
    "router": ["assm.route.*.*"],
    "x_proj": [f"{SCAN}.x_proj_weight", f"{SCAN}.u"],
    "dt_proj": [f"{SCAN}.dt", f"{SCAN}.dt_projs_weight"],
    "scan tables": [f"{SCAN}.u", f"{SCAN}.delta"],
    "scan tables and states": [f"{SCAN}.u", f"{SCAN}.delta", f"{SCAN}.states"],
    "states alone": [f"{SCAN}.states"],
    "delta alone": [f"{SCAN}.delta"],
    "B and C": [f"{SCAN}.B", f"{SCAN}.C"],
    "A and dt bias": [f"{SCAN}.A", f"{SCAN}.dt_bias"],
    "prompts": ["assm.points.*", "points.embeddingA"],
    "embeddings": ["assm.points.embeddingB", "points.embeddingA"],
}


@pytest.fixture(scope="module", autouse=True)
def compiler():
    try:
        native_build.find_compiler()
    except native_build.KernelsUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def in_floats():
    """(network, packed form) with nothing quantized."""
    return quantized(random_network(), 4, {"**": None})


@pytest.fixture(scope="module")
def at_4_bits():
    return quantized(random_network(), 4)


def run_layer(network, index, tokens):
    layer = network.blocks()[index][1]
    with paddle.no_grad():
        return layer(paddle.to_tensor(tokens.reshape(1, -1, 48)), tokens.shape[:2]).numpy().reshape(tokens.shape)


def assert_layers_agree(student, runtime):
    """Two layers (one of them shifted) give the same tokens, but for those behind a code that rounding moved: the scan
    hands it to tokens after it, so that a single one can reach a tenth of them. test_runtime_gate counts the codes."""
    tokens = np.random.default_rng(1).standard_normal((32, 48, 48)).astype("float32")
    for index in (0, 1):
        expected = run_layer(student, index, tokens)
        error = np.abs(runtime.run_layer(index, tokens) - expected).max(axis=2) / np.abs(expected).max()
        assert np.median(error) <= 1e-5 and (error > 1e-3).mean() <= 0.25, index


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (16, 16), (17, 5), (37, 33), (48, 80)])
def test_floats_equal_paddle_at_every_size(in_floats, size):
    network, model = in_floats
    image = random_image(*size)
    expected = upscaler(network)(image)
    found = Runtime(model, 2).upscale(image)
    assert found.shape == (2 * size[0], 2 * size[1], 3) and found.dtype == np.float32
    assert np.abs(found - expected).max() <= 1e-4 * max(1, np.abs(expected).max())


def test_scale_4():
    network, model = quantized(random_network(4), 4, {"**": None})
    expected, found = upscaler(network)(random_image(20, 17)), Runtime(model, 2).upscale(random_image(20, 17))
    assert found.shape == (80, 68, 3)
    assert np.abs(found - expected).max() <= 1e-4 * max(1, np.abs(expected).max())


@pytest.mark.parametrize("part", list(PARTS))
def test_every_quantized_part_equals_paddle(part):
    network = random_network() if part in ("router", "prompts", "embeddings") else steady_network()
    student, model = quantized(network, 4, only(*PARTS[part], bits=4))
    assert_layers_agree(student, Runtime(model, 2))


@pytest.mark.parametrize("bits", [1, 2, 5, 6, 8])
@pytest.mark.parametrize("part", ["feed-forward layers", "mixed values", "5x5 convolutions", "scan tables and states"])
def test_every_width_equals_paddle(part, bits):
    student, model = quantized(steady_network(), bits, only(*PARTS[part], bits=bits))
    assert_layers_agree(student, Runtime(model, 2))


def test_factors_of_different_widths():
    overrides = {**only("q.*", "k.*", "v.*", "win_mhsa.points.*", bits=4), "**.q.input": 8, "**.k.weight": 2,
                 "**.points.map": 8, "**.points.k": 3}
    student, model = quantized(steady_network(), 4, overrides)
    assert_layers_agree(student, Runtime(model, 2))


@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_equal_those_of_equation_1(bits):
    """But for values within float rounding of a threshold, at most one in 10^5 of those that are not clipped."""
    lower, upper = np.float32(-1.3), np.float32(2.1)
    x = np.random.default_rng(bits).uniform(-1.5, 2.3, 10**6 + 5).astype(np.float32)
    step = (upper - lower) / np.float32(2**bits - 1)
    position = (np.clip(x, lower, upper) - lower) / step
    found = np.empty(x.size, np.uint8)
    functions = library.load_library(library.chosen_set())
    functions.ppsr2q_runtime_codes(x.ctypes.data, x.size, lower, upper, bits, found.ctypes.data)
    differ = found != np.rint(position)
    assert np.abs(position[differ] % 1 - 0.5).max(initial=0) < 4e-7 * 2**bits
    assert differ.sum() <= 10 * 2**max(bits - 4, 0)  # positions of many bits have fewer bits left for their fraction


def test_codes_are_clipped():
    x = np.array([-np.inf, -3e38, -2, -1, 1, 2, 3e38], np.float32)
    found = np.empty(x.size, np.uint8)
    library.load_library(library.chosen_set()).ppsr2q_runtime_codes(x.ctypes.data, x.size, -1, 1, 4, found.ctypes.data)
    assert found.tolist() == [0, 0, 0, 0, 15, 15, 15]


def test_results_do_not_depend_on_threads(at_4_bits):
    image = random_image(40, 50)
    one, two, five = (Runtime(at_4_bits[1], threads).upscale(image) for threads in (1, 2, 5))
    assert np.array_equal(one, two) and np.array_equal(one, five)


def test_one_object_serves_many_threads(at_4_bits):
    runtime = Runtime(at_4_bits[1], 2)
    images = [random_image(16 + 7 * i, 30, seed=i) for i in range(4)]
    expected = [runtime.upscale(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(pool.map(runtime.upscale, images * 3), expected * 3):
            assert np.array_equal(found, wanted)


@pytest.mark.parametrize("name", list(library.instruction_sets()))
def test_instruction_sets_agree(name, at_4_bits, in_floats, tmp_path):
    """All are built; what this machine runs is compared."""
    if not library.supported(name):
        fast = dataclasses.replace(library.runtime_library(name), compile_flags=("-O1", "-pthread"))
        native_build.build(fast, tmp_path / "runtime.so")
        pytest.skip(f"built; this machine does not run {name}")
    student, model = quantized(steady_network(), 4, only(*PARTS["feed-forward layers"], *PARTS["mixed values"], bits=4))
    assert_layers_agree(student, Runtime(model, 2, name))
    image = random_image(20, 30)
    expected = upscaler(in_floats[0])(image)
    assert np.abs(Runtime(in_floats[1], 2, name).upscale(image) - expected).max() <= 1e-4 * np.abs(expected).max()


def test_the_instruction_set_can_be_chosen(monkeypatch):
    name = list(library.instruction_sets())[-1]
    monkeypatch.setenv("PPSR2Q_RUNTIME_ISA", name)
    assert library.chosen_set() == name
    monkeypatch.setenv("PPSR2Q_RUNTIME_ISA", "sse9")
    with pytest.raises(UserError, match="PPSR2Q_RUNTIME_ISA='sse9': this processor runs"):
        library.chosen_set()


def test_other_instruction_sets_are_named_before_anything_is_built(at_4_bits):
    with pytest.raises(UserError, match="instruction_set='sse9': this processor runs"):
        Runtime(at_4_bits[1], 1, "sse9")


def test_no_compiler_is_an_error_that_says_what_helps(at_4_bits, monkeypatch, tmp_path):
    library.load_library.cache_clear()
    monkeypatch.setenv("PPSR2Q_CACHE", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="no C\\+\\+ compiler was found: install g\\+\\+"):
        Runtime(at_4_bits[1])
    library.load_library.cache_clear()


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2", 10**6])
def test_impossible_threads_are_refused(at_4_bits, threads):
    with pytest.raises(UserError, match="threads must be a whole number from 1"):
        Runtime(at_4_bits[1], threads)


@pytest.mark.parametrize("image, said", [
    (np.zeros((4, 4, 3)), "float32 of shape"), (np.zeros((4, 4), np.float32), "float32 of shape"),
    (np.zeros((4, 4, 4), np.float32), "float32 of shape"), ([[1.0]], "got list"),
    (np.zeros((0, 4, 3), np.float32), "empty"), (np.full((4, 4, 3), np.nan, np.float32), "NaN"),
    (np.full((4, 4, 3), np.inf, np.float32), "infinite"),
])
def test_impossible_images_are_refused(at_4_bits, image, said):
    with pytest.raises(ValueError, match=said):
        Runtime(at_4_bits[1], 1).upscale(image)


def test_an_image_beyond_the_largest_side_is_work_for_tiles(at_4_bits):
    with pytest.raises(UserError, match="at most 32768, got 1 x 32769; use tiles"):
        Runtime(at_4_bits[1], 1).upscale(np.zeros((32769, 1, 3), np.float32))


@pytest.mark.parametrize("index, shape", [(20, (16, 16)), (-1, (16, 16)), (0, (16, 17)), (0, (8, 16))])
def test_impossible_layers_are_refused(at_4_bits, index, shape):
    with pytest.raises(ValueError, match="layer from 0 to 19"):
        Runtime(at_4_bits[1], 1).run_layer(index, np.zeros((*shape, 48), np.float32))


def test_images_need_not_be_contiguous(at_4_bits):
    runtime, image = Runtime(at_4_bits[1], 1), random_image(20, 24)
    assert np.array_equal(runtime.upscale(image.transpose(1, 0, 2)),
                          runtime.upscale(np.ascontiguousarray(image.transpose(1, 0, 2))))


def test_a_model_that_does_not_fit_is_refused(at_4_bits):
    model = at_4_bits[1]
    floats = {name: value for name, value in model.floats.items() if name != "conv_first.bias"}
    with pytest.raises(UserError, match="conv_first.bias: missing"):
        Runtime(PackedModel(model.architecture, model.quantizers, model.codes, floats, model.metadata))
    floats = {**model.floats, "conv_first.bias": np.zeros(47, np.float32)}
    with pytest.raises(UserError, match="conv_first.bias: expected 48 numbers, got 47"):
        Runtime(PackedModel(model.architecture, model.quantizers, model.codes, floats, model.metadata))


def test_what_it_would_not_quantize_is_refused(at_4_bits):
    model = at_4_bits[1]
    layer = "layers.0.residual_group.layers.0.assm.points.one_hot"
    for name, bounds, said in (("conv_after_body.input", (-1, 1), "takes it in floating point only"),
                               (layer, (0, 2), "bounds of 0 and 1 only")):
        quantizers = {**model.quantizers, name: TensorQuantizer(4, *bounds)}
        with pytest.raises(UserError, match=said):
            Runtime(PackedModel(model.architecture, quantizers, model.codes, model.floats, model.metadata))


def test_an_image_beyond_the_free_memory_is_refused(at_4_bits, monkeypatch):
    runtime, image = Runtime(at_4_bits[1], 1), random_image(20, 24)
    needed = 32 * 32 * 1800 + 20 * 24 * 12 * 2**2
    monkeypatch.setattr("ppsr2q.core.environment.available_memory", lambda: needed - 1)
    with pytest.raises(UserError, match=r"24 x 20 pixels needs about .* use tiles \(predict --tile\)"):
        runtime.upscale(image)
    monkeypatch.setattr("ppsr2q.core.environment.available_memory", lambda: needed)
    runtime.upscale(image)


def test_a_file_is_all_it_needs(at_4_bits, tmp_path):
    """Written, then read and run by a process in which Paddle cannot be imported."""
    model = at_4_bits[1]
    write_packed(tmp_path / "model.safetensors", model)
    np.save(tmp_path / "image.npy", random_image(20, 24))
    code = ("import sys; sys.modules['paddle'] = None; import numpy as np; from ppsr2q.deploy import load; "
            "np.save(sys.argv[3], load(sys.argv[1], threads=2).upscale(np.load(sys.argv[2])))")
    subprocess.run([sys.executable, "-c", code, *(str(tmp_path / name) for name in
                                                 ("model.safetensors", "image.npy", "out.npy"))],
                   check=True, env=dict(os.environ, PYTHONPATH=str(ROOT)))
    here = load(tmp_path / "model.safetensors", threads=1)
    assert here.scale == 2
    assert np.array_equal(np.load(tmp_path / "out.npy"), here.upscale(random_image(20, 24)))


def test_damaged_files_are_refused_or_run(at_4_bits, tmp_path, monkeypatch):
    """A fast form of fuzz_runtime.py, without sanitizers."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    write_packed(tmp_path / "model.safetensors", at_4_bits[1])
    counts = fuzz(tmp_path / "model.safetensors", 150, tmp_path, np.random.default_rng(0))
    assert min(counts["ran"], counts["refused"]) >= 30


def test_no_second_openmp_runtime_is_loaded():
    loaded = Path(library.load_library(library.chosen_set())._name).read_bytes()
    assert b"libgomp" not in loaded and b"libiomp" not in loaded

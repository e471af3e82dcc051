"""One source for AVX2, baseline x86 and AVX-512: all are built, what this machine runs is compared."""
import ctypes
import platform
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle import nn

from ppsr2q import ops
from ppsr2q.core import native_build
from ppsr2q.ops import native
from tests.ops import comparison
from tests.ops.comparison import point, trainable

VARIANTS = {"SSE2": "-march=x86-64", "AVX2": "-march=x86-64-v3", "AVX-512": "-march=x86-64-v4"}
NEEDED = {"SSE2": "sse2", "AVX2": "avx2", "AVX-512": "avx512vl"}


@pytest.fixture(scope="module", params=list(VARIANTS))
def variant(request, tmp_path_factory):
    """The kernels compiled for another instruction set, in place of those for this machine."""
    comparison.require_kernels()
    if platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip("x86 instruction sets")
    output = tmp_path_factory.mktemp("variant") / "kernels.so"
    # -O1: compiles in half the time, and is tested too
    native_build.build(native.kernels([VARIANTS[request.param], "-O1"]), output)
    if NEEDED[request.param] not in Path("/proc/cpuinfo").read_text():
        pytest.skip(f"built; this machine does not run {request.param}")
    library, original = ctypes.CDLL(str(output)), native._attempt
    native._attempt = lambda: (library, None)
    native.function.cache_clear()
    assert native.instruction_set() == request.param
    yield request.param
    native._attempt = original
    native.function.cache_clear()


@pytest.fixture(autouse=True)
def use(variant):
    return variant


def test_fake_quantize():
    x, bounds = trainable(3, 701), trainable(2)
    bounds.set_value(np.array([-0.9, 1.7], "float32"))
    comparison.assert_kernel_equals_reference("fake_quantize", lambda: ops.fake_quantize(x, bounds, 4),
                                              {"x": x, "bounds": bounds}, flips=True)


def test_norm_linear():
    x, norm, layers = trainable(2, 300, 60), nn.LayerNorm(60), [nn.Linear(60, n) for n in (60, 19)]
    watched = {"x": x, "scale": norm.weight, "weight": layers[0].weight, "bias": layers[1].bias}
    comparison.assert_kernel_equals_reference(
        "norm_linear", lambda: ops.norm_linear(x, norm, layers), watched)


def test_selective_scan():
    rng = np.random.default_rng(0)
    shapes = ((2, 70, 20), (2, 70, 20), (20, 8), (2, 70, 8), (2, 70, 8), (20,), (20,))
    tensors = [paddle.to_tensor(rng.standard_normal(s).astype("float32"),
                                stop_gradient=False) for s in shapes]
    tensors[2].set_value(-paddle.exp(tensors[2]))
    comparison.assert_kernel_equals_reference(
        "selective_scan", lambda: ops.selective_scan(*tensors, state_point=point(4, -0.5, 0.5)),
        {str(i): t for i, t in enumerate(tensors)}, flips=True)


def test_routed_prompt():
    logits, table = trainable(1, 300, 37, scale=3.0), trainable(37, 5, seed=1)
    index = paddle.argmax(logits.detach(), axis=-1)
    comparison.assert_kernel_equals_reference(
        "routed_prompt", lambda: ops.routed_prompt(logits, index, table), {"logits": logits, "table": table})


def test_window_attention():
    q, k, v = (trainable(1, 256, 24, seed=i) for i in range(3))
    table = trainable(225, 2)
    points = ops.QuantPoints("q", "k", "v", "map")
    comparison.assert_kernel_equals_reference(
        "window_attention", lambda: ops.window_attention(q, k, v, table, (16, 16), 2, 8, 4, points),
        {"q": q, "k": k, "v": v, "table": table})


def test_depthwise_operators():
    x, norm = trainable(1, 12 * 9, 40), nn.LayerNorm(20)
    wide, gate = nn.Conv2D(20, 20, 5, padding=2, groups=20), nn.Conv2D(40, 40, 3, padding=1, groups=40)
    comparison.assert_kernel_equals_reference(
        "gated_mixing", lambda: ops.gated_mixing(x, norm, wide, (12, 9)),
        {"x": x, "scale": norm.weight, "weight": wide.weight})
    comparison.assert_kernel_equals_reference(
        "positional_gate", lambda: ops.positional_gate(x, gate, (12, 9)),
        {"x": x, "weight": gate.weight, "bias": gate.bias})

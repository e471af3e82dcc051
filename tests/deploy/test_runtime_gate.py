"""The runtime's gate: a trained network, layer by layer, on what the reference reads in its own forward."""
import numpy as np
import paddle
import pytest

from ppsr2q.core import native_build
from ppsr2q.core.config import load_config
from ppsr2q.data.embedded import write_embedded
from ppsr2q.data.datasets import TestSet
from ppsr2q.deploy.runtime import Runtime, library
from ppsr2q.ops.fake_quantize import codes
from ppsr2q.quant.convert import named_quantizers
from ppsr2q.workflow.networks import build_network
from tests.deploy.networks import quantized

HEIGHT, WIDTH = 48, 64


@pytest.fixture(scope="module", params=[8, 4, 2, 1])
def student(request, tmp_path_factory):
    """(bits, fused student of the embedded network, its packed form, image float32 (HEIGHT, WIDTH, 3))."""
    try:
        native_build.find_compiler()
    except native_build.KernelsUnavailable as error:
        pytest.skip(str(error))
    root = write_embedded(tmp_path_factory.mktemp("data"))
    lr = next(iter(TestSet(root, "Embedded", 2))).lr
    assert lr.shape[0] >= HEIGHT and lr.shape[1] >= WIDTH
    image = lr[:HEIGHT, :WIDTH].astype(np.float32) / np.float32(255)
    network = build_network(load_config(None, ["model.weights=embedded"]))
    return (request.param, *quantized(network, request.param, image=image), image)


def forward(network, image):
    with paddle.no_grad():
        network(paddle.to_tensor(image.transpose(2, 0, 1)[None]))


def test_quantizers_give_the_references_codes(student):
    """At most 1 in 10^5 differs, and only where a value lies within float rounding of a threshold."""
    bits, network, model, image = student
    functions, total, differing = library.load_library(library.chosen_set()), 0, 0

    def compare(quantizer, x):
        nonlocal total, differing
        bounds = quantizer.effective_bounds()
        lower, upper = bounds.numpy()
        values, expected = x.numpy().reshape(-1), codes(x, bounds, bits).numpy().reshape(-1)
        found = np.empty(values.size, np.uint8)
        functions.ppsr2q_runtime_codes(values.ctypes.data, values.size, lower, upper, bits, found.ctypes.data)
        position = (values[found != expected].astype(np.float64) - lower) / (float(upper) - lower) * (2**bits - 1)
        assert np.abs(position % 1 - 0.5).max(initial=0) < 1e-6 * 2**bits
        total, differing = total + values.size, differing + position.size
        return codes(x, bounds, bits) * ((bounds[1] - bounds[0]) / (2**bits - 1)) + bounds[0]

    quantizers = named_quantizers(network)
    for quantizer in quantizers.values():
        quantizer.observer = compare
    try:
        forward(network, image)
    finally:
        for quantizer in quantizers.values():
            quantizer.observer = None
    assert total > 10**7 and differing <= 1e-5 * total


def test_layers_agree_on_the_references_inputs(student):
    """Equal but for tokens that a code moved by rounding has changed. One such code in the router moves all tokens
    behind it in the scan, and 8 bits have the most thresholds to lie at."""
    bits, network, model, image = student
    runtime, inputs, outputs = Runtime(model, 2), [], []
    layers = [layer for _, layer in network.blocks()]

    def keep(_, given, made):
        inputs.append(given[0])
        outputs.append(made)

    hooks = [layer.register_forward_post_hook(keep) for layer in layers]
    try:
        forward(network, image)
    finally:
        for hook in hooks:
            hook.remove()
    medians, moved = [], []
    for index, (given, made) in enumerate(zip(inputs, outputs)):
        expected = made.numpy().reshape(HEIGHT, WIDTH, 48)
        found = runtime.run_layer(index, given.numpy().reshape(HEIGHT, WIDTH, 48))
        error = np.abs(found - expected).max(axis=2) / np.abs(expected).max()
        medians.append(np.median(error))
        moved.append((error > 1e-3).mean())
    assert len(moved) == 20 and np.quantile(medians, 0.7) <= 5e-6
    assert np.mean(moved) <= (0.02 if bits <= 4 else 0.15)

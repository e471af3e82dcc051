"""The export for PyTorch, loaded into the official network of a checkout of csguoh/MambaIR (PPSR2Q_PEER)."""
import os
from pathlib import Path

import numpy as np
import paddle
import pytest

from benchmarks.peer import official_network
from ppsr2q.core.config import load_config
from ppsr2q.core.errors import UserError
from ppsr2q.core.files import load_artifact
from ppsr2q.deploy.packed import TensorQuantizer
from ppsr2q.deploy.torch_export import TORCH_KIND, torch_state, write_torch
from ppsr2q.models.convert_torch import to_paddle_layout
from ppsr2q.quant import CalibrationSettings, calibrate, get_bounds, named_quantizers
from ppsr2q.spr2q.finetune import snapshot
from ppsr2q.spr2q.fuse import fuse
from ppsr2q.workflow.exporting import probe
from ppsr2q.workflow.networks import build_network, build_quantized, parameters_of_official

CONFIG = "configs/mambairv2_light_x2_w4a4.yml"
ARCHITECTURE = {"name": "mambairv2_light", "scale": 2}
SIZE = (20, 28)  # padded to (32, 32): four windows
LEVEL = 1 / 255


def make_config():
    return load_config(CONFIG, ["model.weights=embedded"])


@pytest.fixture(scope="module")
def fused():
    """A fused 4-bit network and the quantizers that it kept."""
    quantized = build_quantized(make_config())
    student = quantized.student
    calibrate(student, probe((16, 32)), CalibrationSettings(candidates=4, max_samples=1024))
    bounds = get_bounds(student)
    fuse(student, quantized.tensors)
    return student, {name: TensorQuantizer(q.bits, *map(float, bounds[name]))
                     for name, q in named_quantizers(student).items()}


def test_every_official_key_comes_back_as_it_was(fused, tmp_path):
    student, quantizers = fused
    write_torch(tmp_path / "t.safetensors", snapshot(student), quantizers, {"architecture": ARCHITECTURE})
    artifact = load_artifact(tmp_path / "t.safetensors", TORCH_KIND)
    assert artifact.metadata["quantizers"]["layers.0.residual_group.layers.0.q.input"]["bits"] == 4
    assert len(artifact.metadata["quantizers"]) == len(quantizers)
    found = parameters_of_official(ARCHITECTURE, to_paddle_layout(artifact.tensors), "a test")
    for name, value in snapshot(student).items():
        assert np.array_equal(found[name], value), name


def test_a_file_of_another_scale_is_refused(fused):
    with pytest.raises(UserError, match="weights for x2"):
        parameters_of_official({"name": "mambairv2_light", "scale": 4},
                               to_paddle_layout(torch_state(snapshot(fused[0]))), "a test")


@pytest.fixture
def official():
    for package in ("torch", "einops"):
        pytest.importorskip(package, reason="the official network needs it")
    folder = os.environ.get("PPSR2Q_PEER")
    if not folder:
        pytest.skip("needs a checkout of github.com/csguoh/MambaIR; set PPSR2Q_PEER to its folder")
    return official_network(Path(folder), 2)


def layers_with_inputs(network, x):
    """(inputs, outputs) of our attentive layers, and the output of the network, as arrays."""
    inputs, outputs, handles = [], [], []
    for _, layer in network.blocks():
        handles += [layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0].numpy())),
                    layer.register_forward_post_hook(lambda _, given, output: outputs.append(output.numpy()))]
    with paddle.no_grad():
        y = network(paddle.to_tensor(x)).numpy()
    for handle in handles:
        handle.remove()
    return inputs, outputs, y


@pytest.mark.parametrize("quantized", [False, True])
def test_the_official_network_answers_as_ours(quantized, official, fused, tmp_path):
    """Layer by layer on our layer's input: a value within rounding of a threshold gets the next code (or class), and
    a class that changes moves all later tokens of the scan. Most layers have no such value; a quantizer that is missing
    or misplaced makes all of them differ."""
    import torch

    from ppsr2q.deploy.torch_loader import load_quantized
    network, quantizers = fused if quantized else (build_network(make_config()), {})
    write_torch(tmp_path / "t.safetensors", snapshot(network), quantizers, {"architecture": ARCHITECTURE})
    model, image, padded = load_quantized(official, tmp_path / "t.safetensors"), probe(SIZE).numpy(), (32, 32)
    inputs, ours, expected = layers_with_inputs(network, image)
    parameters = {"attn_mask": model.calculate_mask(padded), "rpi_sa": model.relative_position_index_SA}
    layers = [layer for stage in model.layers for layer in stage.residual_group.layers]
    with torch.no_grad():
        theirs = [layer(torch.from_numpy(x), padded, parameters).numpy() for layer, x in zip(layers, inputs)]
        y = model(torch.from_numpy(image)).numpy()
    differing = [(np.abs(a - b) > 1e-5).mean() for a, b in zip(theirs, ours)]
    assert len(differing) == 20 and np.median(differing) == 0, differing
    assert np.sqrt(((y - expected)**2).mean()) < (2 * LEVEL if quantized else 1e-4)

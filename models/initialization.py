"""Starting points for pretraining: the official initialization, and one that begins as a bilinear upsampler."""
from __future__ import annotations

import numpy as np
from paddle import nn

from ppsr2q.models.mambairv2 import CHANNELS, CLASSES, INNER_RANK, STATES, MambaIRv2Light

_RESIDUAL_SCALE = 0.1  # how much of the other branches is left beside the bilinear path


def _draw(name: str, shape, rng: np.random.Generator) -> np.ndarray:
    """One parameter of the official initialization (MambaIRv2 code; see the comments for the layers it covers)."""
    def uniform(bound):
        return rng.uniform(-bound, bound, shape)

    leaf = name.rpartition(".")[2]
    if "norm" in name.split(".")[-2:][0]:
        return np.ones(shape) if leaf == "weight" else np.zeros(shape)
    if leaf in ("scale1", "scale2"):
        return np.full(shape, 1e-4)
    if leaf == "A_logs":
        return np.tile(np.log(np.arange(1, STATES + 1)), (CHANNELS, 1))
    if leaf == "Ds":
        return np.ones(shape)
    if leaf == "x_proj_weight":
        return uniform(CHANNELS**-0.5)
    if leaf == "dt_projs_weight":
        return uniform(shape[-1]**-0.5)
    if leaf == "dt_projs_bias":  # softplus^-1 of a log-uniform step
        step = np.maximum(np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), shape)), 1e-4)
        return step + np.log(-np.expm1(-step))
    if name.endswith("embeddingA.weight"):
        return uniform(1 / INNER_RANK)
    if name.endswith("embeddingB.weight"):
        return uniform(1 / CLASSES)
    if leaf == "relative_position_bias_table" or len(shape) == 2:  # bias tables and Linear weights
        return rng.normal(0, 0.02, shape)
    if len(shape) == 4:  # Conv2D: Kaiming uniform with a = sqrt(5)
        return uniform(np.prod(shape[1:])**-0.5)
    raise ValueError(f"no initialization is known for {name} {list(shape)}")


def official_initialization(model: MambaIRv2Light, seed: int) -> None:
    """Set every parameter as the official code does, from one generator seeded with ``seed``."""
    rng = np.random.default_rng(seed)
    convolutions = {name: layer for name, layer in model.named_sublayers() if isinstance(layer, nn.Conv2D)}
    for name, parameter in model.named_parameters():
        prefix, _, leaf = name.rpartition(".")
        if leaf == "bias" and "norm" not in prefix.rpartition(".")[2]:
            bound = 0.0 if prefix not in convolutions else np.prod(convolutions[prefix].weight.shape[1:])**-0.5
            value = rng.uniform(-bound, bound, parameter.shape)
        else:
            value = _draw(name, parameter.shape, rng)
        parameter.set_value(value.astype(np.float32))


def _bilinear_taps(scale: int) -> np.ndarray:
    """(scale, 3): weights of the previous, this and the next pixel for every sub-pixel position (half-pixel centres)."""
    offset = (np.arange(scale) + 0.5) / scale - 0.5
    return np.stack([np.maximum(-offset, 0), 1 - np.abs(offset), np.maximum(offset, 0)], axis=1)


def bilinear_start(model: MambaIRv2Light) -> None:
    """Change an initialized network so that it starts as a bilinear upsampler.

    Channels 0 to 2 of conv_first pass RGB through, the upsampling convolution holds the bilinear taps; everything
    else that reaches the output is scaled down and its biases are zero. The network then need not learn to be the
    identity first.
    """
    def scaled(layer):
        layer.weight.set_value(layer.weight * _RESIDUAL_SCALE)
        layer.bias.set_value(np.zeros(layer.bias.shape, np.float32))
        return layer.weight.numpy()

    scaled(model.conv_after_body)
    first, first_bias = model.conv_first.weight.numpy(), model.conv_first.bias.numpy()
    first[:3], first_bias[:3] = 0, 0
    last = scaled(model.upsample[0])
    taps = _bilinear_taps(model.scale)
    for color in range(3):
        first[color, color, 1, 1] = 1
        for y in range(model.scale):
            for x in range(model.scale):
                last[(color * model.scale + y) * model.scale + x, color] = np.outer(taps[y], taps[x])
    model.conv_first.weight.set_value(first)
    model.conv_first.bias.set_value(first_bias)
    model.upsample[0].weight.set_value(last)

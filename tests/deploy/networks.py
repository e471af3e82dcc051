"""Fused Paddle networks of random numbers, and their packed forms."""
import copy
import functools

import numpy as np
import paddle

from ppsr2q.deploy.packing import pack
from ppsr2q.models import ARCHITECTURES
from ppsr2q.quant import PLAN_ENTRIES, CalibrationSettings, Plan, calibrate, get_bounds, quantize
from ppsr2q.spr2q.fuse import fuse

NAME = "mambairv2_light"
LAYER = "layers.*.residual_group.layers.*"


@functools.lru_cache(maxsize=None)
def random_network(scale=2):
    """A network whose every parameter matters (the official initialisation leaves many near 0)."""
    paddle.seed(0)
    network, rng = ARCHITECTURES[NAME](scale), np.random.default_rng(0)
    for parameter in network.parameters():
        parameter.set_value(parameter + 0.15 * rng.standard_normal(parameter.shape).astype("float32"))
    network.eval()
    return network


@functools.lru_cache(maxsize=None)
def steady_network():
    """The same with one class for all pixels: rounding cannot move a pixel in the scan, which would change all that
    follow it."""
    network = copy.deepcopy(random_network())
    for _, layer in network.blocks():
        layer.assm.route[0].weight.set_value(paddle.zeros_like(layer.assm.route[0].weight))
    return network


@functools.lru_cache(maxsize=None)
def random_image(height, width, seed=0):
    return np.random.default_rng(seed).random((height, width, 3), np.float32)


def quantized(network, bits, overrides=None, image=None):
    """(fused student, its packed form)."""
    scale = network.scale
    plan = Plan(PLAN_ENTRIES[NAME], bits, overrides or {})
    student = quantize(network, plan)
    image = random_image(16, 32) if image is None else image
    calibrate(student, paddle.to_tensor(image.transpose(2, 0, 1)[None]),
              CalibrationSettings(candidates=5, max_samples=2048))
    bounds = get_bounds(student)
    fuse(student, plan.resolve(network))
    return student, pack(student, {"name": NAME, "scale": scale}, plan, bounds, {})


def only(*patterns, bits):
    """Overrides that quantize nothing but some tensors of every AttentiveLayer."""
    return {"**": None, **{f"{LAYER}.{pattern}": bits for pattern in patterns}}
